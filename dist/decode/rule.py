"""Block refinement of one reply, as a small state machine. Knows no model, tensor, rank, clock or screen.

The rule: a block of B = N + 1 tokens starts as N placeholders; R times over, the model reads the prefix and the
first N tokens of the draft, and its B choices are the new draft. Then the block joins the prefix.

With causal attention this is Jacobi iteration, and three facts follow that save passes:
- If a pass chose the first m drafted tokens as they stood in its input, its first m + 1 choices are final.
- m = N: the whole block is final, further passes would change nothing.
- A stop token among the final choices ends the reply, whatever comes after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dist.protocol import BlockUpdate, FinishReason
from dist.settings import GenerationSettings

Candidates = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One forward to make: read all of `token_ids`, choose a token after each of the last `wanted`."""

    token_ids: list[int]
    wanted: int
    settings: GenerationSettings

    @property
    def positions(self) -> range:
        """Logical positions of the tokens to choose."""
        return range(len(self.token_ids) - self.wanted + 1, len(self.token_ids) + 1)


class Refinement:
    """One reply in the making. Ask `next_pass`, feed the model, hand its choices to `accept`; until `finish`.

    `limit` is the most tokens that prompt and reply may have together (the model's own limit).
    `causal` False drops all that follows from causality: every choice is made anew in every pass, only an
    unchanged whole block ends early, and blocks are refined whole and cut afterwards.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        settings: GenerationSettings,
        *,
        placeholder: int,
        stop_ids: Sequence[int],
        limit: int,
        causal: bool = True,
        row: int = 0,
    ) -> None:
        if not prompt or len(prompt) >= min(settings.max_length, limit):
            raise ValueError(f"no room for a reply: prompt {len(prompt)}, limit {limit}")
        self.prompt_len = len(prompt)
        self.settings = settings
        self.finish: FinishReason | None = None
        self.iterations: list[int] = []
        self.converged: list[bool] = []
        self._prefix = list(prompt)
        self._placeholder = placeholder
        self._stop_ids = frozenset(stop_ids)
        self._limit = limit
        self._causal = causal
        self._row = row
        self._draft: list[int] = []
        self._candidates: list[Candidates] = []
        self._exact = 0
        self._iteration = 0
        self._open_block()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The reply's tokens in finished blocks."""
        return tuple(self._prefix[self.prompt_len :])

    def next_pass(self) -> Pass:
        """The forward that makes the next iteration of the present block."""
        token_ids = self._prefix + self._draft[:-1]
        return Pass(token_ids=token_ids, wanted=len(self._draft) - self._exact, settings=self.settings)

    def accept(
        self,
        choices: Sequence[int],
        next_settings: GenerationSettings,
        candidates: Sequence[Candidates] | None = None,
    ) -> BlockUpdate:
        """Take the model's choices for `next_pass`; at a block's end `next_settings` come into force.

        `candidates`, one entry per choice, are only passed through to the update.
        """
        before, known = self._draft, self._exact
        draft = before[:known] + list(choices)
        # The last position holds no input of the pass, so it can't confirm anything.
        matched = next((i for i, (a, b) in enumerate(zip(before[:-1], draft)) if a != b), len(draft) - 1)
        whole = matched == len(draft) - 1
        self._iteration += 1
        self._draft = draft
        if self._causal:
            self._exact = matched + 1
        if candidates is not None:
            self._candidates = self._candidates[:known] + list(candidates)

        stop = next((i for i, token in enumerate(draft) if token in self._stop_ids), None)
        stopped = self._causal and stop is not None and stop < self._exact
        done = whole or stopped or self._iteration >= self._allowed_iterations()
        kept = draft[: self._lasting(stop)] if done else draft
        index, iteration, exact = len(self.iterations), self._iteration, self._exact
        shown = tuple(self._candidates[: len(kept)]) if candidates is not None else None
        if done:
            self._close_block(kept, whole or stopped, next_settings)
        return BlockUpdate(
            row=self._row,
            index=index,
            iteration=iteration,
            token_ids=tuple(kept),
            changed=tuple(iteration == 1 or a != b for a, b in zip(before, kept)),
            exact=len(kept) if done else exact,
            done=done,
            finish=self.finish,
            candidates=shown,
        )

    def cancel(self) -> None:
        """End the reply with the blocks that are finished."""
        if self.finish is None:
            self.finish = "cancelled"

    def _room(self) -> int:
        """How many more tokens the reply may have."""
        of_reply = self.settings.max_new_tokens - (len(self._prefix) - self.prompt_len)
        return min(of_reply, min(self.settings.max_length, self._limit) - len(self._prefix))

    def _open_block(self) -> None:
        room = self._room()
        if room <= 0:
            self.finish = "length"
            return
        size = self.settings.add_eos_length + 1
        # A cut block equals the first tokens of the whole one only where attention is causal.
        size = min(size, room if self._causal else self._limit - len(self._prefix))
        # One more place than the model reads: the draft's last token is only ever an output.
        self._draft = [self._placeholder] * size
        self._candidates = []
        self._exact = 0
        self._iteration = 0

    def _allowed_iterations(self) -> int:
        rounds = self.settings.refine_iter
        return len(self._draft) if rounds == "auto" else rounds

    def _lasting(self, stop: int | None) -> int:
        """How many tokens of a finished draft belong to the reply."""
        return min(len(self._draft) if stop is None else stop + 1, self._room())

    def _close_block(self, kept: list[int], converged: bool, next_settings: GenerationSettings) -> None:
        self._prefix += kept
        self.iterations.append(self._iteration)
        self.converged.append(converged)
        if kept[-1] in self._stop_ids:
            self.finish = "stop"
        elif self._room() <= 0:
            self.finish = "length"
        else:
            self.settings = next_settings
            self._open_block()
