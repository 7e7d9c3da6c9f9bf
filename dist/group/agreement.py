"""Do all ranks mean the same? Asked over the store before anything is loaded. Knows no model and no option by name.

Every rank puts down what it is about to do as words by name; all then read all, so all see the same difference and
refuse with the same text. Weights of the same shapes but other content, say, would else give a reply of neither.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from dist.errors import ChatError, CheckpointError, RankError, UsageError
from dist.group.hosts import host_name

PACKAGES = ("torch", "transformers")
# Ranks import torch and open the checkpoint before they come; those that die meanwhile are reported otherwise.
WAIT_S = 300.0
POLL_S = 0.05
KEY = "chat/intent/"


class Store(Protocol):
    """What is asked of torch's store."""

    def set(self, key: str, value: str, /) -> object: ...

    def get(self, key: str, /) -> bytes: ...

    def check(self, keys: list[str], /) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """What one rank is about to do. Values are compared as text; `None` says nothing and differs from nothing.

    options     what was asked for, as far as all ranks have to agree, by the option's name
    checkpoint  its digest, or None where the rank takes part without having looked
    whole       the digest of its every byte, or None where this rank has not read them
    path        where the checkpoint lies on that host
    problem     why this rank cannot use the checkpoint, or None
    """

    options: Mapping[str, str] = field(default_factory=dict)
    checkpoint: str | None = None
    whole: str | None = None
    path: str = ""
    problem: str | None = None
    program: str = ""
    versions: Mapping[str, str] = field(default_factory=lambda: package_versions())
    host: str = field(default_factory=host_name)


def package_versions() -> dict[str, str]:
    """The versions that have to be equal, found without importing anything."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def agree(store: Store, rank: int, size: int, mine: Intent, wait_s: float = WAIT_S) -> None:
    """Every rank, together: put down what this rank intends, and compare. Raises ChatError on all ranks alike.

    UsageError where options differ, CheckpointError where checkpoints do or one cannot be used, else RankError.
    """
    store.set(f"{KEY}{rank}", json.dumps(asdict(mine)))
    keys = [f"{KEY}{number}" for number in range(size)]
    deadline = time.monotonic() + wait_s
    try:
        while not store.check(keys):
            if time.monotonic() > deadline:
                raise _silent([number for number, key in enumerate(keys) if not store.check([key])], wait_s)
            time.sleep(POLL_S)
        intents = [_read(store.get(key)) for key in keys]
    except RuntimeError as error:
        raise RankError("Contact with rank 0's store was lost.", f"{error}".splitlines()[0]) from error
    compare(intents)


def compare(intents: Iterable[Intent]) -> None:
    """Raises ChatError naming the first difference between ranks 0, 1, ...: both values, ranks and hosts."""
    first, *others = intents
    for rank, other in enumerate(others, start=1):
        for find in (_program, _versions, _options, _problem, _checkpoint):
            difference = find(first, other, rank)
            if difference is not None:
                raise difference
    if first.problem is not None:
        raise CheckpointError(f"{_rank(0, first)} cannot use the checkpoint:", first.problem)


def _read(text: bytes) -> Intent:
    """A rank's intent; what another version of the program adds to it is passed over."""
    known = {row.name for row in fields(Intent)}
    return Intent(**{name: value for name, value in json.loads(text).items() if name in known})


def _program(first: Intent, other: Intent, rank: int) -> ChatError | None:
    if first.program == other.program:
        return None
    return RankError(
        "The ranks run different versions of this program.",
        f"{_both(first.program, first, other.program, other, rank)}.",
        "Copy the same version to all hosts.",
    )


def _versions(first: Intent, other: Intent, rank: int) -> ChatError | None:
    for name in first.versions:
        mine, theirs = first.versions[name], other.versions.get(name, "none")
        if mine != theirs:
            return RankError(
                f"The ranks have different versions of {name}.",
                f"{_both(mine, first, theirs, other, rank)}.",
                "Replies may differ between them, so use one version on all hosts.",
            )
    return None


def _options(first: Intent, other: Intent, rank: int) -> ChatError | None:
    for name in sorted({*first.options, *other.options}):
        mine, theirs = first.options.get(name, "none"), other.options.get(name, "none")
        if mine != theirs:
            return UsageError(
                f"--{name} differs between the ranks.",
                f"{_both(mine, first, theirs, other, rank)}.",
                "Give the same on all hosts; each host's config file counts too.",
            )
    return None


def _problem(first: Intent, other: Intent, rank: int) -> ChatError | None:
    if other.problem is None or first.problem is not None:
        return None
    return CheckpointError(f"{_rank(rank, other)} cannot use the checkpoint:", other.problem)


def _checkpoint(first: Intent, other: Intent, rank: int) -> ChatError | None:
    for mine, theirs in ((first.checkpoint, other.checkpoint), (first.whole, other.whole)):
        if None not in (mine, theirs) and mine != theirs:
            both = _both(f"{mine} ({first.path})", first, f"{theirs} ({other.path})", other, rank)
            return CheckpointError(
                "The checkpoints of the ranks differ.", f"Digest {both}.", "Copy the same checkpoint to all hosts."
            )
    return None


def _both(mine: str, first: Intent, theirs: str, other: Intent, rank: int) -> str:
    return f"{mine} on {_place(0, first)}, {theirs} on {_place(rank, other)}"


def _place(rank: int, intent: Intent) -> str:
    return f"rank {rank} ({intent.host})"


def _rank(rank: int, intent: Intent) -> str:
    return f"Rank {rank} ({intent.host})"


def _silent(ranks: list[int], seconds: float) -> RankError:
    named = ", ".join(map(str, ranks))
    return RankError(
        f"Rank{'s' * (len(ranks) > 1)} {named} did not join within {seconds:.0f} s.",
        "See the logs of that host.",
    )
