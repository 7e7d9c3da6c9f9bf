"""Passes as a GPU makes them, at fixed widths over fixed storage, but for the capture itself."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from dist.decode.cuda_graphs import CapturedForward
from dist.decode.planner import SequenceForward
from dist.group.group import SoloGroup
from dist.model.head import WholeHead

new_forward = partial(CapturedForward, capture=False)


def at_fixed_widths(module: Any, limit: int, capacity: int | None = None) -> SequenceForward:
    """For an Engine and a model of `limit` positions; a conversation has room for `capacity` tokens."""
    head, group = WholeHead(), SoloGroup(torch.device("cpu"))
    forwards = SequenceForward(module, head, group, limit, uncaptured=new_forward)
    forwards.alone = new_forward(module, head, 1, capacity or limit)
    return forwards
