"""How often our decoding chooses the published loop's tokens: `python tests/bench/bench_match.py CHECKPOINT`.

B  the published loop's rule with resident weights and transformers' own modules: every pass reads everything, gives
   logits of every position, and blocks are run whole
C  this project's engine as the program builds it: keys and values kept, on a GPU fused kernels and captured passes

Both have the same weights in the same dtype and answer the embedded model's held-out questions, one at a time. Two
tables: whole replies, each by its own way, and single passes, in which B reads the very inputs of C's passes. A
margin is how far the second highest of B's logits lies below the highest (bfloat16 logits stand 0.125 apart from 16
to 32, 0.25 from 32 to 64). Where single passes differ, B's model in float32 is asked too.

`--base BASE` first makes CHECKPOINT: the weights in BASE with the embedded model's adapter merged. BASE is a
Hugging Face folder, or a file of weights beside config.json and the tokenizer's files.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import paths  # noqa: F401
import torch
import transformers
from match_tables import figures, tables
from matching import Comparison, PublishedLoop, compare

from chat.demo.adapter import ADAPTER_FILE, merge_adapter
from chat.demo.recipe.conversations import test_questions as held_out_questions
from chat.text.prompt import prompt_ids
from chat.text.tokenizer import ChatTokenizer, load_tokenizer
from chat.text.transcript import Message, Transcript
from dist.checkpoint.open import Checkpoint, open_checkpoint
from dist.decode.engine import Engine
from dist.group.group import SoloGroup
from dist.model.build import build_model
from dist.model.load import LoadedModel, load_model
from dist.model.onednn import packing_pays
from dist.settings import GenerationSettings

# (N, R)
CELLS = ("7,2", "7,4", "0,1", "31,2")


class Bench:
    """Both arms over one checkpoint's weights."""

    def __init__(self, folder: Path, dtype: str) -> None:
        group = SoloGroup()
        checkpoint = open_checkpoint(folder)
        self.loaded = load_model(checkpoint, group, dtype=dtype)
        self.tokenizer = load_tokenizer(checkpoint.tokenizer_dir, checkpoint.generation_config)
        # Before the engine packs weights.
        plain = plain_module(checkpoint, self.loaded)
        self.loop, self.judge = (
            PublishedLoop(module, self.tokenizer.eos_id, self.tokenizer.stop_ids)
            for module in (plain, copy.deepcopy(plain).float() if dtype != "float32" else plain)
        )
        self.engine = Engine(
            self.loaded.module,
            group,
            max_positions=self.loaded.max_positions,
            head=self.loaded.head,
            packed=packing_pays(self.loaded.device, self.loaded.placement),
        )

    def words(self) -> str:
        """Where this ran, and how C decoded."""
        device = torch.cuda.get_device_name() if self.loaded.device.type == "cuda" else "CPU"
        way = self.engine.slow_notice or ("captured" if self.engine.captures else "uncaptured")
        versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
        return f"{device}, {versions}, {self.loaded.facts.dtype}. C: {way}"

    def run(
        self, prompts: Sequence[tuple[int, ...]], all_settings: Sequence[GenerationSettings], seconds: float
    ) -> list[list[Comparison]]:
        """Per setting its comparisons, one a prompt. No prompt is begun after so many seconds."""
        rows: list[list[Comparison]] = [[] for _ in all_settings]
        started = time.perf_counter()
        for done, prompt in enumerate(prompts, 1):
            if time.perf_counter() - started > seconds:
                break
            self.loop.forget()
            self.judge.forget()
            for row, settings in zip(rows, all_settings):
                row.append(compare(self.engine, self.loop, self.judge, prompt, settings))
            if done % 10 == 0:
                print(f"{done} of {len(prompts)} prompts", file=sys.stderr, flush=True)
        return rows


