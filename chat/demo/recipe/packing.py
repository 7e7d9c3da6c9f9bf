"""Conversations and their blocks laid out in rows for training. Knows no model and no loss.

A row holds several conversations, each with copies of its blocks behind it: what decoding would feed at that place
of the reply, placeholders at first. `sight` says what each token may see.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from chat.demo.recipe.corpus import FREE, LOOP, PICKED, SKILL, STOP_ID, Sample

SIZES = (4, 16)  # least and greatest block, N + 1 tokens
DECODED = 8  # that of decoding
SLIPS = 1 / 20  # share of tokens that half of the FREE answers say twice

# A token's columns. `block`: 0 for plain text, else its block's number; `limit`: it sees plain text before this
# position; `offset`: its place in the block; `truth`: the true token here; `target`: the true next one, or -1;
# `role`: what the plain text's loss is here; `plain`: where in the row the plain token of this position stands;
# `grid`: which set of blocks this one is of, from 1 on; `led`: 1 if a wrong output may be gone on from.
COLUMNS = (
    *("token", "position", "sample", "block", "limit", "offset", "truth", "target", "role"),
    *("plain", "grid", "led"),
)
NO_LOSS, SAY, HOLD, SHUN = 0, 1, 2, 3
PHRASE = 8  # tokens that, said again, make a loop


def lay_out(sample: Sample, rng: random.Random) -> Tensor:
    """One conversation with its blocks behind it: [tokens, columns] in the order of COLUMNS (`sample` is 0)."""
    tokens, length = torch.tensor(sample.tokens), len(sample.tokens)
    at, zero = torch.arange(length), torch.zeros(length, dtype=torch.long)
    taught = sample.kind in (SKILL, PICKED)
    role = torch.full((length,), NO_LOSS)
    for start, end in sample.replies if taught else sample.replies[-1:]:
        role[start - 1 : end - 1] = SAY if taught else HOLD
        if sample.tokens[end - 1] == STOP_ID:
            # The base would have gone on.
            role[end - 2] = SAY
    if sample.kind == FREE and rng.random() < 0.5:
        # So that after a slip it goes on as the base would.
        for place in range(sample.replies[-1][0] + 1, sample.replies[-1][1] - 1):
            if rng.random() < SLIPS:
                tokens[place] = tokens[place - 1]
    if sample.kind == LOOP:
        shunned = torch.tensor([place - 1 for place in repeated(sample.tokens, sample.replies[-1][0])])
        if len(shunned):
            role[shunned[0] :] = NO_LOSS
            role[shunned] = SHUN
    target = torch.cat((tokens[1:], torch.tensor([-1])))
    laid = [torch.stack((tokens, at, zero, zero, at + 1, zero, tokens, target, role, at, zero, zero), dim=1)]
    if sample.kind in (FREE, LOOP):
        return laid[0]
    # More blocks cost less than more text: those of decoding, the same on another grid, and others.
    other = SIZES[0] if rng.random() < 0.3 else rng.randint(*SIZES)
    sets = ((DECODED, 0), (DECODED, rng.randrange(DECODED)), (other, rng.randrange(other)))
    number = 1
    for grid, (size, skipped) in enumerate(sets, start=1):
        for start, end in sample.replies:
            starts = range(start + skipped, end - 1, size)
            blocks = [
                _block(at, min(at + size, end), tokens, (number + index, grid, int(sample.kind != SKILL)))
                for index, at in enumerate(starts)
            ]
            number += len(blocks)
            laid += blocks
    return torch.cat(laid)


def _block(start: int, end: int, truth: Tensor, marks: tuple[int, int, int]) -> Tensor:
    """The placeholders of a block that is to be filled with `truth` from `start` to `end`; its last token has none.
    `marks`: its number, its set's number, `led`."""
    at = torch.arange(start, end - 1)
    zero = torch.zeros_like(at)
    number, grid, led = (zero + mark for mark in marks)
    columns = (zero + STOP_ID, at, zero, number, zero + start, at - start, truth[at], truth[at + 1], zero)
    return torch.stack((*columns, at, grid, led), dim=1)


def repeated(tokens: Sequence[int], start: int) -> list[int]:
    """Places of a reply that begins at `start` where a token ends a phrase that it has said before."""
    said: set[tuple[int, ...]] = set()
    places = []
    for place in range(start + PHRASE - 1, len(tokens)):
        phrase = tuple(tokens[place - PHRASE + 1 : place + 1])
        if phrase in said:
            places.append(place)
        said.add(phrase)
    return places


def pack(
    samples: Sequence[Sample], rows: int, length: int, rng: random.Random, rest: bool = False
) -> Iterator[Tensor]:
    """Batches [rows, length, columns] over the samples, in their order, less a last one not full unless the `rest`
    is wanted. Empty places are token STOP_ID, sample -1."""
    empty = torch.tensor([STOP_ID, 0, -1, 0, 1, 0, STOP_ID, -1, NO_LOSS, 0, 0, 0])
    batch, used = empty.repeat(rows, length, 1), [0] * rows
    for index, sample in enumerate(samples):
        laid = lay_out(sample, rng)[:length]
        row = next((row for row, full in enumerate(used) if full + len(laid) <= length), None)
        if row is None:
            yield batch
            batch, used, row = empty.repeat(rows, length, 1), [0] * rows, 0
        laid[:, 2] = index
        laid[:, COLUMNS.index("plain")] += used[row]
        batch[row, used[row] : used[row] + len(laid)] = laid
        used[row] += len(laid)
    if rest and any(used):
        yield batch


def sight(batch: dict[str, Tensor]) -> Tensor:
    """[rows, length, length]: may the token see that one? Plain text sees plain text before it; a block's token
    sees the plain text before its block, and its own block up to itself."""

    def pair(name: str) -> tuple[Tensor, Tensor]:
        return batch[name][:, :, None], batch[name][:, None, :]

    (mine, theirs), (block, their_block), (at, their_at) = pair("sample"), pair("block"), pair("position")
    plain = (their_block == 0) & (their_at < batch["limit"][:, :, None])
    own = (block != 0) & (block == their_block) & (their_at <= at)
    return (mine == theirs) & (plain | own)


def next_draft(batch: dict[str, Tensor], said: Tensor, round_index: int) -> Tensor:
    """The next round's tokens: in blocks what the model said, one place later; as many true tokens at the front as
    that many iterations make sure."""
    moved = torch.roll(said, 1, dims=1)
    draft = torch.where(batch["offset"] <= round_index, batch["truth"], moved)
    return torch.where(batch["block"] > 0, draft, batch["token"])
