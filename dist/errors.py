"""Errors for the user to read. Knows no terminal and no rank.

ChatError                 1  anything below
├── UsageError            2  an option, a setting or a command that cannot be
├── CheckpointError       3  a checkpoint folder that cannot be used
│   ├── StepIncomplete    3  the step that a run stands for lacks a part; an older one is complete
│   └── WeightsLost       3  neither the new weights nor the old ones could be read: nothing answers any more
├── PromptError           4  a prompt that cannot be answered (too long, empty)
└── RankError             5  a rank died or failed in the middle of work
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def either(words: Iterable[object]) -> str:
    """What may be given, in words: `a, b or c`."""
    *most, last = map(str, words)
    return f"{', '.join(most)} or {last}" if most else last


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """The known word that `word` is likely to be a slip of, as a question; `otherwise` if there is none."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean {near[0]}?" if near else otherwise


class ChatError(Exception):
    """What happened, why (with the numbers) and what to do: one short block of text.

    `exit_code` is what the program ends with if nothing catches the error.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", hint: str = "") -> None:
        super().__init__(what, why, hint)
        self.what = what
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, self.why, self.hint) if part)


class UsageError(ChatError):
    """An option, a setting, an argument or a command that cannot be."""

    exit_code = 2


class CheckpointError(ChatError):
    """A checkpoint folder or file that cannot be used."""

    exit_code = 3


class StepIncomplete(CheckpointError):
    """The step that a run stands for lacks a part; `complete` is the folder of the newest step that lacks none."""

    def __init__(self, what: str, why: str, hint: str, complete: str) -> None:
        super().__init__(what, why, hint)
        self.complete = complete


class WeightsLost(CheckpointError):
    """Reading new weights failed half-way, and so did reading the old ones again. Ends the program."""


class PromptError(ChatError):
    """A prompt that cannot be answered."""

    exit_code = 4


class RankError(ChatError):
    """A rank died, or failed in the middle of work that all ranks share."""

    exit_code = 5
