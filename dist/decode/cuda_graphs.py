"""The passes of a reply at a few fixed widths, each captured once as a CUDA graph and replayed. Knows no rule.

Launching a model's kernels one by one takes a host several times as long as a GPU needs to run them; a replay is
one launch. `pass_sizes` serve all passes: one for a window, two for blocks. Fewer tokens are filled up
with junk *behind* them, which causality hides and which is overwritten before it is read. Passes over several
sequences are captured for 1, 2, 4, 8... of them and, where these are many, for a few sums of their tokens. What is
longer (prefill) runs uncaptured over the same storage.

Shape suffixes: K logits kept, V vocabulary.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from dist.decode.forward import FORWARD_ERRORS, Choices, choices_at, choices_of
from dist.decode.packed_batch import Order, Segment, order_of
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

# Rows that begin a block read more than those within one. A pass of more tokens than so many need not be as wide
# for all of them as for the widest: it has one of so many sizes.
FEW_TOKENS, LEVELS = 256, 4

Run = Callable[[torch.Tensor], torch.Tensor]


class Shape(NamedTuple):
    """Of so many `segments` of at most `width` tokens, `tokens` in all, a pass keeps `kept` logits each."""

    segments: int
    width: int
    kept: int
    tokens: int


class CapturedForward(VarlenForward):
    """`capture` False runs the same passes uncaptured, which is what a CPU can do."""

    def __init__(self, module: Any, head: Head, rows: int, capacity: int, *, capture: bool) -> None:
        super().__init__(module, head, rows, capacity)
        # One pool for all widths: what a replay leaves is read before the next one.
        self._pool = torch.cuda.graph_pool_handle() if capture else None
        self.widths: dict[Shape, FixedWidth] = {}
        # How often a pass that was not captured would have been better than a larger one.
        self._missed: Counter[Shape] = Counter()

    def close(self) -> None:
        """Destroy the graphs: NCCL does not let go of a group whose collectives a living graph has captured."""
        for passed in self.widths.values():
            passed.close()
        self.widths.clear()

    def _most_unread(self, step: Pass) -> int:
        """What the widest of the captured passes takes; a window's takes no more than its places."""
        return max(width for width, _ in pass_sizes(step.settings))

    def _feed(self, segments: Sequence[Segment]) -> torch.Tensor:
        """A few tokens, as a short message has before its first pass, by a width that is captured already."""
        longest, room = (
            max(len(one.token_ids) for one in segments),
            self.capacity - max(one.start for one in segments),
        )
        fits = [
            shape
            for shape in self.widths
            if shape.segments == len(segments)
            and longest <= shape.width <= room
            and shape.tokens == shape.segments * shape.width
        ]
        if not fits or any(one.kept > 1 for one in segments):
            return super()._feed(segments)
        passed, places = self._run(min(fits), segments)
        self._note(segments)
        return torch.cat([passed.logits[place] for place in places])

    def _choices(self, segments: Sequence[Segment], steps: Sequence[Pass], trace: bool) -> list[Choices]:
        shape = self._shape(segments, steps)
        if shape is None or shape.tokens > MOST_TOKENS:
            # Only what a turn's start leaves unread, at the very end of the storage, or in long blocks.
            return super()._choices(segments, steps, trace)
        passed, places = self._run(shape, segments)
        self._note(segments)
        if any(step.settings.samples for step in steps):
            return choices_of([passed.logits[place] for place in places], steps, trace, self._head)
        return choices_at(places, passed.chosen(), passed.logits, steps, trace, self._head)

    def _shape(self, segments: Sequence[Segment], steps: Sequence[Pass]) -> Shape | None:
        """The smallest that the segments can be padded to, or a larger one that is captured already.

        A batch has fewer and fewer rows towards its end; smaller passes are captured once that pays. Where there
        are too few segments, the last is read several times. None if there is no such shape.
        """
        longest, most = (
            max(len(segment.token_ids) for segment in segments),
            max(segment.kept for segment in segments),
        )
        room = self.capacity - max(segment.start for segment in segments)
        sizes = sorted({size for step in steps for size in pass_sizes(step.settings)})
        size = next(((width, kept) for width, kept in sizes if longest <= width <= room and most <= kept), None)
        if size is None:
            return None
        lengths = [max(len(segment.token_ids), size[1]) for segment in segments]

        def needed(count: int) -> int:
            return sum(lengths) + (count - len(segments)) * lengths[-1]

        count = min(1 << (len(segments) - 1).bit_length(), self.rows)
        best = Shape(count, *size, _tokens(needed(count), count, size[0], sizes[0][0]))
        larger = [
            shape
            for shape in self.widths
            if shape[1:3] == size
            and shape.segments >= count
            and shape.tokens >= max(best.tokens, needed(shape.segments))
        ]
        if best in self.widths or not larger:
            return best
        self._missed[best] += 1
        return best if self._missed[best] > PATIENCE else min(larger, key=lambda shape: shape.tokens)

    def _probe(self, segments: Sequence[Segment]) -> torch.Tensor:
        # The captured width stays: a pool whose last graph has gone can't be captured into again.
        shape = Shape(len(segments), PROBE_TOKENS, segments[0].kept, len(segments) * PROBE_TOKENS)
        passed, places = self._run(shape, segments)
        return torch.cat([passed.logits[place] for place in places])

    def _run(self, shape: Shape, segments: Sequence[Segment]) -> tuple[FixedWidth, list[slice]]:
        """The pass over the segments, and where each one's own logits are among those of all."""
        whole = _padded([*segments, *[segments[-1]] * (shape.segments - len(segments))], shape)
        self.run(shape, whole)
        passed, kept = self.widths[shape], shape.kept
        places = []
        for index, segment in enumerate(segments):
            begin = index * kept + segment.first - whole[index].first
            places.append(slice(begin, begin + segment.kept))
        return passed, places

    def run(self, shape: Shape, segments: Sequence[Segment]) -> FixedWidth:
        """The pass over segments that have the shape; captured, the first time."""
        order = order_of(segments, self.capacity, self._limit)
        if shape not in self.widths:
            count, width, kept, tokens = shape
            forward = functools.partial(
                self._forward, tokens=tokens, segments=count, kept=count * kept, longest=width
            )
            self.widths[shape] = FixedWidth(forward, self._head, len(order), count * kept, self._device)
        self.widths[shape].run(order, self._pool)
        return self.widths[shape]


