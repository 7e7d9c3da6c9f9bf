"""Run as the program, but for a group that can never be left, as NCCL's when a captured collective lives on."""

from __future__ import annotations

import time

import dist.group.group
from chat.__main__ import main


class StuckSolo(dist.group.group.SoloGroup):
    def close(self) -> None:
        time.sleep(3600)


class StuckRanks(dist.group.group.TorchGroup):
    def close(self) -> None:
        time.sleep(3600)


if __name__ == "__main__":
    dist.group.group.SoloGroup = StuckSolo
    dist.group.group.TorchGroup = StuckRanks
    main()
