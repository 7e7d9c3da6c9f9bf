"""What of a checkpoint counts: each file, tensor and key is used, or not used and why. Reads no file and no weight.

What is refused raises CheckpointError and never gets here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dist.counted import counted

FILES, TENSORS, TEMPLATES = "files", "tensors", "chat template"
WEIGHTS = "weights"
SHOWN = 6
VALUE_WIDTH = 32


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, tensor or key.

    place    FILES, TENSORS, or the name of the file that a key stands in
    why      what it is used for, or why it is not used; entries of one reason are shown together
    value    a key's value in short
    matters  it is not used although it could change replies, so that it is named at the start
    """

    place: str
    name: str
    used: bool
    why: str
    value: str = ""
    matters: bool = False

    @property
    def words(self) -> str:
        """The name, with its value where it has one."""
        return f"{self.name} {self.value}" if self.value else self.name


@dataclass(frozen=True, slots=True)
class Ledger:
    """All entries, in the order in which they were found."""

    entries: tuple[Entry, ...] = ()

    def plus(self, entries: Iterable[Entry]) -> Ledger:
        """With more entries; a later entry replaces an earlier one of the same place and name."""
        merged = {(one.place, one.name): one for one in (*self.entries, *entries)}
        return Ledger(tuple(merged.values()))

    @property
    def not_used(self) -> tuple[Entry, ...]:
        """What is passed over."""
        return tuple(one for one in self.entries if not one.used)

    @property
    def readings(self) -> tuple[str, ...]:
        """How tensors that are used were read, where that is not simply by their names."""
        used = (one.why for one in self.entries if one.used and one.place == TENSORS and one.why != WEIGHTS)
        return tuple(dict.fromkeys(used))

    def counts(self) -> str:
        """How many files, tensors and keys are used, in words."""
        used = [one.place for one in self.entries if one.used]
        rest = len(used) - used.count(FILES) - used.count(TENSORS)
        return ", ".join(
            (counted(used.count(FILES), "file"), counted(used.count(TENSORS), "tensor"), counted(rest, "key"))
        )

    def lines(self, *, all_names: bool = False) -> Iterator[str]:
        """What is not used, one line for each place and reason; long lists are cut unless `all_names`."""
        groups: dict[tuple[str, str], list[Entry]] = {}
        for one in self.not_used:
            groups.setdefault((one.place, one.why), []).append(one)
        for (place, why), members in sorted(groups.items(), key=lambda group: not group[1][0].matters):
            names = [one.words for one in members]
            more = len(names) - SHOWN
            shown = names if all_names or more <= 0 else [*names[:SHOWN], f"{more} more"]
            where = "" if place in (FILES, TENSORS) else f"{place}: "
            yield f"{where}{', '.join(shown)} ({why})"

    def short_lines(self) -> Iterator[str]:
        """The same in few lines: keys that have no effect on replies are counted."""
        named = tuple(one for one in self.entries if one.matters or one.place in (FILES, TENSORS, TEMPLATES))
        yield from Ledger(named).lines()
        counted = Counter(one.place for one in self.not_used if one not in named)
        if counted:
            places = ", ".join(f"{count} of {place}" for place, count in counted.items())
            yield f"keys without effect on replies: {places} (python -m dist.checkpoint lists them)"

    def warnings(self) -> Iterator[str]:
        """What is to be said at the start: entries that are not used although they could change replies."""
        yield from Ledger(tuple(one for one in self.not_used if one.matters)).lines()


def short(value: Any) -> str:
    """A key's value as the ledger shows it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= VALUE_WIDTH else f"{text[: VALUE_WIDTH - 3]}..."
