"""How the blocks of one reply changed from pass to pass, as plain values and as pieces of text. Knows no stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from chat.text.cells import visible
from chat.text.running_text import Decode, TokenTexts
from dist.protocol import BlockUpdate

# A piece of text with what is to be seen of it: "exact", "border", "changed", "placeholder", or "".
Fragment = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A place of a block that a pass changed: its number from 1, and what it could hold, the likeliest first.

    `candidates` are (text, probability, was it chosen).
    """

    number: int
    candidates: tuple[tuple[str, float, bool], ...]


class Trace:
    """Collects the updates of one reply. Tokens without a text are drawn as `cell`."""

    def __init__(self, decode: Decode, *, cell: str = "░", border: str = "│") -> None:
        self._decode = decode
        self._texts = TokenTexts(decode)
        self._cell = cell
        self._border = border
        self._updates: list[BlockUpdate] = []
        self._before: int | None = None  # the token in front of the last update's places

    def take(self, update: BlockUpdate) -> None:
        """Add the state of a block after one pass."""
        settled = self._updates[-1].settled if self._updates else 0
        if settled:
            self._before = self._updates[-1].token_ids[settled - 1]
        self._updates.append(update)

    def as_blocks(self) -> list[dict[str, Any]]:
        """One object a block, in order, each with its passes; a window is one, without a number. Ready for JSON."""
        blocks: dict[int | None, list[dict[str, Any]]] = {}
        for update in self._updates:
            blocks.setdefault(update.index, []).append(self._pass(update))
        return [{"block": index, "passes": passes} for index, passes in blocks.items()]

    def last_line(self) -> str:
        """The last update in one line of text: what the pass changed stands in brackets."""
        body = "".join(f"[{text}]" if style == "changed" else text for style, text in self.last_draft())
        return f"{self.last_head()} {body}"

    def last_head(self) -> str:
        """Which pass over which block the last update is, if over one, and how much of the draft is exact."""
        update = self._updates[-1]
        block = "" if update.index is None else f"block {update.index + 1}, "
        return f"{block}pass {update.iteration}, {update.exact} of {len(update.token_ids)} exact:"

    def last_draft(self) -> list[Fragment]:
        """The block after the last update; a border stands between what is exact and what may change."""
        update = self._updates[-1]
        fragments: list[Fragment] = []
        within = False  # what is exact
        for at, size, text in self._texts.pieces(update.token_ids, self._before):
            exact = at + size <= update.exact
            if within and not exact:
                fragments.append(("border", self._border))
            within = exact
            changed = any(update.changed[at : at + size])
            style = "changed" if changed else "exact" if exact else "" if text else "placeholder"
            fragments.append((style, self._shown(text, size)))
        return _joined(fragments)

    def last_positions(self) -> Iterator[Position]:
        """Where the last update changed something, with the candidates if the turn asked for them."""
        update = self._updates[-1]
        for at, candidates in enumerate(update.candidates or ()):
            if update.changed[at]:
                before = update.token_ids[at - 1] if at else self._before
                yield Position(
                    number=at + 1,
                    candidates=tuple(
                        (self._candidate(token, before), probability, token == update.token_ids[at])
                        for token, probability in candidates
                    ),
                )

    def _candidate(self, token: int, before: int | None) -> str:
        text, size = self._texts.at((token,), 0, before)
        return self._shown(text, size)

    def _shown(self, text: str, size: int) -> str:
        return visible(text).replace("\n", "\\n") if text else self._cell * size

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


def _joined(fragments: list[Fragment]) -> list[Fragment]:
    """Neighbours of one style as one piece."""
    joined: list[Fragment] = []
    for style, text in fragments:
        if joined and joined[-1][0] == style:
            joined[-1] = (style, joined[-1][1] + text)
        else:
            joined.append((style, text))
    return joined
