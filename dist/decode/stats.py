"""Times and counts of one reply while it is made. Knows no model and no rank."""

from __future__ import annotations

import time

from dist.decode.rule import Refinement
from dist.protocol import BlockUpdate, Reply, ReplyStats


class Clock:
    """Times and counts of one reply."""

    def __init__(self) -> None:
        self.prefill_forwards = 0
        self._ordered = time.monotonic()
        self._forwards = 0
        self._iterations: list[int] = []
        self._converged: list[bool] = []
        self._accepted: list[int] = []
        self._started: float | None = None
        self._first_tokens: float | None = None
        self._last = self._ordered

    def pass_begins(self) -> None:
        if self._started is None:
            self._started = time.monotonic()

    def pass_ended(self, update: BlockUpdate) -> None:
        self._forwards += 1
        self._last = time.monotonic()
        if update.settled and self._first_tokens is None:
            self._first_tokens = self._last
        if update.index is None:
            self._accepted.append(update.settled)
        elif update.settled:
            self._iterations.append(update.iteration)
            self._converged.append(update.exact == update.settled)

    def reply(self, row: int, refinement: Refinement) -> Reply:
        assert refinement.finish is not None
        stats = ReplyStats(
            forwards=self._forwards,
            prefill_forwards=self.prefill_forwards,
            iterations=tuple(self._iterations),
            converged=tuple(self._converged),
            accepted=tuple(self._accepted),
            drafts=refinement.drafts.accepted,
            ttft_s=(self._first_tokens or self._last) - self._ordered,
            decode_s=self._last - (self._started or self._last),
            tokens=len(refinement.token_ids) - len(refinement.begun),
        )
        return Reply(
            row=row,
            prompt_len=len(refinement.prompt),
            token_ids=refinement.token_ids,
            finish=refinement.finish,
            settings=refinement.settings,
            stats=stats,
        )
