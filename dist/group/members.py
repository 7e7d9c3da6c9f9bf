"""What a group of ranks asks of those who take part: all of a run, or those of one copy of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from dist.errors import RankError


class Members(Protocol):
    """The ranks of a group, as one of them sees them; `devices` by rank, -1 for a CPU."""

    rank: int
    size: int
    device: torch.device
    devices: Sequence[int]
    store: Any

    def process_ids(self) -> dict[int, int]:
        """{rank: process id} of those on this host."""
        ...

    def lost(self, problem: RuntimeError) -> RankError:
        """What a library says when a peer is gone, as an error of the program that names the peer."""
        ...

    def close(self) -> None: ...
