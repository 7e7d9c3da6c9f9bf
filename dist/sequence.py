"""How one sequence is decoded with kept keys and values: by captured CUDA graphs, or as it comes.

All ranks make and drop the storage at the same points. Knows no turn and no text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dist.captured import CapturedForward, capture_problem
from dist.footprint import storage_bytes
from dist.forward import CachedForward
from dist.head import Head
from dist.memory import free_bytes, gib, shortage_told
from dist.protocol import Group
from dist.settings import GenerationSettings

# For a pass's own tensors, beside the storage.
HEADROOM_BYTES = 512 << 20
ROUND_TOKENS = 256
NOT_CAPTURED = "Passes are not captured as CUDA graphs, which costs time"


class SequenceForward:
    """The forward of one sequence. `notice` says in words why a GPU's passes are not captured, or is None.

    `captures` says whether they are to be, where that works.
    """

    def __init__(
        self, module: Any, head: Head, group: Group, max_positions: int | None, *, captured: bool = True
    ) -> None:
        self.notice: str | None = None
        self.captures = captured and group.device.type == "cuda"
        self._module = module
        self._head = head
        self._group = group
        self._max_positions = max_positions
        self._present: CachedForward | CapturedForward = CachedForward(module, head)
        # A capacity for which there was no room.
        self._too_much: int | None = None

    @property
    def token_ids(self) -> list[int]:
        """The tokens whose keys and values are kept."""
        return self._present.cache.token_ids

    def forget(self) -> None:
        """Drop all keys and values: the weights that made them are gone."""
        self._present.cache.truncate(0)

    def for_turn(self, wishes: Iterable[GenerationSettings]) -> CachedForward | CapturedForward:
        """All ranks: the forward for prompts under these settings, one after the other.

        Where a GPU has no room for fixed storage of `max_length` tokens, or the model cannot be captured, passes
        run as they come and `notice` says why. Raises CheckpointError if a single process's memory runs out
        meanwhile; of several ranks, the one whose memory runs out ends, and with it the run.
        """
        if not self.captures:
            return self._present
        capacity = max(
            min(wish.max_length, self._max_positions or wish.max_length) + 2 * wish.add_eos_length + 2
            for wish in wishes
        )
        capacity = -(-capacity // ROUND_TOKENS) * ROUND_TOKENS
        kept = isinstance(self._present, CapturedForward) and self._present.cache.capacity >= capacity
        if not kept and (self._too_much is None or capacity < self._too_much):
            # The old storage goes before there is new.
            self._present = CachedForward(self._module, self._head)
            self._present = self._captured(capacity) or self._present
        return self._present

    def _captured(self, capacity: int) -> CapturedForward | None:
        need = storage_bytes(self._module, capacity)
        free = self._group.smallest(free_bytes(self._group.device)) - HEADROOM_BYTES
        if need > free:
            self._too_much = capacity
            self.notice = (
                f"{NOT_CAPTURED}: keys and values of {capacity} tokens take {gib(need)}, "
                f"and {gib(max(free, 0))} are free for them. A lower max_length needs less."
            )
            return None
        with shortage_told(self._group, "passes were captured", "Lower max_length, or use more GPUs."):
            forward, problem = capture_problem(self._module, self._head, capacity)
        problems = self._group.gather_errors(problem)
        if problems or forward is None:
            self.captures = False
            self.notice = f"{NOT_CAPTURED}: {problems[min(problems)]}."
            return None
        self.notice, self._too_much = None, None
        return forward
