"""Who takes part: every rank's process, host and device, and which of them fail. Knows no collective and no model.

All of it goes over torch's store, before any process group is opened: what does not fit is refused while that is
still possible on all ranks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as torch_dist

from dist.errors import RankError
from dist.group.agreement import Intent, agree
from dist.group.board import Board, connect
from dist.group.hosts import check_interfaces, host_name, interface_variables

# For what all ranks of a run write at about the same time.
STORE_TIMEOUT = timedelta(minutes=10)


class Ranks:
    """The ranks that torchrun started, as one of them sees them."""

    def __init__(self, device: torch.device | None = None, intent: Intent | None = None) -> None:
        """Join the run that torchrun's environment variables describe. Raises ChatError if it cannot be."""
        self.device = device or local_device()
        check_interfaces()
        os.environ.update(interface_variables())
        try:
            self.store, self.rank, self.size = next(
                torch_dist.rendezvous(  # type: ignore[attr-defined]
                    "env://", timeout=STORE_TIMEOUT
                )
            )

            if intent is not None:
                agree(self.store, self.rank, self.size, intent)
            places = self._exchange_places()
            board_store = connect(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        except RuntimeError as error:
            raise lost(error) from error
        self._hosts = {rank: host for rank, (_, _, _, host) in enumerate(places)}
        here = places[self.rank]
        self._process_ids = {rank: int(pid) for rank, (pid, _, *where) in enumerate(places) if where == here[2:]}
        self.devices = [int(device) for _, device, _, _ in places]
        # Rank 0 looks after all; for the others what counts is rank 0.
        watched = range(1, self.size) if self.rank == 0 else (0,)
        self._board = Board(board_store, self.rank, watched, self.size)

    def process_ids(self) -> dict[int, int]:
        """{rank: process id} of the ranks on this host."""
        return self._process_ids

    def hosts(self) -> Mapping[int, str]:
        """{rank: the name of its host}."""
        return self._hosts

    def silence(self) -> dict[int, float]:
        """{rank: seconds} since the last sign of life: on rank 0 of all others, elsewhere of rank 0."""
        return self._board.silence()

    def recorded_failures(self) -> dict[int, str]:
        """{rank: how it failed, as what follows its name} as far as it is known here; returns at once."""
        return self._board.failures()

    def record_failure(self, how: str, wait_s: float = 1.0) -> None:
        """Let rank 0 know why this rank is about to end."""
        self._board.post_failure(how, wait_s)

    @property
    def contact_lost(self) -> str | None:
        """Why nothing can be read from the others any more, or None."""
        return self._board.lost

    def close(self) -> None:
        self._board.close()

    def _exchange_places(self) -> list[list[str]]:
        """Process id, device (-1: a CPU), process namespace and host name of every rank."""
        index = -1 if self.device.index is None else self.device.index
        # Containers of one machine can have the same host name; process ids mean something within a namespace.
        space = Path("/proc/self/ns/pid").stat().st_ino
        self.store.set(f"place/{self.rank}", f"{os.getpid()} {index} {space} {host_name()}")
        return [self.store.get(f"place/{rank}").decode().split(" ", 3) for rank in range(self.size)]


def open_ranks(intent: Intent | None = None) -> Ranks | None:
    """The ranks that the environment describes; None for a process alone. Raises ChatError."""
    return Ranks(intent=intent) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


def local_device() -> torch.device:
    """The GPU that is this rank's, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def lost(problem: RuntimeError) -> RankError:
    """What a library says when a peer is gone, as an error of the program."""
    return RankError("Contact between the ranks was lost.", str(problem).splitlines()[0])