def _tokens(needed: int, count: int, width: int, narrow: int) -> int:
    """How many tokens a pass of `count` segments has that needs so many: `width` each, or a step to that."""
    if width == narrow or count * width <= FEW_TOKENS:
        return count * width
    step = -(-(width - narrow) // LEVELS)
    steps = max(0, -(-(-(-needed // count) - narrow) // step))
    return count * min(width, narrow + steps * step)


def _padded(segments: Sequence[Segment], shape: Shape) -> list[Segment]:
    """As many tokens in all as the shape has, with junk behind each segment that hides from it."""
    lengths = [max(len(segment.token_ids), shape.kept) for segment in segments]
    left = shape.tokens - sum(lengths)
    padded = []
    for segment, length in zip(segments, lengths):
        more = min(left, shape.width - length)
        left -= more
        filling = [segment.token_ids[-1]] * (length + more - len(segment.token_ids))
        first = min(segment.first, length + more - shape.kept)
        padded.append(Segment(segment.row, segment.start, segment.token_ids + filling, first, shape.kept))
    return padded


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
        # The device may still have to copy the last run's order, which then must not be written over.
        self._running = False

    @torch.inference_mode()
    def run(self, order: Order, pool: Any) -> None:
        """The forward pass that `order` describes; with a `pool` for its memory it is captured, the first time."""
        if self._running:
            self._wait()
        self._order.numpy()[:] = order
        if pool is not None and self._graph is None:
            self._capture(pool)
        self.replay()

    @torch.inference_mode()
    def replay(self) -> None:
        """The last forward once more."""
        self._running = True
        if self._graph is not None:
            self._graph.replay()
        else:
            self._body()

    def chosen(self) -> list[int]:
        """The tokens chosen by the last run, greedily; waits for the device."""
        self._wait()
        tokens: list[int] = self._result.tolist()
        return tokens

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.current_stream().synchronize()
        self._running = False

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
