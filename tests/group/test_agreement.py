"""Ranks that mean different things refuse to begin, all with the same words: both values, ranks and hosts."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest
import torch
import torch.distributed as torch_dist

from dist.errors import ChatError, CheckpointError, RankError, UsageError
from dist.group.agreement import KEY, Intent, agree, compare, package_versions

MINE = Intent(
    options={"parallel": "auto", "dtype": "auto"},
    checkpoint="abc",
    path="/here/ckpt",
    program="dllm-chat 1.0",
    versions={"Python": "3.11", "torch": "2.13.0", "transformers": "5.0"},
    host="hosta",
    whole="all1",
)
THEIRS = replace(MINE, path="/there/ckpt", host="hostb")


def test_equal_intents_begin_wherever_the_checkpoint_lies():
    compare([MINE, THEIRS, THEIRS])
    compare([MINE])
    # A rank that has not looked at the checkpoint says nothing of it.
    compare([MINE, replace(THEIRS, checkpoint=None, whole=None)])


@pytest.mark.parametrize(
    ("other", "kind", "parts"),
    [
        (
            {"program": "dllm-chat 1.1"},
            RankError,
            ["versions of this program", "1.0 on rank 0", "1.1 on rank 2"],
        ),
        (
            {"versions": {**MINE.versions, "torch": "2.5.1"}},
            RankError,
            ["versions of torch", "2.13.0 on rank 0 (hosta), 2.5.1 on rank 2 (hostb)"],
        ),
        (
            {"versions": {"Python": "3.11", "torch": "2.13.0"}},
            RankError,
            ["versions of transformers", "5.0 on", "none on rank 2 (hostb)"],
        ),
        (
            {"options": {"parallel": "tp", "dtype": "auto"}},
            UsageError,
            ["--parallel differs", "auto on rank 0 (hosta), tp on rank 2 (hostb)"],
        ),
        (
            {"checkpoint": "def"},
            CheckpointError,
            ["checkpoints of the ranks differ", "abc (/here/ckpt) on rank 0 (hosta), def (/there/ckpt) on rank 2"],
        ),
        (
            {"whole": "all2"},  # samples and sums are the same, and a byte is not
            CheckpointError,
            [
                "checkpoints of the ranks differ",
                "all1 (/here/ckpt) on rank 0 (hosta), all2 (/there/ckpt) on rank 2",
            ],
        ),
        (
            {"checkpoint": None, "problem": "Shard 1 of 2 is missing."},
            CheckpointError,
            ["Rank 2 (hostb) cannot use the checkpoint:", "Shard 1 of 2 is missing."],
        ),
    ],
)
def test_a_difference_is_named_with_both_values_and_hosts(other, kind, parts):
    with pytest.raises(kind) as caught:
        compare([MINE, THEIRS, replace(THEIRS, **other)])
    assert not [part for part in parts if part not in str(caught.value)], str(caught.value)


def agreed(intents: list[Intent]) -> list[str]:
    """What each rank says after they met over one store; the empty text if it begins."""
    store = torch_dist.HashStore()
    said = [""] * len(intents)

    def take_part(rank: int) -> None:
        try:
            agree(store, rank, len(intents), intents[rank], wait_s=30.0)
        except ChatError as error:
            said[rank] = str(error)

    threads = [threading.Thread(target=take_part, args=(rank,)) for rank in range(len(intents))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_all_ranks_begin_or_all_refuse_with_the_same_words():
    assert agreed([MINE, THEIRS, THEIRS]) == ["", "", ""]
    first, *others = agreed([MINE, THEIRS, replace(THEIRS, checkpoint="def")])
    assert first.startswith("The checkpoints of the ranks differ.")
    assert others == [first, first]


def test_a_rank_that_does_not_come_is_named():
    with pytest.raises(RankError, match=r"Ranks 1, 2 did not join within 0 s\."):
        agree(torch_dist.HashStore(), 0, 3, MINE, wait_s=0.1)


def test_an_intent_of_another_version_of_the_program_is_a_difference_not_a_crash():
    store = torch_dist.HashStore()
    store.set(f"{KEY}1", json.dumps({"program": "dllm-chat 9", "host": "hostb", "unknown": 1}))
    with pytest.raises(RankError, match="versions of this program"):
        agree(store, 0, 2, MINE)


def test_what_is_installed_is_compared():
    found = package_versions()
    assert list(found) == ["Python", "torch", "transformers"]
    assert found["torch"] == torch.__version__
