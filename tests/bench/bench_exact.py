"""Replies in 16 bits, token for token: `python tests/bench/bench_exact.py [--ranks N]`. Needs N GPUs.

A model of 0.36 billion random bfloat16 weights answers drawn prompts token by token (N = 0). How many of these
replies are the same at `refine_iter auto` with other N; in batches of 40; and how many replies of a second turn are
those of the same conversation read from scratch? With `--exact` as the program has it, and without. Ends with 1 if
any differs with `--exact`.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import paths  # noqa: F401
import torch

NEW, SECOND, TOGETHER = 32, 16, 40
BLOCKS = (7, 15, 31)
COMPARED = ("again", *map(str, BLOCKS), "batches", "turns")


def write(folder: Path) -> None:
    """A Hugging Face folder with the model and a tokenizer."""
    from checkpoints import save_tokenizer
    from transformers import AutoModelForCausalLM, Qwen2Config

    tokenizer = save_tokenizer(folder)
    config = Qwen2Config(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=20,
        num_attention_heads=16,
        num_key_value_heads=4,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.05,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)


class Bench:
    """One rank's part, with one way of loading."""

    def __init__(self, folder: Path, group: Any, exact: bool) -> None:
        from dist.checkpoint.open import open_checkpoint
        from dist.decode.engine import Engine
        from dist.model.load import load_model

        self.group = group
        self.loaded = load_model(open_checkpoint(folder), group, exact=exact)
        self.engine = Engine(self.loaded.module, group, max_positions=8192, head=self.loaded.head)

    def replies(self, prompts: list[tuple[int, ...]], n: int, new: int = NEW) -> list[tuple[int, ...]]:
        """Of one turn, on all ranks; empty on others than rank 0."""
        from dist.protocol import Control, Reply, Turn
        from dist.settings import GenerationSettings

        settings = GenerationSettings(
            add_eos_length=n, refine_iter="auto" if n else 1, max_new_tokens=new, max_length=1000
        )
        turn = Turn(prompts=tuple(prompts), settings=settings, placeholder=2, stop_ids=())
        poll = None if self.group.rank else lambda: Control(settings=settings)
        found = {one.row: one.token_ids for one in self.engine.run(turn, poll) if isinstance(one, Reply)}
        return [found[row] for row in range(len(prompts))]

    def run(self, count: int, exact: bool, only: Sequence[str]) -> bool:
        """Print a row for each comparison that is asked for; whether all replies were the same."""
        draw = random.Random(0)
        prompts = [tuple(draw.randrange(3, 32000) for _ in range(draw.randrange(5, 400))) for _ in range(count)]
        way, fine = "--exact" if exact else "without", True

        def tell(name: str, same: int, began: float) -> None:
            nonlocal fine
            fine &= same == count
            if self.group.rank == 0:
                print(f"| {name} | {way} | {same} of {count} | {time.monotonic() - began:.0f} |", flush=True)

        def fresh(prompt: tuple[int, ...], n: int, new: int = NEW) -> tuple[int, ...]:
            self.engine.forwards.forget()
            return self.replies([prompt], n, new)[0]

        began = time.monotonic()
        alone = [fresh(prompt, 0) for prompt in prompts]
        if "again" in only:
            tell("token by token, again", sum(fresh(p, 0) == r for p, r in zip(prompts, alone)), began)
        for n in (n for n in BLOCKS if str(n) in only):
            began = time.monotonic()
            tell(f"auto, N = {n}", sum(fresh(p, n) == r for p, r in zip(prompts, alone)), began)
        if "batches" in only:
            began, same = time.monotonic(), 0
            for first in range(0, count, TOGETHER):
                some = prompts[first : first + TOGETHER]
                same += sum(a == b for a, b in zip(self.replies(some, 7), alone[first:]))
            tell(f"batches of {TOGETHER}, auto, N = 7", same, began)
        if "turns" in only:
            began, same = time.monotonic(), 0
            for prompt, reply in zip(prompts, alone):
                fresh(prompt, 7)
                second = (*prompt, *reply, *(draw.randrange(3, 32000) for _ in range(9)))
                kept = self.replies([second], 7, SECOND)[0]
                same += kept == fresh(second, 7, SECOND)
            tell("second turn and from scratch", same, began)
        self.engine.forwards.close()
        return fine


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", default=None)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--without", type=int, default=40, help="prompts without --exact")
    parser.add_argument("--only", nargs="*", default=COMPARED, help=f"of {' '.join(COMPARED)}")
    parser.add_argument("--rank", action="store_true", help="one rank's part")
    options = parser.parse_args()
    folder = Path(options.folder or tempfile.mkdtemp())
    if options.rank:
        from ranks import open_group

        group = open_group()
        fine = Bench(folder, group, True).run(options.prompts, True, options.only)
        torch.cuda.empty_cache()
        if options.without:
            Bench(folder, group, False).run(options.without, False, options.only)
        group.close()
        sys.stdout.flush()
        os._exit(not fine)
    from ranks import torchrun

    if not (folder / "config.json").exists():
        write(folder)
    print(
        f"{torch.cuda.get_device_name()}, {options.ranks} rank(s)\n| compared | | the same | s |\n|---|---|---|---|"
    )
    numbers = ["--prompts", str(options.prompts), "--without", str(options.without), "--only", *options.only]
    command = torchrun(options.ranks, __file__, str(folder), "--rank", *numbers)
    environment = {**os.environ, "OMP_NUM_THREADS": "4", "HF_HUB_OFFLINE": "1"}
    sys.exit(subprocess.run(command, env=environment).returncode)


if __name__ == "__main__":
    main()
