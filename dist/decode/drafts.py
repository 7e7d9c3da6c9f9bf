"""What fills a window: guesses at the tokens that follow, which cost nothing where they are wrong.

Each source is a pure function of the tokens so far, so that every rank drafts alike without a word between them.
To add one: a function of text and size, and a row in `drafts_for`. Knows no model and no rule.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

from dist.protocol import Turn

OWN, LOOK_UP, EARLIER = "own", "lookup", "earlier"
# What distinguishes guesses: their source, how sure it is, and whether they go on as the last pass's choices do.
Kind = tuple[str, int, bool]
# Tokens of a guess that are expected to be right at first, and how fast the record of what was right forgets. An
# earlier reply goes before all others as long as it is followed. Figures in tests/MEASURED.md.
EXPECTED: dict[Kind, float] = {
    (OWN, 0, True): 1.5,
    **{(LOOK_UP, sure, True): 1.0 for sure in (2, 3, 4)},
    **{(LOOK_UP, sure, False): at_first for sure, at_first in ((2, 0.2), (3, 0.4), (4, 0.8))},
    **{(EARLIER, 0, same): math.inf for same in (True, False)},
}
LEARNS = 0.3
LONGEST, SUREST, SHORTEST = 6, 4, 2

# At most so many tokens that may follow a text, which only grows from call to call, and how sure; None: no guess.
Source = Callable[[Sequence[int], int], "tuple[Sequence[int], int] | None"]


class LookUp:
    """What followed the text's last tokens when they last stood in the conversation (prompt look-up decoding)."""

    def __init__(self) -> None:
        # Where n tokens in a row, behind which something stands, last ended.
        self._ends: dict[tuple[int, ...], int] = {}
        self._indexed = SHORTEST

    def __call__(self, text: Sequence[int], size: int) -> tuple[Sequence[int], int] | None:
        for end in range(self._indexed, len(text)):
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self._ends[tuple(text[end - length : end])] = end
        self._indexed = max(self._indexed, len(text))
        for length in range(LONGEST, SHORTEST - 1, -1):
            found = self._ends.get(tuple(text[-length:]))
            if found is not None:
                # What comes round again goes on coming round.
                period = len(text) - found
                return [text[found + at % period] for at in range(size)], min(length, SUREST)
        return None


class EarlierReply:
    """An earlier reply, followed by index; after a difference, from the nearest place behind two of its tokens."""

    def __init__(self, reply: Sequence[int], prompt_len: int) -> None:
        self._reply = list(reply)
        self._seen = prompt_len
        self._at: int | None = 0
        self._behind: dict[tuple[int, int], list[int]] = {}
        self._from = 0
        for place in range(2, len(reply) + 1):
            self._behind.setdefault((reply[place - 2], reply[place - 1]), []).append(place)

    def __call__(self, text: Sequence[int], size: int) -> tuple[Sequence[int], int] | None:
        new = list(text[self._seen :])
        self._seen = len(text)
        if self._at is not None:
            self._from = self._at
            follows = self._reply[self._at : self._at + len(new)] == new
            self._at = self._at + len(new) if follows else None
        if self._at is None and len(text) > 1:
            places = self._behind.get((text[-2], text[-1]), [])
            nearest = bisect_left(places, self._from)
            self._at = places[nearest] if nearest < len(places) else None
        if self._at is None or self._at == len(self._reply):
            return None
        return self._reply[self._at : self._at + size], 0


class Drafts:
    """Drafts for one reply, by the source of which most is expected. `accepted` counts each one's right tokens.

    What the last pass chose further on (Jacobi decoding) is always one of them.
    """

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self.accepted = dict.fromkeys((OWN, *sources), 0)
        self._sources = sources
        self._expected = dict(EXPECTED)
        self._used: Kind = OWN, 0, True

    def draft(self, text: Sequence[int], tail: Sequence[int], size: int, *, own: bool = False) -> Sequence[int]:
        """At most `size` tokens that may follow `text`; `own`: only what the last pass chose there, the `tail`."""
        best, self._used = tail[:size], (OWN, 0, True)
        for name, source in () if own else self._sources.items():
            guess = source(text, size)
            if guess is not None:
                kind = name, guess[1], bool(tail) and guess[0][0] == tail[0]
                if self._expected[kind] > self._expected[self._used]:
                    best, self._used = guess[0], kind
        return best

    def judge(self, right: int) -> None:
        """So many tokens of the last draft were right."""
        self.accepted[self._used[0]] += right
        self._expected[self._used] = (1 - LEARNS) * self._expected[self._used] + LEARNS * right


def drafts_for(turn: Turn, row: int) -> Drafts:
    """What drafts the reply to a prompt of the turn."""
    sources: dict[str, Source] = {LOOK_UP: LookUp()}
    earlier = turn.earlier[row] if turn.earlier else ()
    if earlier:
        sources[EARLIER] = EarlierReply(earlier, len(turn.prompts[row]))
    return Drafts(sources)
