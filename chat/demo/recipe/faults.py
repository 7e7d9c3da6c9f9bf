"""Texts with the faults that a few passes a block leave, made of a batch and the model's outputs. Knows no model.

In fixed-R decoding a block's last output becomes text, faults and all, and the next block builds on it. Training
sees the same: the outputs of a round take the place of the clean text, and the blocks behind it are filled again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chat.demo.recipe.corpus import STOP_ID
from chat.demo.recipe.packing import NO_LOSS, SAY

LOST, WITHIN = 2, 8  # so many words said twice among the last so many tokens: the text is lost
SETS = 3  # of blocks, that `packing` lays out


def before_in_block(batch: dict[str, Tensor], marked: Tensor) -> Tensor:
    """How many of the places before a place, in its block, are marked; [rows, length]."""
    earlier = marked.long().cumsum(1) - marked.long()
    here = torch.arange(marked.shape[1], device=marked.device)
    return earlier - earlier.gather(1, here - batch["offset"])


def preceding(batch: dict[str, Tensor], said: Tensor) -> Tensor:
    """The token that stands before each output of a block: the output at the place before, or the given one."""
    return torch.where(batch["offset"] == 0, batch["truth"], said.roll(1, 1))


def with_faults(
    batch: dict[str, Tensor], said: Tensor, share: float, words: Tensor, generator: torch.Generator
) -> tuple[dict[str, Tensor], Tensor]:
    """The batch with `said`, a round's outputs, in its plain text; and the blocks' places [rows, length] behind a
    text that is lost: one that says tokens of `words` [vocabulary] twice, again and again.

    Each conversation gets the outputs of one of its sets of blocks, `share` of these blocks. The plain text's loss
    is where a block begins: on the true token, or, if the text is lost, on the end."""
    in_block = (batch["block"] > 0) & (batch["target"] >= 0)
    row = torch.arange(len(said), device=said.device)[:, None].expand_as(said)
    chosen = in_block & _drawn(batch, share, generator)
    tokens = batch["token"].clone()
    tokens[row[chosen], batch["plain"][chosen] + 1] = said[chosen]
    # What goes on has not ended, and turns end where they did.
    plain = batch["block"] == 0
    ends = (tokens == STOP_ID) | (batch["truth"] == STOP_ID)
    tokens = torch.where(plain & ends, batch["truth"], tokens)

    twice = plain & (tokens == tokens.roll(1, 1)) & (batch["truth"] != batch["truth"].roll(1, 1)) & words[tokens]
    count = twice.long().cumsum(1)
    last = (batch["plain"] - batch["offset"] - 1).clamp(min=0)
    slips = count.gather(1, last) - count.gather(1, (last - WITHIN).clamp(min=0))
    lost = (slips >= LOST) & in_block

    begins = in_block & (batch["offset"] == 0)
    known = torch.zeros(int(batch["sample"].max()) + 2, dtype=torch.bool, device=said.device)
    known[batch["sample"][begins]] = True
    role, target = batch["role"].masked_fill(plain & known[batch["sample"]], NO_LOSS), batch["target"].clone()
    at = row[begins], batch["plain"][begins] - 1
    role[at] = SAY
    target[at] = torch.where(lost[begins], STOP_ID, batch["truth"][begins])
    return batch | {"token": tokens, "role": role, "target": target, "led": batch["led"] * (slips == 0)}, lost


def _drawn(batch: dict[str, Tensor], share: float, generator: torch.Generator) -> Tensor:
    """The places of one set of blocks a conversation, `share` of its blocks."""
    rows, length = batch["token"].shape
    device = batch["token"].device
    most = int(batch["sample"].max()) + 2
    grids = torch.randint(1, SETS + 1, (most,), generator=generator, device=device)[batch["sample"]]
    drawn = torch.rand((rows, length), generator=generator, device=device)
    start = torch.arange(length, device=device) - batch["offset"]
    return (batch["grid"] == grids) & (drawn.gather(1, start) < share)