def plain_module(checkpoint: Checkpoint, loaded: LoadedModel) -> Any:
    """transformers' own modules over the weights that the engine's module holds."""
    dtype = next(loaded.module.parameters()).dtype
    module = build_model(checkpoint.config_dir, checkpoint.config, dtype, trust_remote_code=False)
    module.load_state_dict(loaded.module.state_dict(), assign=True)
    return module.to(loaded.device)


def prompts_of(tokenizer: ChatTokenizer, count: int) -> list[tuple[int, ...]]:
    """So many of the held-out questions, drawn from all topics, through the checkpoint's own template."""
    questions = held_out_questions()
    asked = random.Random(0).sample(questions, min(count, len(questions)))
    transcripts = [Transcript(tuple(Message(role, text) for role, text in one.messages)) for one in asked]
    return [prompt_ids(one, tokenizer, tokenizer.wants_template(None)) for one in transcripts]


def settings_of(cell: str, new: int) -> GenerationSettings:
    """From "7,2". The published loop knows no `auto`, whose replies are those of "0,1"."""
    n, _, rounds = cell.partition(",")
    settings = GenerationSettings(add_eos_length=int(n), max_new_tokens=new)
    return settings.with_value("refine_iter", rounds)


def write_merged(base: Path, folder: Path, adapter: Path = ADAPTER_FILE) -> None:
    """Write `folder`, a Hugging Face folder in bfloat16: the weights in `base` with `adapter` merged."""
    from safetensors.torch import load_file, save_file

    source = base if base.is_dir() else base.parent
    files = [base] if base.is_file() else sorted(base.glob("*.safetensors")) or sorted(base.glob("*.bin"))
    state: dict[str, torch.Tensor] = {}
    for file in files:
        whole = file.suffix == ".safetensors"
        state.update(load_file(file) if whole else torch.load(file, map_location="cpu", weights_only=True))
    state = {name: value.to(torch.bfloat16) for name, value in state.items()}
    merge_adapter(state, adapter)
    if json.loads((source / "config.json").read_text()).get("tie_word_embeddings"):
        state.pop("lm_head.weight", None)
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*source.glob("*.json"), *source.glob("*.jinja")):
        if not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--base", type=Path, help="first write CHECKPOINT: this model with the adapter merged")
    parser.add_argument("--prompts", type=int, default=100, help="how many of the held-out questions (100)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no further prompt after so long")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--cells", nargs="*", default=CELLS, metavar="N,R", help=" ".join(CELLS))
    parser.add_argument("--json", type=Path, help="write the figures and every difference here")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.base:
        write_merged(options.base, options.checkpoint)
    bench = Bench(options.checkpoint, options.dtype)
    all_settings = [settings_of(cell, options.max_new_tokens) for cell in options.cells]
    prompts = prompts_of(bench.tokenizer, options.prompts)
    longest = (
        max(map(len, prompts)) + options.max_new_tokens + max(settings.add_eos_length for settings in all_settings)
    )
    if longest > (bench.loaded.max_positions or longest):
        raise SystemExit(f"The model has {bench.loaded.max_positions} positions; {longest} would be needed.")
    started = time.perf_counter()
    compared = bench.run(prompts, all_settings, options.seconds)
    rows = [figures(cell, row) for cell, row in zip(options.cells, compared)]
    print(
        f"{bench.words()}\n{len(compared[0])} prompts, at most {options.max_new_tokens} tokens each; "
        f"{time.perf_counter() - started:.0f} s, of it {bench.loop.seconds:.0f} s for {bench.loop.forwards} "
        f"forwards of B\n\n{tables(rows)}"
    )
    if options.json:
        found = [
            [
                {"first": one.first and asdict(one.first), "passes": [*map(asdict, one.pass_differences)]}
                | {"judged": one.judged}
                for one in row
            ]
            for row in compared
        ]
        options.json.write_text(json.dumps({"rows": rows, "differences": found}, indent=1))


if __name__ == "__main__":
    main()
