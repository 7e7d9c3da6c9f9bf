"""What a window is filled with: guesses at the tokens that follow, which cost nothing if they are wrong.

Pure functions of the tokens so far, so that every rank drafts alike. Knows no model and no rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dist.protocol import Turn


class Drafts(Protocol):
    """Drafts for one reply."""

    def draft(self, text: Sequence[int], tail: Sequence[int], size: int) -> Sequence[int]:
        """At most `size` tokens that may follow `text`; `tail` is what the last pass chose there."""
        ...

    def judge(self, accepted: int) -> None:
        """So many tokens of the last draft were right."""


class OwnTail:
    """The choices that the last pass made further on."""

    def draft(self, text: Sequence[int], tail: Sequence[int], size: int) -> Sequence[int]:
        return tail[:size]

    def judge(self, accepted: int) -> None:
        pass


def drafts_for(turn: Turn, row: int) -> Drafts:
    """What drafts the reply to a prompt of the turn."""
    return OwnTail()
