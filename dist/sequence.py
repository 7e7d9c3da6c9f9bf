"""How one sequence is decoded with kept keys and values: by captured CUDA graphs, or as it comes.

All ranks make and drop the storage at the same points. Knows no turn and no text.
"""

from __future__ import annotations

from typing import Any

import torch

from dist.captured import CapturedForward
from dist.errors import CheckpointError, PromptError
from dist.footprint import storage_bytes
from dist.forward import CachedForward
from dist.head import Head
from dist.memory import free_bytes
from dist.model_fill import together
from dist.protocol import Group
from dist.settings import GenerationSettings

# For a pass's own tensors, beside the storage.
HEADROOM_BYTES = 512 << 20
ROUND_TOKENS = 256


class SequenceForward:
    """The forward of one sequence. `notice` says in words why a GPU's passes are not captured, or is None."""

    def __init__(
        self, module: Any, head: Head, group: Group, max_positions: int | None, *, captured: bool = True
    ) -> None:
        self.notice: str | None = None
        self._wants_capture = captured and group.device.type == "cuda"
        self._module = module
        self._head = head
        self._group = group
        self._max_positions = max_positions
        self._present: CachedForward | CapturedForward = CachedForward(module, head)

    @property
    def token_ids(self) -> list[int]:
        """The tokens whose keys and values are kept."""
        return self._present.cache.token_ids

    def forget(self) -> None:
        """Keep nothing."""
        self._present.cache.truncate(0)

    def for_turn(self, settings: GenerationSettings) -> CachedForward | CapturedForward:
        """All ranks: the forward for a turn with these settings.

        Raises PromptError, on all ranks, if a GPU has no room for the keys and values of `max_length` tokens;
        CheckpointError if memory runs out while passes are captured.
        """
        if not self._wants_capture or self.notice is not None:
            return self._present
        length = min(settings.max_length, self._max_positions or settings.max_length)
        capacity = length + 2 * settings.add_eos_length + 2
        present = self._present
        if isinstance(present, CapturedForward) and present.cache.capacity >= capacity:
            return present
        # Let go of the old storage before there is new.
        self._present = CachedForward(self._module, self._head)
        self._present = self._captured(-(-capacity // ROUND_TOKENS) * ROUND_TOKENS)
        return self._present

    def _captured(self, capacity: int) -> CachedForward | CapturedForward:
        element_size = next(self._module.parameters()).element_size()
        need = storage_bytes(self._module.config, element_size, capacity)
        free = self._group.smallest(free_bytes(self._group.device)) - HEADROOM_BYTES
        if need > free:
            raise PromptError(
                f"The GPU has no room for the keys and values of {capacity} tokens.",
                f"They take {_gib(need)} GiB, and {_gib(max(free, 0))} GiB are free.",
                f"Lower max_length to {max(free, 0) * capacity // need // ROUND_TOKENS * ROUND_TOKENS} or less.",
            )
        forward = CapturedForward(self._module, self._head, capacity, capture=True)
        problem: str | None = together(self._group, lambda: _problem(forward))
        problems = self._group.gather_errors(problem)
        if problems:
            self.notice = f"Passes are not captured as CUDA graphs, which costs time: {problems[min(problems)]}."
            return CachedForward(self._module, self._head)
        return forward


def _problem(forward: CapturedForward) -> str | None:
    try:
        return forward.problem()
    except torch.OutOfMemoryError as error:
        raise CheckpointError(
            "Out of GPU memory while the passes were captured.",
            str(error).splitlines()[0],
            "Lower max_length or add_eos_length, or use more GPUs.",
        ) from error


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f}"
