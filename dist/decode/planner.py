"""How sequences are decoded over a KV cache: by captured CUDA graphs, or eagerly.

What a turn needs (dist/decode/batch_size.py), then what memory grants of it, then what is built. All ranks make and
drop the storage at the same points. Knows no text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dist.decode.batch_size import Storage, batch_storage, conversation_storage, storage_bytes
from dist.decode.cuda_graphs import CapturedForward, capture_problem
from dist.decode.forward import FORWARD_ERRORS, CachedForward, Forward
from dist.decode.varlen import VarlenForward, other_attention
from dist.errors import PromptError
from dist.model.fused_modules import is_exact
from dist.model.head import Head
from dist.model.memory import free_bytes, gib, report_oom
from dist.protocol import Group, Turn

# For a pass's own tensors, beside the storage.
HEADROOM_BYTES = 512 << 20
NOT_CAPTURED = "Passes are not captured as CUDA graphs, which is slower"
LOWER = "Lower max_length or --batch_size, or use more GPUs."
ONE_BY_ONE = "Several prompts are answered one by one, which is slower: this model cannot be batched."


class SequenceForward:
    """The forwards of turns: of one prompt, whose KV cache stays for the next one, and of several together.

    `notice` says in words why a GPU's passes are not captured, or is None; `captures` says whether they are to be,
    where that works. `alone` and `batch` are the forwards in use. `uncaptured` makes those of batches where nothing
    is captured, from module, head, rows and capacity.
    """

    def __init__(
        self,
        module: Any,
        head: Head,
        group: Group,
        max_positions: int | None,
        *,
        captured: bool = True,
        uncaptured: Callable[[Any, Head, int, int], VarlenForward] = VarlenForward,
    ) -> None:
        self.notice: str | None = None
        self.captures = captured and group.device.type == "cuda"
        self._module = module
        self._head = head
        self._group = group
        self._max_positions = max_positions
        self._new_uncaptured = uncaptured
        self.alone: CachedForward | CapturedForward = CachedForward(module, head)
        self.batch: VarlenForward | None = None
        self._batches_work = True
        # What was needed of batches, of which memory may have granted fewer rows; what there was no room for.
        self._asked: Storage | None = None
        self._refused: Storage | None = None

    @property
    def token_ids(self) -> list[int]:
        """The conversation's tokens in the KV cache."""
        return self.alone.cache.token_ids

    def forget(self) -> None:
        """Empty the KV caches: the weights that filled them are gone."""
        self._batches_work = True
        self.alone.cache.truncate(0)
        if self.batch is not None:
            self.batch.cache.truncate(0)

    def close(self) -> None:
        """Destroy every captured graph."""
        for forward in (self.alone, self.batch):
            if isinstance(forward, CapturedForward):
                forward.close()

    @property
    def batch_bytes(self) -> int:
        """What this rank holds for batches, and gives up for a larger one."""
        if self.batch is None:
            return 0
        return storage_bytes(self._module, self.batch.rows * self.batch.capacity)

    def for_turn(self, turn: Turn) -> Forward:
        """All ranks: the forward for the turn's prompts, all together where the model allows it.

        Where a GPU has no room for a static KV cache, or the model cannot be captured, passes run eagerly and
        `notice` says why. Raises CheckpointError if a single process's memory runs out meanwhile; of several
        ranks, the one whose memory runs out ends, and with it the run. Raises PromptError, on all ranks, if a
        model that is to be exact would have to run eagerly.
        """
        return (self._for_batch(turn) if len(turn.prompts) > 1 and turn.together != 1 else None) or self._for_one(
            turn
        )

    def _for_one(self, turn: Turn) -> CachedForward | CapturedForward:
        """With room for all that a conversation may grow to."""
        need = conversation_storage(self._module, turn, self._max_positions)
        kept = isinstance(self.alone, CapturedForward) and self.alone.capacity >= need.capacity
        if self.captures and not kept and not (self._refused and need.holds(self._refused)):
            # The old storage goes before there is new; so does that of batches, if it takes the room.
            self.alone = CachedForward(self._module, self._head)
            if not need.within(self._free()).rows:
                self.batch = None
            free = self._free()
            if need.within(free).rows:
                self.alone = self._captured(1, need.capacity) or self.alone
            else:
                self._refused = need
                self.notice = (
                    f"{NOT_CAPTURED}: a KV cache of {need.capacity} tokens takes {gib(need.row_bytes)}, "
                    f"and {gib(free)} are free for it. A lower max_length needs less."
                )
        if is_exact(self._module) and not isinstance(self.alone, CapturedForward):
            raise PromptError("--exact is not possible here.", self.notice or NOT_CAPTURED, "Or leave --exact out.")
        return self.alone

    def _for_batch(self, turn: Turn) -> VarlenForward | None:
        """With room for these prompts and their replies, or for as many of them at once as memory holds."""
        need = batch_storage(self._module, turn, self._max_positions)
        if self.batch is None or not (self._asked and self._asked.holds(need)):
            self.batch, self._asked = None, need
            granted = need.within(self._free())
            if self.captures and granted.rows > 1:
                self.batch = self._captured(granted.rows, granted.capacity)
            if not self.captures and granted.rows > 1 and self._batches_work:
                self.batch = self._uncaptured(granted.rows, granted.capacity)
        return self.batch

    def _free(self) -> int:
        """Bytes for a KV cache, on each rank."""
        return max(0, self._group.smallest(free_bytes(self._group.device)) - HEADROOM_BYTES)

    def _captured(self, rows: int, capacity: int) -> CapturedForward | None:
        with report_oom(self._group, "passes were captured", LOWER):
            forward, problem = capture_problem(self._module, self._head, rows, capacity)
        problems = self._group.gather_errors(problem)
        if problems or forward is None:
            self.captures = False
            self.notice = f"{NOT_CAPTURED}: {problems[min(problems)]}."
            return None
        self.notice, self._refused = None, None
        return forward

    def _uncaptured(self, rows: int, capacity: int) -> VarlenForward | None:
        """None if the model gives rows other logits together than alone; `notice` says so."""
        forward = self._new_uncaptured(self._module, self._head, rows, capacity)
        try:
            with report_oom(self._group, "prompts were put together", LOWER):
                agrees = other_attention(self._module) is None and forward.agrees()
        except torch.OutOfMemoryError:
            raise
        except FORWARD_ERRORS:
            agrees = False
        self._batches_work = bool(self._group.smallest(agrees))
        if self._batches_work:
            return forward
        self.notice = ONE_BY_ONE
        return None
