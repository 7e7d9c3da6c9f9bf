"""Many replies at once by block refinement, all rows in step: for making training answers and for measuring.

The rule is that of `dist.decode`, blocks at a fixed R and a window at `auto`, with the model's own drafts only (a
test holds it to the engine, token for token and pass for pass); what differs is that prompts of several lengths
share a static KV cache, padded on the left, and on a GPU a pass is one graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chat.demo.recipe.llama import KeyValues, Shape, Weights, hidden_states, unstack_layers

AUTO = 0  # what is said is greedy


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """`token_ids` without the stop token; `ended`: a stop token came within the budget; `forwards`: forward
    passes spent on it."""

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
    window = refine_iter == AUTO and add_eos_length > 0
    board = _Board(weights, shape, prompts, size, max_new_tokens, stop_id, temperature, window)
    forwards = board.fill_window() if window else board.fill_blocks(refine_iter or 1)
    return _cut(board.tokens[:, board.width :].tolist(), forwards.tolist(), max_new_tokens, stop_id)


def _first_stop(output: Tensor, stop_id: int) -> Tensor:
    """Index of each row's first stop token; past the row's end where there is none."""
    return (output != stop_id).long().cumprod(1).sum(1)


def _cut(rows: list[list[int]], forwards: list[int], limit: int, stop_id: int) -> list[Reply]:
    replies = []
    for row, count in zip(rows, forwards):
        ended = stop_id in row[:limit]
        length = row.index(stop_id) if ended else limit
        replies.append(Reply(token_ids=row[:length], ended=ended, forwards=count))
    return replies


class _Board:
    """The rows' tokens, their KV cache, and the forward pass over the last tokens and the draft."""

    def __init__(
        self,
        weights: Weights,
        shape: Shape,
        prompts: Sequence[Sequence[int]],
        size: int,
        room: int,
        stop_id: int,
        temperature: float,
        window: bool,
    ) -> None:
        embed = weights["embed"]
        self.device = embed.device
        self.weights, self.shape, self.size, self.temperature = weights, shape, size, temperature
        self.room, self.stop_id = room, stop_id
        self.layers = unstack_layers(weights)
        # With blocks, a pass feeds the whole block before the draft again; with a window, the last token.
        self.again = 1 if window else size
        self.width = max(self.again, *(len(prompt) for prompt in prompts))
        rows, slots = len(prompts), self.width + room + size
        self.pads = torch.tensor([self.width - len(prompt) for prompt in prompts], device=self.device)
        padded = [[stop_id] * (self.width - len(prompt)) + list(prompt) for prompt in prompts]
        self.tokens = torch.full((rows, slots), stop_id, device=self.device)
        self.tokens[:, : self.width] = torch.tensor(padded, device=self.device)
        storage = (shape.layers, rows, shape.kv_heads, slots, shape.head_dim)
        self.store = KeyValues(keys=embed.new_zeros(storage), values=embed.new_zeros(storage))
        self.fed = torch.zeros((rows, self.again + size - 1), dtype=torch.long, device=self.device)
        self.slots = torch.arange(self.fed.shape[1], device=self.device).repeat(rows, 1)
        # Before the prefill: capturing runs a pass, which writes keys and values.
        self.replay = self._captured() if self.device.type == "cuda" else self._pass
        self._hidden(self.tokens[:, : self.width], torch.arange(self.width, device=self.device).expand(rows, -1))

    def fill_blocks(self, rounds: int) -> Tensor:
        """The reply by blocks, each refined `rounds` times at most; passes spent on each row."""
        length = self.size - 1
        finished = torch.zeros(len(self.tokens), dtype=torch.bool, device=self.device)
        forwards = torch.zeros(len(self.tokens), dtype=torch.long, device=self.device)
        for start in range(self.width, self.width + self.room, self.size):
            output = draft = torch.full((len(self.tokens), length), self.stop_id, device=self.device)
            settled = finished.clone()
            for _ in range(rounds):
                forwards += ~settled
                output = self._run(torch.full_like(forwards, start), draft)
                same = (output[:, :length] == draft).long().cumprod(1).sum(1)
                settled |= (same == length) | (_first_stop(output, self.stop_id) <= same)
                draft = output[:, :length]
                if bool(settled.all()):
                    break
            self.tokens[:, start : start + self.size] = output
            finished |= (output == self.stop_id).any(1)
            if bool(finished.all()):
                break
        return forwards

    def fill_window(self) -> Tensor:
        """The greedy reply by a window behind the exact text: what a pass confirms is text, the rest of its output
        the next draft; passes spent on each row."""
        length, rows = self.size - 1, len(self.tokens)
        place = torch.arange(length, device=self.device)
        start = torch.full((rows,), self.width, device=self.device)
        forwards, finished = torch.zeros_like(start), torch.zeros_like(start, dtype=torch.bool)
        draft = torch.full((rows, length), self.stop_id, device=self.device)
        while not bool(finished.all()):
            forwards += ~finished
            output = self._run(start, draft)
            sure = (output[:, :length] == draft).long().cumprod(1).sum(1) + 1
            stop = _first_stop(output, self.stop_id)
            # What stands behind the sure tokens is written over by the next pass.
            at = start[:, None] + torch.arange(self.size, device=self.device)
            self.tokens.scatter_(1, at, torch.where(finished[:, None], self.tokens.gather(1, at), output))
            left = sure[:, None] + place
            behind = output.gather(1, left.clamp(max=length))
            draft = torch.where(left <= length, behind, self.stop_id)
            start = torch.where(finished, start, start + sure)
            finished |= (stop < sure) | (start >= self.width + self.room)
        return forwards

    def _run(self, start: Tensor, draft: Tensor) -> Tensor:
        """Output tokens [rows, size] for a draft whose first slot is `start`, row by row."""
        before = torch.arange(-self.again, 0, device=self.device)
        given = self.tokens.gather(1, start[:, None] + before)
        self.fed.copy_(torch.cat((given, draft), dim=1))
        self.slots.copy_(start[:, None] + torch.arange(-self.again, self.size - 1, device=self.device))
        return self.replay().clone()

    def _hidden(self, fed: Tensor, slots: Tensor) -> Tensor:
        keys = torch.arange(self.tokens.shape[1], device=self.device)
        # A padding query sees itself: its row of scores must not be empty.
        allowed = (keys <= slots[:, :, None]) & (keys >= self.pads[:, None, None])
        allowed = allowed | (keys == slots[:, :, None])
        positions = (slots - self.pads[:, None]).clamp(min=0)
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
