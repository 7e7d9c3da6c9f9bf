"""What each of the workers of a run has done, for those who ask. Knows no engine and no prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from dist.counted import counted


class Shares:
    """Replies and tokens of each worker, by name, since the first prompt was sent."""

    def __init__(self, names: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._names = names
        self._clock = clock
        self._began: float | None = None
        self._replies = [0] * len(names)
        self._tokens = [0] * len(names)
        self._last = [0.0] * len(names)

    def begin(self) -> None:
        """The first prompts are about to be sent."""
        self._began = self._clock()

    @property
    def begun(self) -> bool:
        return self._began is not None

    def add(self, worker: int, tokens: int) -> None:
        """It has made a reply."""
        self._replies[worker] += 1
        self._tokens[worker] += tokens
        self._last[worker] = self._seconds

    @property
    def text(self) -> str:
        """Everybody's tokens a second so far, for a progress line."""
        rates = " ".join(f"{tokens / max(self._seconds, 1e-9):,.0f}" for tokens in self._tokens)
        return f"each copy {rates}" if len(self._names) > 1 else ""

    def lines(self) -> list[str]:
        """All that was done, in all and by each."""
        rows = [("all", sum(self._replies), sum(self._tokens), max(self._last))]
        if len(self._names) > 1:
            rows += zip(self._names, self._replies, self._tokens, self._last)
        return [
            f"{name}: {counted(replies, 'reply', 'replies')}, {counted(tokens, 'token')} in {seconds:.2f} s, "
            f"{tokens / max(seconds, 1e-9):,.0f} tokens/s"
            for name, replies, tokens, seconds in rows
        ]

    @property
    def _seconds(self) -> float:
        return 0.0 if self._began is None else self._clock() - self._began
