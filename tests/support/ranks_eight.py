"""Run by test_eight_ranks.py on eight gloo ranks of one host: a model opened in one layout answers some prompts.

Arguments: a folder, a layout as `--parallel` has it, or `shares` (gathered per forward). Prints JSON: the replies
of every copy of the model, and how it is spread; or why it cannot be.
"""

from __future__ import annotations

import json
import sys
import time

from ranks import results_of_forks

from chat.loading.division import COPIES
from dist.checkpoint.open import open_checkpoint
from dist.decode.engine import Engine
from dist.errors import CheckpointError
from dist.group.copies import Division, open_copy
from dist.group.group import TorchGroup
from dist.group.ranks import Ranks
from dist.model.load import load_model
from dist.protocol import Control, Reply, Turn
from dist.settings import GenerationSettings

RANKS = 8
PROMPTS = (tuple(3 + i * 7 % 200 for i in range(25)), (5, 9), tuple(range(40, 71)))
# How many of the prompts are answered together, and how.
TURNS = (
    (3, GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=12)),
    (1, GenerationSettings(add_eos_length=7, refine_iter="auto", max_new_tokens=12, temperature=0.9, seed=7)),
)


def main() -> None:
    folder, layout = sys.argv[1:]
    print(json.dumps(results_of_forks([RANKS], lambda ranks: answer(ranks, folder, layout), reach)[RANKS]))


def reach() -> Ranks:
    return Ranks().meet()


def answer(ranks: Ranks, folder: str, layout: str) -> dict:
    """Of rank 0: what all copies' first ranks have reported."""
    way, _, size = layout.partition(":")
    each = int(size or 1) if way == COPIES else RANKS
    mode = ("none" if each == 1 else "tp") if way == COPIES else {"shares": "fsdp"}.get(way, way)
    division = Division(copies=RANKS // each, ranks=each, mode=mode)
    group = open_copy(ranks, division)
    copy = division.copy_of(ranks.rank)
    try:
        report = replies(group, folder, mode, "sharded" if way == "shares" else "auto")
    except CheckpointError as error:
        report = {"refused": str(error)}
    if group.rank == 0:
        ranks.store.set(f"report/{copy}", json.dumps(report))
    found = {}
    if ranks.rank == 0:
        found = {number: json.loads(ranks.store.get(f"report/{number}")) for number in range(division.copies)}
        ranks.store.set("reported", "1")
    ranks.store.get("reported")
    group.close()
    # Rank 0 holds the store, so it is the last to go.
    left = ranks.store.add("left", 1)
    while ranks.rank == 0 and left < RANKS:
        time.sleep(0.01)
        left = ranks.store.add("left", 0)
    return found


def replies(group: TorchGroup, folder: str, mode: str, keep: str) -> dict:
    loaded = load_model(open_checkpoint(folder), group, parallel=mode, keep=keep)
    engine = Engine(
        loaded.module,
        group,
        max_positions=loaded.max_positions,
        head=loaded.head,
        captured=loaded.placement != "shares",
    )
    if group.rank:
        engine.follow()
        return {}
    found: dict = {"spread": loaded.facts.parallel, "replies": []}
    for count, settings in TURNS:
        turn = Turn(prompts=PROMPTS[:count], settings=settings, placeholder=2, stop_ids=(2,))
        events = engine.answer(turn, lambda settings=settings: Control(settings=settings))
        rows = {event.row: event.token_ids for event in events if isinstance(event, Reply)}
        found["replies"].append([rows[row] for row in range(count)])
    engine.shutdown()
    return found


if __name__ == "__main__":
    main()
