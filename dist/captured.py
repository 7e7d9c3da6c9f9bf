"""The passes over a block at a few fixed widths, each captured once as a CUDA graph and replayed. Knows no rule.

Launching a model's kernels one by one takes a host several times as long as a GPU needs to run them; a replay is
one launch. Two widths serve all passes: N tokens for a block's later passes, 2N + 1 for its first one, which also
reads what the last block left unread. Fewer tokens are filled up with junk *behind* them, which causality hides and
which is overwritten before it is read. What is longer (prefill) runs uncaptured over the same storage.

Shape suffixes: W tokens fed (the width), K logits kept, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from dist.attention import fixed_storage_attention
from dist.decoding import Pass
from dist.fixed_storage import FixedCache
from dist.forward import (
    FORWARD_ERRORS,
    Choices,
    choices_of,
    knows_logits_to_keep,
    logits_after,
    logits_agree,
    most_likely,
)
from dist.head import Head
from dist.kernels import kernel_errors
from dist.model_build import position_limit
from dist.rotary import FusedRotary

WARM_UPS = 2
PROBE_TOKENS, PROBE_START = 12, 7
# Wider passes are bound by their arithmetic, and their graphs would hold much memory.
WIDEST = 512
KNOWN_LAYERS = {"full_attention", "sliding_attention"}


class CapturedForward:
    """Forwards over one sequence of at most `capacity` tokens; the causality of the model is taken for granted.

    `capture` False runs the same passes uncaptured, which is what a CPU can do.
    """

    def __init__(self, module: Any, head: Head, capacity: int, *, capture: bool) -> None:
        self._module = module
        self._head = head
        self._capture = capture
        self._rotary = FusedRotary(module)
        # One pool for all widths: what a replay leaves is read before the next one.
        self._pool = torch.cuda.graph_pool_handle() if capture else None
        self.cache = FixedCache(module.config.get_text_config().num_hidden_layers, capacity)
        self._widths: dict[tuple[int, int], FixedWidth] = {}

    @property
    def capacity(self) -> int:
        return self.cache.capacity

    def prefill(self, row: int, step: Pass, chunk: int) -> Iterator[tuple[int, int]]:
        """Leaves to the first pass what fits into its width."""
        rest = self.cache.rewind_to_shared(step.token_ids, step.wanted)
        while len(rest) > 2 * step.wanted - 1:
            part = rest[: min(chunk, len(rest) - step.wanted)]
            self._feed(part, 1)
            rest = rest[len(part) :]
            yield len(self.cache.token_ids), len(step.token_ids)

    def __call__(self, rows: Sequence[int], steps: Sequence[Pass], *, trace: bool) -> list[Choices]:
        (step,) = steps
        rest = self.cache.rewind_to_shared(step.token_ids, step.wanted)
        start, n = len(self.cache.token_ids), step.settings.add_eos_length
        width, kept = (max(n, 1), max(n, 1)) if len(rest) <= max(n, 1) else (2 * n + 1, n + 1)
        if len(rest) > width or step.wanted > kept or start + width > self.capacity or width > WIDEST:
            # Only after a live change of the block's size, at the very end of the storage, or in long blocks.
            return choices_of([self._feed(rest, step.wanted)], steps, trace, self._head)
        passed = self._width(width, kept)
        first = passed.run(rest, start, step.wanted)
        self.cache.note_fed(rest)
        logits_NV = passed.logits[first : first + step.wanted]
        if step.settings.samples:
            return choices_of([logits_NV], steps, trace, self._head)
        chosen = passed.chosen(first, step.wanted)
        return [Choices(token_ids=chosen, candidates=most_likely(self._head.whole(logits_NV)) if trace else None)]

    def agrees(self) -> bool:
        """Whether a captured pass gives the logits that the model gives with its own attention."""
        vocabulary = self._module.get_input_embeddings().weight.shape[0]
        ids = [token % vocabulary for token in range(17, 17 + 7919 * PROBE_TOKENS, 7919)]
        wanted = PROBE_TOKENS - PROBE_START
        expected = logits_after(self._module, ids, wanted, use_cache=False)
        self._feed(ids[:PROBE_START], 1)
        passed = self._width(PROBE_TOKENS, wanted)
        first = passed.run(ids[PROBE_START:], PROBE_START, wanted)
        agree = logits_agree(passed.logits[first : first + wanted], expected)
        # The captured width stays: a pool whose last graph has gone can't be captured into again.
        self.cache.truncate(0)
        return agree

    def _width(self, width: int, kept: int) -> FixedWidth:
        if (width, kept) not in self._widths:
            made = FixedWidth(self._module, self._head, self.cache, self._rotary, width, kept)
            if self._capture:
                made.capture(len(self.cache.token_ids), self._pool)
            self._widths[width, kept] = made
        return self._widths[width, kept]

    @torch.inference_mode()
    def _feed(self, token_ids: list[int], wanted: int) -> torch.Tensor:
        """An uncaptured pass; logits [wanted, V]."""
        device = next(self._module.parameters()).device
        start = len(self.cache.token_ids)
        slots_W = torch.arange(start, start + len(token_ids), device=device)
        keep_K = torch.arange(len(token_ids) - wanted, len(token_ids), device=device)
        ids_W = torch.tensor(token_ids, device=device)
        with fixed_storage_attention(self._module), self._rotary.used():
            logits = _pass(self._module, self.cache, ids_W, slots_W, keep_K)
        self.cache.note_fed(token_ids)
        return logits


def capture_problem(
    module: Any, head: Head, capacity: int, *, capture: bool = True
) -> tuple[CapturedForward | None, str | None]:
    """A CapturedForward that has been tried, or why there can be none, in words. Raises OutOfMemoryError."""
    config = module.config.get_text_config()
    others = set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS
    if others or getattr(config, "attention_chunk_size", None):
        return None, f"its attention is of another kind ({', '.join(sorted(others)) or 'chunked'})"
    refusals: tuple[type[Exception], ...] = (*FORWARD_ERRORS, *kernel_errors())
    try:
        forward = CapturedForward(module, head, capacity, capture=capture)
        if forward.agrees():
            return forward, None
    except torch.OutOfMemoryError:
        raise
    except refusals as error:
        return None, f"{type(error).__name__}: {(str(error) or 'no words').splitlines()[0].rstrip('.')}"
    return None, "it gives other logits with its keys and values in fixed storage"


class FixedWidth:
    """Passes of exactly `width` tokens with logits after `kept` neighbours among them, captured or not.

    `logits` [K, V] (this rank's part) are those of the last `run`.
    """

    logits: torch.Tensor

    def __init__(
        self, module: Any, head: Head, cache: FixedCache, rotary: FusedRotary, width: int, kept: int
    ) -> None:
        self._module = module
        self._head = head
        self._cache = cache
        self._rotary = rotary
        self._width = width
        self._kept = kept
        self._graph: torch.cuda.CUDAGraph | None = None
        device = next(module.parameters()).device
        self._on_gpu = device.type == "cuda"
        # The tokens, where the first of them belongs, and which is the first to keep logits of.
        self._order = torch.zeros(width + 2, dtype=torch.int64, pin_memory=self._on_gpu)
        self._input = self._order.to(device)
        # Both copies, to the device and back, are part of the graph.
        self._result = torch.zeros(kept, dtype=torch.int64, pin_memory=self._on_gpu)

    @torch.inference_mode()
    def run(self, token_ids: list[int], start: int, wanted: int) -> int:
        """Read the tokens from position `start` on; returns at which of `kept` the wanted last ones begin."""
        last = len(token_ids) - wanted
        first = min(last, self._width - self._kept)
        filling = [token_ids[-1]] * (self._width - len(token_ids))
        self._order.numpy()[:] = [*token_ids, *filling, start, first]
        if self._graph is not None:
            self._graph.replay()
        else:
            with fixed_storage_attention(self._module), self._rotary.used():
                self._body()
        return last - first

    @torch.inference_mode()
    def capture(self, start: int, pool: Any) -> None:
        """Capture the pass, its memory in `pool`; junk is written to the slots from `start` on."""
        self._order.zero_()
        self._order[self._width] = start
        stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with fixed_storage_attention(self._module), self._rotary.used():
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

    def chosen(self, first: int, count: int) -> list[int]:
        """So many of the tokens chosen by the last run, greedily; waits for the device."""
        if self._on_gpu:
            torch.cuda.current_stream().synchronize()
        tokens: list[int] = self._result[first : first + count].tolist()
        return tokens

    def _body(self) -> None:
        self._input.copy_(self._order, non_blocking=True)
        start, first = self._input[self._width], self._input[self._width + 1]
        slots_W = start + torch.arange(self._width, device=self._input.device)
        keep_K = first + torch.arange(self._kept, device=self._input.device)
        self.logits = _pass(self._module, self._cache, self._input[: self._width], slots_W, keep_K)
        self._result.copy_(self._head.greedy(self.logits), non_blocking=True)


def _pass(
    module: Any, cache: FixedCache, ids_W: torch.Tensor, slots_W: torch.Tensor, keep_K: torch.Tensor
) -> torch.Tensor:
    """One forward over fixed storage; logits [K, V]."""
    cache.write_at(slots_W)
    known = knows_logits_to_keep(module)
    limit = position_limit(module.config)
    # Only junk ever stands past the model's positions.
    positions_W = slots_W if limit is None else slots_W.clamp_max(limit - 1)
    output = module(
        input_ids=ids_W.unsqueeze(0),
        position_ids=positions_W.unsqueeze(0),
        past_key_values=cache.layers,
        use_cache=True,
        block_start=slots_W[0],
        **({"logits_to_keep": keep_K} if known else {}),
    )
    logits: torch.Tensor = output.logits[0]
    return logits if known else logits.index_select(0, keep_K)
