"""The passes of a reply at a few fixed widths, each captured once as a CUDA graph and replayed. Knows no rule.

Launching a model's kernels one by one takes a host several times as long as a GPU needs to run them; a replay is
one launch. `pass_sizes` serve all passes: one for a window, two for blocks. Fewer tokens are filled up
with junk *behind* them, which causality hides and which is overwritten before it is read. Passes over several
sequences are captured for 1, 2, 4, 8... of them. What is longer (prefill) runs uncaptured over the same storage.

Shape suffixes: K logits kept, V vocabulary.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dist.decode.forward import FORWARD_ERRORS, Choices, choices_at, choices_of
from dist.decode.packed_batch import Order, Piece, order_of
from dist.decode.passes import Pass, pass_sizes
from dist.decode.varlen import PROBE_TOKENS, VarlenForward, other_attention
from dist.kernels.limits import kernel_errors
from dist.model.head import Head

WARM_UPS = 2
# Of more tokens than this, a pass is bound by its arithmetic, and its graph would hold much memory. The blocks of a
# batch have half as many (dist/decode/batch_size.py), so that its wider passes are captured too.
MOST_TOKENS = 4096

# To capture takes as long as so many passes with twice the rows that are needed cost more.
PATIENCE = 16

Run = Callable[[torch.Tensor], torch.Tensor]


class CapturedForward(VarlenForward):
    """`capture` False runs the same passes uncaptured, which is what a CPU can do."""

    def __init__(self, module: Any, head: Head, rows: int, capacity: int, *, capture: bool) -> None:
        super().__init__(module, head, rows, capacity)
        # One pool for all widths: what a replay leaves is read before the next one.
        self._pool = torch.cuda.graph_pool_handle() if capture else None
        self.widths: dict[tuple[int, int, int], FixedWidth] = {}
        # How often a pass that was not captured would have been better than a wider one.
        self._missed: Counter[tuple[int, int, int]] = Counter()

    def close(self) -> None:
        """Destroy the graphs: NCCL does not let go of a group whose collectives a living graph has captured."""
        for passed in self.widths.values():
            passed.close()
        self.widths.clear()

    def _most_unread(self, step: Pass) -> int:
        """What the widest of the captured passes takes; a window's takes no more than its places."""
        return max(width for width, _ in pass_sizes(step.settings))

    def _feed(self, pieces: Sequence[Piece]) -> torch.Tensor:
        """A few tokens, as a short message has before its first pass, by a width that is captured already."""
        longest, room = max(len(one.token_ids) for one in pieces), self.capacity - max(one.start for one in pieces)
        fits = [size for size in self.widths if size[0] == len(pieces) and longest <= size[1] <= room]
        if not fits or any(one.kept > 1 for one in pieces):
            return super()._feed(pieces)
        passed, places = self.run(*min(fits), pieces)
        self._note(pieces)
        return torch.cat([passed.logits[place] for place in places])

    def _choices(self, pieces: Sequence[Piece], steps: Sequence[Pass], trace: bool) -> list[Choices]:
        size = self._size(pieces, steps)
        count = self._count(len(pieces), size) if size is not None else 0
        if size is None or count * size[0] > MOST_TOKENS:
            # Only what a turn's start leaves unread, at the very end of the storage, or in long blocks.
            return super()._choices(pieces, steps, trace)
        passed, places = self.run(count, *size, pieces)
        self._note(pieces)
        if any(step.settings.samples for step in steps):
            return choices_of([passed.logits[place] for place in places], steps, trace, self._head)
        return choices_at(places, passed.chosen(), passed.logits, steps, trace, self._head)

    def _count(self, pieces: int, size: tuple[int, int]) -> int:
        """How many pieces a pass of that size is to be of, some of them read twice.

        A batch has fewer and fewer rows towards its end; a smaller pass is captured once that pays.
        """
        best = min(1 << (pieces - 1).bit_length(), self.rows)
        wider = [count for count, *other in self.widths if tuple(other) == size and count > best]
        key = (best, *size)
        if key in self.widths or not wider:
            return best
        self._missed[key] += 1
        return best if self._missed[key] > PATIENCE else min(wider)

    def _size(self, pieces: Sequence[Piece], steps: Sequence[Pass]) -> tuple[int, int] | None:
        """The smallest of the passes' sizes that all pieces can be padded to, if there is one."""
        longest, most = max(len(piece.token_ids) for piece in pieces), max(piece.kept for piece in pieces)
        room = self.capacity - max(piece.start for piece in pieces)
        sizes = sorted({size for step in steps for size in pass_sizes(step.settings)})
        return next(((width, kept) for width, kept in sizes if longest <= width <= room and most <= kept), None)

    def _probe(self, pieces: Sequence[Piece]) -> torch.Tensor:
        # The captured width stays: a pool whose last graph has gone can't be captured into again.
        passed, places = self.run(len(pieces), PROBE_TOKENS, pieces[0].kept, pieces)
        return torch.cat([passed.logits[place] for place in places])

    def run(self, count: int, width: int, kept: int, pieces: Sequence[Piece]) -> tuple[FixedWidth, list[slice]]:
        """The pass over the pieces, and where each one's own logits are among those of all.

        The last piece is read several times where there are fewer than `count`.
        """
        whole = [_padded(piece, width, kept) for piece in pieces]
        whole += [whole[-1]] * (count - len(whole))
        order = order_of(whole, self.capacity, self._limit)
        if (count, width, kept) not in self.widths:
            forward = functools.partial(
                self._forward, tokens=count * width, pieces=count, kept=count * kept, longest=width
            )
            passed = FixedWidth(forward, self._head, len(order), count * kept, self._device)
            self.widths[count, width, kept] = passed
        passed = self.widths[count, width, kept]
        passed.run(order, self._pool)
        places = []
        for index, piece in enumerate(pieces):
            begin = index * kept + piece.first - whole[index].first
            places.append(slice(begin, begin + piece.kept))
        return passed, places


def _padded(piece: Piece, width: int, kept: int) -> Piece:
    filling = [piece.token_ids[-1]] * (width - len(piece.token_ids))
    return Piece(piece.row, piece.start, piece.token_ids + filling, min(piece.first, width - kept), kept)


def capture_problem(
    module: Any, head: Head, rows: int, capacity: int, *, capture: bool = True
) -> tuple[CapturedForward | None, str | None]:
    """A CapturedForward that has been tried, or why there can be none, in words. Raises OutOfMemoryError."""
    other = other_attention(module)
    if other is not None:
        return None, f"its attention is of another kind ({other})"
    refusals: tuple[type[Exception], ...] = (*FORWARD_ERRORS, *kernel_errors())
    try:
        forward = CapturedForward(module, head, rows, capacity, capture=capture)
        if forward.agrees():
            return forward, None
    except torch.OutOfMemoryError:
        raise
    except refusals as error:
        return None, f"{type(error).__name__}: {(str(error) or 'no words').splitlines()[0].rstrip('.')}"
    return None, "its logits change with a static KV cache"


class FixedWidth:
    """Forwards of one size, given by `size` numbers, captured or not; `kept` rows of logits.

    `logits` [K, V] (this rank's part) are those of the last `run`.
    """

    logits: torch.Tensor

    def __init__(self, forward: Run, head: Head, size: int, kept: int, device: torch.device) -> None:
        self._forward = forward
        self._head = head
        self._graph: torch.cuda.CUDAGraph | None = None
        self._on_gpu = device.type == "cuda"
        self._order = torch.zeros(size, dtype=torch.int64, pin_memory=self._on_gpu)
        self._input = self._order.to(device)
        # Both copies, to the device and back, are part of the graph.
        self._result = torch.zeros(kept, dtype=torch.int64, pin_memory=self._on_gpu)

    @torch.inference_mode()
    def run(self, order: Order, pool: Any) -> None:
        """The forward pass that `order` describes; with a `pool` for its memory it is captured, the first time."""
        self._order.numpy()[:] = order
        if pool is not None and self._graph is None:
            self._capture(pool)
        self.replay()

    @torch.inference_mode()
    def replay(self) -> None:
        """The last forward once more."""
        if self._graph is not None:
            self._graph.replay()
        else:
            self._body()

    def chosen(self) -> list[int]:
        """The tokens chosen by the last run, greedily; waits for the device."""
        if self._on_gpu:
            torch.cuda.current_stream().synchronize()
        tokens: list[int] = self._result.tolist()
        return tokens

    def _capture(self, pool: Any) -> None:
        stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        # Once outside: kernels are compiled and libraries make their workspaces in their first call.
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._body()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads (NCCL's watchdog) may ask the device meanwhile.
        # The outer stream is set again even if the capture fails, which torch forgets.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
        ):
            self._body()
        self._graph = graph

    def close(self) -> None:
        """Destroy the graph."""
        if self._graph is not None:
            self._graph.reset()
            self._graph = None

    def _body(self) -> None:
        self._input.copy_(self._order, non_blocking=True)
        self.logits = self._forward(self._input)
        self._result.copy_(self._head.greedy(self.logits), non_blocking=True)
