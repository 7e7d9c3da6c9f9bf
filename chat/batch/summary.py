"""A table of what several checkpoints answered to the same prompts. Holds figures, no replies; knows no file."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chat.batch.records import ERROR, Record
from chat.text.cells import cells, visible

FIRST = 32  # tokens of a reply whose agreement is counted
NONE = -1


@dataclass(slots=True)
class _Figures:
    """Of one checkpoint. `equal` of `judged` places in the beginnings hold the token of the one before."""

    replies: int = 0
    failed: int = 0
    changed: int = 0
    tokens: int = 0
    by_length: int = 0
    forwards: int = 0
    equal: int = 0
    judged: int = 0


class Summary:
    """Takes the results in the order of the jobs: `each` of the first of the `names`, then of the next.

    Of each reply it keeps a hash and the beginning, until the next checkpoint has answered the same prompt.
    """

    def __init__(self, names: Sequence[int | str], each: int) -> None:
        self._names = names
        self._each = each
        self._figures = [_Figures() for _ in names]
        self._taken = 0
        self._hashes = array("q", bytes(8 * each))
        self._begins = array("q", bytes(8 * each * FIRST))

    def add(self, record: Record) -> None:
        """The next result."""
        step, slot = divmod(self._taken, self._each)
        self._taken += 1
        of, ids = self._figures[step], record["token_ids"]
        begin = array("q", [*ids[:FIRST], *[NONE] * (FIRST - len(ids))])
        whole, at = hash(tuple(ids)), slot * FIRST
        if step:
            before = self._begins[at : at + FIRST]
            pairs = [pair for pair in zip(begin, before, strict=True) if pair != (NONE, NONE)]
            of.judged += len(pairs)
            of.equal += sum(one == other for one, other in pairs)
            of.changed += whole != self._hashes[slot]
        self._hashes[slot], self._begins[at : at + FIRST] = whole, begin
        of.replies += 1
        of.failed += record["finish_reason"] == ERROR
        of.by_length += record["finish_reason"] == "length"
        of.tokens += len(ids)
        of.forwards += (record["stats"] or {}).get("forwards", 0)

    def table(self) -> str:
        """A line for each checkpoint, in columns under their names."""
        head = (
            "step",
            "replies",
            "changed",
            "mean tokens",
            "by length",
            "tokens a pass",
            f"first {FIRST} as before",
        )
        failed = any(one.failed for one in self._figures)
        rows = [(*head, *(("failed",) if failed else ())), *self._rows(failed)]
        widths = [max(cells(row[at]) for row in rows) for at in range(len(rows[0]))]
        lines = (
            "  ".join(cell + " " * (width - cells(cell)) for cell, width in zip(row, widths, strict=True))
            for row in rows
        )
        return "\n".join(line.rstrip() for line in lines)

    def _rows(self, failed: bool) -> Iterator[tuple[str, ...]]:
        for number, (name, one) in enumerate(zip(self._names, self._figures, strict=True)):
            # Rounded down: only what agrees in every place is 100 %.
            agreement = f"{1000 * one.equal // one.judged / 10:.1f} %" if one.judged else "-"
            yield (
                visible(str(name)),
                f"{one.replies:,}",
                f"{one.changed:,}" if number else "-",
                f"{one.tokens / max(1, one.replies):.1f}",
                f"{one.by_length:,}",
                f"{one.tokens / one.forwards:.2f}" if one.forwards else "-",
                agreement,
                *((f"{one.failed:,}",) if failed else ()),
            )
