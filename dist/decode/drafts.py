"""What fills a window: guesses at the tokens that follow, which cost nothing where they are wrong.

Each source is a pure function of the tokens so far, so that every rank drafts alike without a word between them.
To add one: a class with `propose` and `judge`, and a row in `drafts_for`. Knows no model and no rule.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Protocol

from dist.protocol import Turn

# How fast a source's record forgets, and what it begins with: tokens of a draft that turn out right.
LEARNS = 0.3
OWN_BEGINS = 1.5
LOOK_UP_BEGINS = {2: 1.0, 3: 2.0, 4: 3.0}
LONGEST, SHORTEST = 6, 2
OWN = "own"

# Tokens, and how many of them are expected to be right.
Proposal = tuple[Sequence[int], float]


class Source(Protocol):
    """One way of guessing."""

    def propose(self, text: Sequence[int], tail: Sequence[int], size: int) -> Proposal | None:
        """At most `size` tokens that may follow `text`, if there is a guess.

        `text` only grows from call to call; `tail` is what the last pass chose behind it.
        """
        ...

    def judge(self, accepted: int) -> None:
        """So many tokens of the last proposal, which was taken, were right."""


class OwnTail:
    """The choices that the last pass made further on (Jacobi decoding)."""

    def __init__(self) -> None:
        self._record = OWN_BEGINS

    def propose(self, text: Sequence[int], tail: Sequence[int], size: int) -> Proposal | None:
        return tail[:size], self._record

    def judge(self, accepted: int) -> None:
        self._record += LEARNS * (accepted - self._record)


class LookUp:
    """What followed the text's last tokens when they last stood in the conversation (prompt look-up decoding)."""

    def __init__(self) -> None:
        self._records = dict(LOOK_UP_BEGINS)
        # Where n tokens in a row, behind which something stands, last ended.
        self._ends: dict[tuple[int, ...], int] = {}
        self._indexed = SHORTEST
        self._class = SHORTEST

    def propose(self, text: Sequence[int], tail: Sequence[int], size: int) -> Proposal | None:
        for end in range(self._indexed, len(text)):
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self._ends[tuple(text[end - length : end])] = end
        self._indexed = max(self._indexed, len(text))
        for length in range(LONGEST, SHORTEST - 1, -1):
            found = self._ends.get(tuple(text[-length:]))
            if found is not None:
                self._class = min(length, max(self._records))
                # What comes round again goes on coming round.
                period = len(text) - found
                return [text[found + at % period] for at in range(size)], self._records[self._class]
        return None

    def judge(self, accepted: int) -> None:
        self._records[self._class] += LEARNS * (accepted - self._records[self._class])


class EarlierReply:
    """An earlier reply, followed by index; after a difference, from the nearest place behind the same two tokens.

    It goes before all others as long as it is followed.
    """

    def __init__(self, reply: Sequence[int], prompt_len: int) -> None:
        self._reply = list(reply)
        self._seen = prompt_len
        self._at: int | None = 0
        self._behind: dict[tuple[int, int], list[int]] = {}
        self._from = 0
        for place in range(2, len(reply) + 1):
            self._behind.setdefault((reply[place - 2], reply[place - 1]), []).append(place)

    def propose(self, text: Sequence[int], tail: Sequence[int], size: int) -> Proposal | None:
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
        return self._reply[self._at : self._at + size], float("inf")

    def judge(self, accepted: int) -> None:
        pass


class Drafts:
    """Drafts for one reply, by the source of which most is expected. `accepted` counts each one's right tokens."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self.accepted = dict.fromkeys((OWN, *sources), 0)
        self._sources: dict[str, Source] = {OWN: OwnTail(), **sources}
        self._used = OWN

    def draft(self, text: Sequence[int], tail: Sequence[int], size: int, *, own: bool = False) -> Sequence[int]:
        """At most `size` tokens that may follow `text`; `own`: only what the last pass chose there."""
        best: Proposal = (), -1.0
        for name, source in self._sources.items():
            proposal = None if own and name != OWN else source.propose(text, tail, size)
            if proposal is not None and proposal[1] > best[1]:
                best, self._used = proposal, name
        return best[0]

    def judge(self, accepted: int) -> None:
        """So many tokens of the last draft were right."""
        self.accepted[self._used] += accepted
        self._sources[self._used].judge(accepted)


def drafts_for(turn: Turn, row: int) -> Drafts:
    """What drafts the reply to a prompt of the turn."""
    sources: dict[str, Source] = {"lookup": LookUp()}
    earlier = turn.earlier[row] if turn.earlier else ()
    if earlier:
        sources["earlier"] = EarlierReply(earlier, len(turn.prompts[row]))
    return Drafts(sources)
