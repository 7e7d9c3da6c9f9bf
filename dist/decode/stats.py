"""Times and counts of one reply while it is made. Knows no model and no rank."""

from __future__ import annotations

import time

from dist.decode.rule import Refinement
from dist.protocol import Reply, ReplyStats


class Clock:
    """Times and counts of one reply."""

    def __init__(self) -> None:
        self.prefill_forwards = 0
        self._ordered = time.monotonic()
        self._forwards = 0
        self._started: float | None = None
        self._first_tokens: float | None = None
        self._last = self._ordered

    def pass_begins(self) -> None:
        if self._started is None:
            self._started = time.monotonic()

    def pass_ended(self, settled: int) -> None:
        self._forwards += 1
        self._last = time.monotonic()
        if settled and self._first_tokens is None:
            self._first_tokens = self._last

    def reply(self, row: int, refinement: Refinement) -> Reply:
        assert refinement.finish is not None
        stats = ReplyStats(
            forwards=self._forwards,
            prefill_forwards=self.prefill_forwards,
            iterations=tuple(refinement.iterations),
            converged=tuple(refinement.converged),
            accepted=tuple(refinement.accepted),
            drafts=refinement.drafts.accepted,
            ttft_s=(self._first_tokens or self._last) - self._ordered,
            decode_s=self._last - (self._started or self._last),
            tokens=len(refinement.token_ids) - refinement.begun_len,
        )
        return Reply(
            row=row,
            prompt_len=refinement.prompt_len,
            token_ids=refinement.token_ids,
            finish=refinement.finish,
            settings=refinement.settings,
            stats=stats,
        )
