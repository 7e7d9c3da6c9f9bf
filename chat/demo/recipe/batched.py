"""Many replies at once by block refinement, all rows in step: for making training answers and for measuring.

The rule is that of `dist.decode.rule` (a test holds it to the engine, token for token); what differs is that
prompts of several lengths share a static cache, padded on the left, and on a GPU a pass is one graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chat.demo.recipe.llama import KeyValues, Shape, Weights, hidden_states, unstack_layers

AUTO = 0  # refine until nothing changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """`token_ids` without the stop token; `ended`: a stop token came within the budget; `forwards`: passes
    spent on it by the stopping rules of `dist.decode.rule`."""

    token_ids: list[int]
    ended: bool
    forwards: int


@torch.no_grad()
def reply_all(
    weights: Weights,
    shape: Shape,
    prompts: Sequence[Sequence[int]],
    *,
    add_eos_length: int = 0,
    refine_iter: int = 1,
    max_new_tokens: int = 192,
    stop_id: int = 2,
    temperature: float = 0.0,
) -> list[Reply]:
    """One reply a prompt, in order. `max_new_tokens` must be a multiple of the block size. Sampling
    (`temperature` > 0, torch's default generator) is for `add_eos_length` 0 only."""
    size = add_eos_length + 1
    if max_new_tokens % size:
        raise ValueError(f"max_new_tokens {max_new_tokens} is no multiple of the block size {size}")
    board = _Board(weights, shape, prompts, size, max_new_tokens, stop_id, temperature)
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=board.device)
    forwards = torch.zeros(len(prompts), dtype=torch.long, device=board.device)
    for start in range(board.width, board.width + max_new_tokens, size):
        draft = torch.full((len(prompts), add_eos_length), stop_id, device=board.device)
        settled = finished.clone()
        for _ in range(refine_iter or size):
            forwards += ~settled
            output = board.run(start, draft)
            same = (output[:, :add_eos_length] == draft).long().cumprod(1).sum(1)
            stop_at = _first_stop(output, stop_id)
            settled |= (same == add_eos_length) | (stop_at <= same)
            draft = output[:, :add_eos_length]
            if bool(settled.all()):
                break
        board.tokens[:, start : start + size] = output
        finished |= (output == stop_id).any(1)
        if bool(finished.all()):
            break
    return _cut(board.tokens[:, board.width :].tolist(), forwards.tolist(), max_new_tokens, stop_id)


def _first_stop(output: Tensor, stop_id: int) -> Tensor:
    """Index of each row's first stop token; past the row's end where there is none."""
    return (output != stop_id).long().cumprod(1).sum(1) + (output != stop_id).all(1).long() * output.shape[1]


def _cut(rows: list[list[int]], forwards: list[int], limit: int, stop_id: int) -> list[Reply]:
    replies = []
    for row, count in zip(rows, forwards):
        ended = stop_id in row[:limit]
        length = row.index(stop_id) if ended else limit
        replies.append(Reply(token_ids=row[:length], ended=ended, forwards=count))
    return replies


class _Board:
    """The rows' tokens, their keys and values, and the pass over the block before and the draft."""

    def __init__(
        self,
        weights: Weights,
        shape: Shape,
        prompts: Sequence[Sequence[int]],
        size: int,
        room: int,
        stop_id: int,
        temperature: float,
    ) -> None:
        embed = weights["embed"]
        self.device = embed.device
        self.weights, self.shape, self.size, self.temperature = weights, shape, size, temperature
        self.layers = unstack_layers(weights)
        # A pass feeds a whole block before the draft again, so that at least one must lie before the reply.
        self.width = max(size, *(len(prompt) for prompt in prompts))
        rows, slots = len(prompts), self.width + room + size
        self.pads = torch.tensor([self.width - len(prompt) for prompt in prompts], device=self.device)
        padded = [[stop_id] * (self.width - len(prompt)) + list(prompt) for prompt in prompts]
        self.tokens = torch.full((rows, slots), stop_id, device=self.device)
        self.tokens[:, : self.width] = torch.tensor(padded, device=self.device)
        storage = (shape.layers, rows, shape.kv_heads, slots, shape.head_dim)
        self.store = KeyValues(keys=embed.new_zeros(storage), values=embed.new_zeros(storage))
        self.fed = torch.zeros((rows, 2 * size - 1), dtype=torch.long, device=self.device)
        self.slots = torch.arange(2 * size - 1, device=self.device)
        # Before the prefill: capturing runs a pass, which writes keys and values.
        self.replay = self._captured() if self.device.type == "cuda" else self._pass
        self._hidden(self.tokens[:, : self.width], torch.arange(self.width, device=self.device))

    def run(self, start: int, draft: Tensor) -> Tensor:
        """Output tokens [rows, size] for the block whose first slot is `start`."""
        self.fed.copy_(torch.cat((self.tokens[:, start - self.size : start], draft), dim=1))
        self.slots.copy_(torch.arange(start - self.size, start + self.size - 1, device=self.device))
        return self.replay().clone()

    def _hidden(self, fed: Tensor, slots: Tensor) -> Tensor:
        keys = torch.arange(self.tokens.shape[1], device=self.device)
        # A padding query sees itself, lest its row of scores be empty.
        allowed = (keys <= slots[:, None]) & (keys >= self.pads[:, None, None])
        allowed = allowed | (keys == slots[:, None])
        positions = (slots[None, :] - self.pads[:, None]).clamp(min=0)
        return hidden_states(
            self.weights, self.layers, self.shape, fed, positions, allowed, store=self.store, slots=slots
        )

    def _pass(self) -> Tensor:
        logits = self._hidden(self.fed, self.slots)[:, -self.size :] @ self.weights["embed"].T
        if self.temperature:
            noise = torch.empty_like(logits, dtype=torch.float32).exponential_().log_()
            logits = logits.float() / self.temperature - noise
        return logits.argmax(-1)

    def _captured(self) -> Callable[[], Tensor]:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._pass()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self._pass()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay
