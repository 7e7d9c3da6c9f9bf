"""Run as the program, but for a group that can never be left, as NCCL's when a captured collective lives on."""

from __future__ import annotations

import time

import dist.group
from chat.__main__ import main


class StuckSolo(dist.group.SoloGroup):
    def close(self) -> None:
        time.sleep(3600)


class StuckRanks(dist.group.TorchGroup):
    def close(self) -> None:
        time.sleep(3600)


if __name__ == "__main__":
    dist.group.SoloGroup = StuckSolo
    dist.group.TorchGroup = StuckRanks
    main()
