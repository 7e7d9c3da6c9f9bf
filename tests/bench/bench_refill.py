"""Replies of drawn lengths: the next prompt begins where one ends, against batches turn by turn, both in one run.

    PYTHONPATH=. python tests/bench/bench_refill.py [CHECKPOINT] [--prompts N] [--together N] [--lengths FROM TO]

Without CHECKPOINT the embedded model answers, on this machine's GPU if it has one. Nothing stops a reply but its
own budget, which is drawn. Both sides answer the same prompts under the same settings; their tokens are compared.
Passes (prefill included) do not depend on the machine; what a pass of more rows costs does. For the figures of a 7B
shape: CHECKPOINT as tests/bench/bench_gpu.py writes it, --prompts 256 --together 64 --lengths 16 512
--prompt_tokens 512; --generate adds transformers' own batches (static cache, token by token).
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from bench_cpu import Bench

from chat.demo import demo_folder
from dist.checkpoint.open import open_checkpoint
from dist.group.group import SoloGroup
from dist.protocol import Control, Reply, Turn
from dist.settings import GenerationSettings

Ids = tuple[int, ...]
# Tokens of each row of transformers' first try.
TRIED = 24


class Sides:
    """The same prompts and budgets, answered in several ways; each gives tokens and seconds."""

    def __init__(self, bench: Bench, options: argparse.Namespace) -> None:
        draw = random.Random(options.seed)
        self.bench = bench
        self.together = options.together
        self.cpu_time = options.cpu_time
        self.settings = GenerationSettings(
            add_eos_length=options.blocks, refine_iter=options.rounds_of, max_new_tokens=options.lengths[1]
        )
        self.lengths = [draw.randint(*options.lengths) for _ in range(options.prompts)]
        words = [bench.conversation(seed) for seed in range(options.prompts)]
        self.prompts: list[Ids] = [
            (one * -(-options.prompt_tokens // len(one)))[: options.prompt_tokens] for one in words
        ]

    def warm_up(self) -> None:
        """Make the storage, and on a GPU the graphs, of both sides: those of the last rows too, as lengths go."""
        if self.bench.loaded.device.type == "cuda":
            self.refilled()
            return
        lengths, self.lengths = self.lengths, [2 * self.settings.add_eos_length + 2] * len(self.lengths)
        self.refilled()
        self.turn_by_turn()
        self.lengths = lengths

    def refilled(self) -> tuple[list[Ids], float]:
        return self._timed([range(len(self.prompts))])

    def turn_by_turn(self) -> tuple[list[Ids], float]:
        rows = range(len(self.prompts))
        return self._timed([rows[first : first + self.together] for first in rows[:: self.together]])

    def generate(self, model: Any, prompts: int, *, only_try: bool = False) -> float:
        """transformers, batch by batch, greedy: seconds. What it makes past a reply's budget counts for nothing.

        `only_try`: a few tokens of the first batch, with the storage of the longest reply, which stays.
        """
        started = time.perf_counter()
        for first in range(0, self.together if only_try else prompts, self.together):
            rows = range(first, min(first + self.together, prompts))
            ids = torch.tensor([self.prompts[row] for row in rows], device=self.bench.loaded.device)
            new = self.settings.max_new_tokens if only_try else max(self.lengths[row] for row in rows)
            ends = len(self.prompts[0]) + TRIED
            with torch.inference_mode():
                model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    cache_implementation="static",
                    pad_token_id=self.bench.tokenizer.eos_id,
                    eos_token_id=None,
                    max_new_tokens=new,
                    min_new_tokens=new,
                    stopping_criteria=[partial(_full, ends)] if only_try else None,
                )
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def _count(self) -> Control:
        """Asked once a pass."""
        self.passes += 1
        return Control(settings=self.settings)

    def _timed(self, turns: list[range]) -> tuple[list[Ids], float]:
        clock = time.process_time if self.cpu_time else time.perf_counter
        self.bench.engine.forwards.forget()
        found: dict[int, Ids] = {}
        self.passes = 0
        started = clock()
        for rows in turns:
            turn = Turn(
                prompts=tuple(self.prompts[row] for row in rows),
                settings=self.settings,
                placeholder=self.bench.tokenizer.eos_id,
                stop_ids=(),
                row_settings=tuple(replace(self.settings, max_new_tokens=self.lengths[row]) for row in rows),
                together=self.together,
            )
            for event in self.bench.engine.answer(turn, self._count):
                if isinstance(event, Reply):
                    found[rows[event.row]] = event.token_ids
        return [found[row] for row in range(len(self.prompts))], clock() - started


def _rounds(text: str) -> int | str:
    return text if text == "auto" else int(text)


def _full(length: int, ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
    return torch.full((ids.shape[0],), ids.shape[1] >= length, device=ids.device)


def plain_model(bench: Bench, folder: str) -> Any:
    """transformers' own modules over the weights that the engine's module holds."""
    from types import SimpleNamespace

    from bench_gpu import plain_model

    return plain_model(SimpleNamespace(checkpoint=open_checkpoint(folder), loaded=bench.loaded))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default=None)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--together", type=int, default=8)
    parser.add_argument("--lengths", type=int, nargs=2, default=[8, 128])
    parser.add_argument("--prompt_tokens", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=7, help="N")
    parser.add_argument("--rounds_of", type=_rounds, default=2, help="R, or auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cpu_time", action="store_true", help="this process's, on a machine that is busy")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--generate", action="store_true")
    parser.add_argument("--generate_prompts", type=int, default=0, help="of these only; 0: of all")
    options = parser.parse_args()
    bench = Bench(options.checkpoint or str(demo_folder()), SoloGroup(), options.dtype)
    sides = Sides(bench, options)
    total = sum(sides.lengths)
    print(f"{options.prompts} prompts of {options.prompt_tokens} tokens, {total} new, {options.together} together")
    sides.warm_up()
    ratios: list[float] = []
    rates: dict[str, list[float]] = {"turn by turn": [], "refilled": []}
    passes: dict[str, int] = {}
    for number in range(options.repeat):
        # In turn, each first in every other round.
        order = [("turn by turn", sides.turn_by_turn), ("refilled", sides.refilled)]
        made: dict[str, list[Ids]] = {}
        spans: dict[str, float] = {}
        for name, run in order if number % 2 else reversed(order):
            made[name], spans[name] = run()
            passes[name] = sides.passes
            rates[name].append(total / spans[name])
        differ = sum(one != other for one, other in zip(made["turn by turn"], made["refilled"]))
        ratios.append(spans["turn by turn"] / spans["refilled"])
        print(f"round {number + 1}: {ratios[-1]:.2f} times as fast; replies that differ: {differ}")
    print("| side | tokens/s | passes |\n|---|---|---|")
    for name, found in rates.items():
        print(f"| {name} | {statistics.median(found):,.1f} | {passes[name]} |")
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"refilled / turn by turn: {spread}", flush=True)
    if options.generate:
        model = plain_model(bench, options.checkpoint or str(demo_folder()))
        began = time.perf_counter()
        count = min(options.generate_prompts or options.prompts, options.prompts)
        sides.generate(model, count, only_try=True)
        tried = time.perf_counter() - began
        made = sum(sides.lengths[:count])
        rate = made / sides.generate(model, count)
        ratio = statistics.median(rates["refilled"]) / rate
        print(
            f"transformers' generate, {count} prompts, first try {tried:.0f} s: {rate:,.1f} tokens/s; {ratio:.2f}"
        )


if __name__ == "__main__":
    main()
