"""What `auto` costs and wins: `python tests/bench/bench_auto.py [FOLDER]`. The table of passes needs a GPU.

A pass of a window of 16 places against one of 8, replayed and in whole replies. Then a reply, and the same prompt
answered once more after the weights have changed a little in place, as `/load` of a later step changes them, with
the first reply as draft (`/retry`). Every reply is made twice, and the second one counts.

Without FOLDER the checkpoint of `bench_gpu.py` is written, of the Qwen2.5-7B shape with random weights. Greedily
these fall into a loop, which look-ups guess, so they are also sampled: with a seed that is as deterministic.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import paths  # noqa: F401
import torch
from bench_gpu import PLACEHOLDER, SHAPE, WRITERS, event_seconds
from ranks import open_group

from dist.checkpoint.open import open_checkpoint
from dist.decode.cuda_graphs import Shape
from dist.decode.engine import Engine
from dist.decode.packed_batch import Segment
from dist.model.load import load_model
from dist.protocol import Control, Reply, Turn
from dist.settings import GenerationSettings

ROUNDS = 5
# How much of each weight matrix's spread is added to it; what 16 bits hold is about 0.004 of a number.
NOISES = (0.0, 0.002, 0.01)


class Bench:
    """The model on one process, with the conversation's prompt of so many tokens."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.new = options.new
        self.group = open_group()
        checkpoint = open_checkpoint(folder)
        self.loaded = load_model(checkpoint, self.group)
        self.engine = Engine(
            self.loaded.module, self.group, max_positions=self.loaded.max_positions, head=self.loaded.head
        )
        if options.text:
            from chat.text.prompt import prompt_ids
            from chat.text.tokenizer import load_tokenizer
            from chat.text.transcript import Transcript

            tokenizer = load_tokenizer(checkpoint.tokenizer_dir, checkpoint.generation_config)
            transcript = Transcript().with_user(options.text)
            self.prompt = prompt_ids(transcript, tokenizer, tokenizer.wants_template(None))
            self.placeholder, self.stop_ids = tokenizer.eos_id, tokenizer.stop_ids
        else:
            generator = torch.Generator().manual_seed(1)
            most = self.loaded.module.config.get_text_config().vocab_size
            self.prompt = tuple(torch.randint(1000, most, (512,), generator=generator).tolist())
            self.placeholder, self.stop_ids = PLACEHOLDER, ()

    def reply(self, n: int, temperature: float, earlier: tuple[int, ...] = (), new: int | None = None) -> Reply:
        settings = GenerationSettings(
            add_eos_length=n,
            refine_iter="auto",
            max_new_tokens=new or self.new,
            max_length=len(self.prompt) + self.new,
            temperature=temperature,
            seed=1,
        )
        turn = Turn(
            prompts=(self.prompt,),
            settings=settings,
            placeholder=self.placeholder,
            stop_ids=self.stop_ids,
            earlier=(earlier,) if earlier else (),
        )
        events = list(self.engine.answer(turn, lambda: Control(settings=settings)))
        return next(event for event in events if isinstance(event, Reply))

    def passes(self) -> None:
        print(
            "\n| N | a replayed pass, ms | a pass of a reply, ms | tokens a pass |\n|---|---|---|---|", flush=True
        )
        replayed: dict[int, list[float]] = {7: [], 15: []}
        whole: dict[int, list[float]] = {7: [], 15: []}
        replies = {}
        for n in replayed:
            self.reply(n, 1.0, new=40)  # captures
        forward: Any = self.engine.forwards.alone
        for _ in range(ROUNDS):
            for n in replayed:
                width = n + 1
                passed = forward.run(
                    Shape(1, width, width, width), [Segment(0, 1000 - width, [5] * width, 0, width)]
                )
                replayed[n].append(event_seconds(passed.replay, 20))
                forward.cache.truncate(0)
                replies[n] = self.reply(n, 0.0, new=self.new // 2).stats
                whole[n].append(replies[n].decode_s / replies[n].forwards)
        for n in replayed:
            rate = replies[n].tokens_per_forward
            print(f"| {n} | {min(replayed[n]) * 1e3:.3f} | {min(whole[n]) * 1e3:.3f} | {rate:.2f} |")
        ratios = [min(side[15]) / min(side[7]) for side in (replayed, whole)]
        print(f"| 15 / 7 | {ratios[0]:.3f} | {ratios[1]:.3f} | |", flush=True)

    def retries(self) -> None:
        print(
            "\n| | weights changed by | tokens alike from the start "
            "| tokens a pass: first, again | tok/s: first, again | ratio |"
        )
        print("|---|---|---|---|---|---|")
        n = self.engine.auto_length
        before = {name: one.clone() for name, one in self.loaded.module.state_dict().items()}
        for temperature in (0.0, 1.0):
            self.reply(n, temperature)
            first = self.reply(n, temperature)
            for noise in NOISES:
                self.change(before, noise)
                self.reply(n, temperature, first.token_ids)
                self.engine.forwards.forget()
                again = self.reply(n, temperature, first.token_ids)
                pairs = zip(first.token_ids, again.token_ids)
                alike = next((at for at, (a, b) in enumerate(pairs) if a != b), len(again.token_ids))
                rates = first.stats.tokens_per_s, again.stats.tokens_per_s
                how = "sampled" if temperature else "greedy"
                print(
                    f"| {how}, N = {n} | {noise:g} | {alike} of {len(again.token_ids)}"
                    f" | {first.stats.tokens_per_forward:.2f}, {again.stats.tokens_per_forward:.2f}"
                    f" | {rates[0]:.0f}, {rates[1]:.0f} | {rates[1] / rates[0]:.2f} |",
                    flush=True,
                )
            self.change(before, 0.0)

    @torch.no_grad()
    def change(self, before: dict[str, torch.Tensor], noise: float) -> None:
        """Weights near those before, where they are; what was computed with others is forgotten."""
        torch.manual_seed(0)
        for name, one in self.loaded.module.state_dict().items():
            one.copy_(before[name])
            if noise and one.dim() > 1:
                one.add_(torch.randn_like(one), alpha=noise * float(one.float().std()))
        self.engine.forwards.forget()


def write(folder: Path, layers: int) -> None:
    """The checkpoint of bench_gpu.py, unless something is there."""
    from ranks import torchrun

    if folder.exists() and any(folder.iterdir()):
        return
    script = Path(__file__).with_name("bench_gpu.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "4", "HF_HUB_OFFLINE": "1"}
    command = torchrun(WRITERS, str(script), str(folder), "--write", "--layers", str(layers))
    subprocess.run(command, env=environment, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=None)
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    parser.add_argument("--new", type=int, default=512)
    parser.add_argument("--text", default="", help="a message for a trained model; by default drawn tokens")
    options = parser.parse_args()
    began = time.monotonic()
    folder = options.folder or Path(tempfile.mkdtemp())
    write(folder, options.layers)
    bench = Bench(folder, options)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{where}, torch {torch.__version__}; ready after {time.monotonic() - began:.0f} s", flush=True)
    if bench.engine.captures:
        bench.passes()
    bench.retries()
    bench.engine.close()


if __name__ == "__main__":
    main()
