"""Run by test_reload.py: on real gloo ranks, swap weights in every way, and have it fail in every way.

Arguments: a comma-separated list of rank counts, and a run with the steps 3 and 7. Prints {count: {way: {...}}} as
JSON.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from pathlib import Path

from ranks import results_of_forks
from steps import cut_in_half

from dist.checkpoint.open import open_checkpoint
from dist.decode.engine import Engine
from dist.errors import CheckpointError, WeightsLost
from dist.model.load import load_model
from dist.model.reload import Reloader
from dist.protocol import Control, Reply, Turn
from dist.settings import GenerationSettings

SETTINGS = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=16)
PROMPT = tuple(range(5, 45))


def main() -> None:
    print(json.dumps(results_of_forks(map(int, sys.argv[1].split(",")), swap_in_every_way)))


def swap_in_every_way(group) -> dict:
    run = Path(sys.argv[2])
    results = {}
    for keep in ("resident", "sharded", "tp")[: 1 if group.size == 1 else None]:
        for fault in FAULTS:
            copy = run.with_name(f"{run.name}-{group.size}-{keep}-{fault.__name__}")
            if group.rank == 0:
                shutil.copytree(run, copy)
            group.gather_errors(None)
            results[f"{keep} {fault.__name__}"] = fault(group, copy, keep)
    return results


class Rank:
    """One rank's engine, on step 3 unless another is named."""

    def __init__(self, group, run: Path, keep: str, step: int = 3) -> None:
        self.group = group
        self.run = run
        self.spoil = lambda folder: None
        self.stands_for = lambda folder: folder
        self.digests = []
        way = {"parallel": "tp"} if keep == "tp" else {"keep": keep}
        loaded = load_model(open_checkpoint(self.step(step)), group, dtype="float32", **way)
        self.reloader = Reloader(loaded, group, self.open)
        self.engine = Engine(
            loaded.module, group, max_positions=loaded.max_positions, reloader=self.reloader, head=loaded.head
        )

    def step(self, number: int) -> Path:
        return self.run / f"global_step_{number}"

    def open(self, folder: str):
        """What the program does; afterwards the files may spoil on this rank."""
        checkpoint = open_checkpoint(self.stands_for(folder))
        self.digests.append(self.state()[0])
        self.spoil(folder)
        return checkpoint

    def reply(self) -> list[int]:
        turn = Turn(prompts=(PROMPT,), settings=SETTINGS, placeholder=2, stop_ids=())
        last = list(self.engine.answer(turn, lambda: Control(settings=SETTINGS)))[-1]
        assert isinstance(last, Reply)
        return list(last.token_ids)

    def state(self) -> list:
        """Where this rank's weights are, and a digest of them."""
        tensors = [tensor for _, tensor in sorted(self.reloader.loaded.module.named_parameters())]
        digest = hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors))
        return [digest.hexdigest(), [tensor.data_ptr() for tensor in tensors]]

    def run_script(self, script) -> dict:
        """Rank 0 does what the script says, the others follow; adds what became of every rank's weights."""
        before = self.state()
        result = {}
        if self.group.rank:
            self.engine.follow()
        else:
            result = script(self)
            self.engine.shutdown()
        after = self.state()
        moved = self.group.gather_errors(None if before[1] == after[1] else "moved")
        changed = self.group.gather_errors(None if before[0] == after[0] else "changed")
        # The old folder is opened after the new one, when reading that has failed.
        overwritten = self.group.gather_errors("overwritten" if self.digests[1:] != self.digests[:-1] else None)
        return {
            **result,
            "moved": sorted(moved),
            "changed": sorted(changed),
            "overwritten": sorted(overwritten),
        }

    @property
    def is_last(self) -> bool:
        return self.group.rank == self.group.size - 1


def load_step_7(rank: Rank) -> dict:
    first = rank.reply()
    cached = rank.engine.cached_tokens
    seen = []
    began = time.monotonic()
    try:
        ready = rank.reloader.check(str(rank.step(7)))
        rank.engine.load(ready, lambda done, total: seen.append((done, total)))
        error = None
    except CheckpointError as problem:
        error = [type(problem).__name__, str(problem)]
    return {
        "first": first,
        "kept": [cached, rank.engine.cached_tokens],
        "error": error,
        "seconds": time.monotonic() - began,
        "step": rank.reloader.loaded.facts.step,
        "progress": seen[-1:],
        "reply": None if error and error[0] == WeightsLost.__name__ else rank.reply(),
    }


def fresh(group, run: Path, keep: str) -> dict:
    return Rank(group, run, keep, step=7).run_script(lambda rank: {"reply": rank.reply()})


def swap(group, run: Path, keep: str) -> dict:
    return Rank(group, run, keep).run_script(load_step_7)


def refuse_on_last_rank(group, run: Path, keep: str) -> dict:
    rank = Rank(group, run, keep)

    def spoil(folder: str) -> None:
        raise CheckpointError("The disk of this rank is gone.", "It was pulled.", "Put it back.")

    if rank.is_last:
        rank.spoil = spoil
    return rank.run_script(load_step_7)


def differ_on_last_rank(group, run: Path, keep: str) -> dict:
    rank = Rank(group, run, keep)
    if rank.is_last and group.size > 1:
        # Under the same name its host has something else.
        config = next(shutil.copytree(rank.step(7), rank.step(70)).rglob("generation_config.json"))
        config.write_text(config.read_text().replace("{", '{"note": "another run",', 1))
        rank.stands_for = lambda folder: folder.replace("step_7", "step_70")
    return rank.run_script(load_step_7)


def tear_on_last_rank(group, run: Path, keep: str) -> dict:
    rank = Rank(group, run, keep)
    if rank.is_last:
        rank.spoil = lambda folder: cut_in_half(Path(folder)) if "step_7" in folder else None
    return rank.run_script(load_step_7)


def tear_both_on_last_rank(group, run: Path, keep: str) -> dict:
    rank = Rank(group, run, keep)
    if rank.is_last:
        rank.spoil = lambda folder: cut_in_half(Path(folder))
    return rank.run_script(load_step_7)


FAULTS = (fresh, swap, refuse_on_last_rank, differ_on_last_rank, tear_on_last_rank, tear_both_on_last_rank)


if __name__ == "__main__":
    main()
