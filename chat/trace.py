"""How the blocks of one reply changed from pass to pass, for `--verbose_trace`. Knows no file and no stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from dist.protocol import BlockUpdate

Decode = Callable[[Sequence[int]], str]


class Trace:
    """Collects the updates of one reply."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._updates: list[BlockUpdate] = []

    def take(self, update: BlockUpdate) -> None:
        """Add the state of a block after one pass."""
        self._updates.append(update)

    def as_blocks(self) -> list[dict[str, Any]]:
        """One object a block, in order, each with its passes; ready for JSON."""
        blocks: dict[int, list[dict[str, Any]]] = {}
        for update in self._updates:
            blocks.setdefault(update.index, []).append(self._pass(update))
        return [{"block": index, "passes": passes} for index, passes in blocks.items()]

    def last_line(self) -> str:
        """The last update in one line of text."""
        update = self._updates[-1]
        text = json.dumps(self._decode(update.token_ids), ensure_ascii=False)
        counts = f"{sum(update.changed)} changed, {update.exact} of {len(update.token_ids)} exact"
        return f"block {update.index}, pass {update.iteration} ({counts}): {text}"

    def _pass(self, update: BlockUpdate) -> dict[str, Any]:
        record: dict[str, Any] = {
            "iteration": update.iteration,
            "text": self._decode(update.token_ids),
            "token_ids": list(update.token_ids),
            "changed": list(update.changed),
            "exact": update.exact,
        }
        if update.candidates is not None:
            record["candidates"] = [[list(pair) for pair in position] for position in update.candidates]
        return record
