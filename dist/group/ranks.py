"""Who takes part: every rank's process, host and device, and which of them fail. Knows no collective and no model.

All of it goes over torch's store, before any process group is opened: what does not fit is refused while that is
still possible on all ranks.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as torch_dist

from dist.errors import RankError
from dist.group.agreement import Intent, agree
from dist.group.board import Board, connect, node_name
from dist.group.hosts import check_interfaces, host_name, interface_variables, own_address

# For what all ranks of a run write at about the same time.
STORE_TIMEOUT = timedelta(minutes=10)
LOST = "was lost"
# `Connection closed by peer [10.0.0.2]:2985`
GLOO_PEER = re.compile(r"\[([0-9a-f.:]+)\]:\d+")


class Ranks:
    """The ranks that torchrun started, as one of them sees them.

    From its making on a rank gives signs of life and hears of failures; who the others are it knows once all have
    met.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        """Reach the store that torchrun's environment variables name. Raises ChatError if that cannot be."""
        self.device = device or local_device()
        check_interfaces()
        os.environ.update(interface_variables())
        self.devices: Sequence[int] = []
        self._hosts: dict[int, str] = {}
        self._addresses: dict[int, str] = {}
        try:
            self.store, self.rank, self.size = next(
                torch_dist.rendezvous(  # type: ignore[attr-defined]
                    "env://", timeout=STORE_TIMEOUT
                )
            )
            board_store = connect(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        except RuntimeError as error:
            raise self.lost(error) from error
        self._process_ids = {self.rank: os.getpid()}
        # Rank 0 looks after all, and after hosts whose ranks have not come yet; for the others rank 0 counts.
        hosts = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
        self.several_hosts = hosts > 1
        nodes = [node_name(node) for node in range(1, hosts)]
        watched = [*map(str, range(1, self.size)), *nodes] if self.rank == 0 else ["0"]
        self._board = Board(board_store, str(self.rank), watched)

    def meet(self, intent: Intent | None = None) -> Ranks:
        """All ranks, together: compare what each is about to do, learn who the others are. Raises ChatError."""
        try:
            if intent is not None:
                agree(self.store, self.rank, self.size, intent)
            places = self._exchange_places()
        except RuntimeError as error:
            raise self.lost(error) from error
        here = places[self.rank]
        self._hosts = {rank: place["host"] for rank, place in enumerate(places)}
        self._addresses = {rank: place["address"] for rank, place in enumerate(places)}
        # Containers of one machine can have the same host name; process ids mean something within a namespace.
        self._process_ids = {
            rank: int(place["process"])
            for rank, place in enumerate(places)
            if (place["host"], place["space"]) == (here["host"], here["space"])
        }
        self.devices = [int(place["device"]) for place in places]
        return self

    def process_ids(self) -> dict[int, int]:
        """{rank: process id} of the ranks on this host."""
        return self._process_ids

    def name(self, rank: int) -> str:
        """`Rank 1`, with its host where there are several."""
        host = self._hosts.get(rank, host_name() if rank == self.rank else None)
        return rank_name(rank, host if self.several_hosts else None)

    def silence(self) -> dict[str, float]:
        """{who: seconds} since the last sign of life: on rank 0 of all others, elsewhere of rank 0.

        Hosts come last: who watches them names a rank of theirs, if there is one yet.
        """
        heard = self._board.silence()
        return {self.name(int(who)) if who.isdigit() else who.capitalize(): heard[who] for who in heard}

    def recorded_failures(self) -> dict[str, str]:
        """{a rank's or a host's name: how it failed, as what follows the name} as far as it is known here."""
        return self._board.failures()

    def record_failure(self, how: str, wait_s: float = 1.0) -> None:
        """Let rank 0 know why this rank is about to end."""
        self._board.post_failure(self.name(self.rank), how, wait_s)

    @property
    def contact_lost(self) -> str | None:
        """Why nothing can be read from the others any more, or None."""
        return self._board.contact_lost

    def close(self) -> None:
        self._board.close()

    def lost(self, problem: RuntimeError) -> RankError:
        """What a library says when a peer is gone, as an error of the program that names the peer."""
        said = str(problem).splitlines()[0]
        peer = GLOO_PEER.search(said)
        ranks = [rank for rank, address in self._addresses.items() if peer and address == peer[1]]
        if not ranks or len(set(self._addresses.values())) == 1:
            return RankError("Contact between the ranks was lost.", said)
        return RankError(f"{contact_name(self._hosts[ranks[0]], ranks)} {LOST}.", "It closed the connection.")

    def _exchange_places(self) -> list[dict[str, str]]:
        """Where every rank is: process, device (-1: a CPU), process namespace, host, address."""
        master = os.environ["MASTER_ADDR"]
        place = {
            "process": os.getpid(),
            "device": -1 if self.device.index is None else self.device.index,
            "space": Path("/proc/self/ns/pid").stat().st_ino,
            "host": host_name(),
            "address": own_address(master, is_master=os.environ.get("GROUP_RANK", "0") == "0"),
        }
        self.store.set(f"place/{self.rank}", json.dumps(place))
        return [json.loads(self.store.get(f"place/{rank}")) for rank in range(self.size)]


def rank_name(rank: int, host: str | None = None) -> str:
    """`Rank 1`, with its host where that is to be said."""
    return f"Rank {rank}" + (f" ({host})" if host else "")


def contact_name(host: str, ranks: Sequence[int]) -> str:
    """What is lost when all ranks of a host are gone."""
    return f"Contact with {host} (rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))})"


def open_ranks() -> Ranks | None:
    """The ranks that the environment describes; None for a process alone. Raises ChatError."""
    return Ranks() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


def local_device() -> torch.device:
    """The GPU that is this rank's, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
