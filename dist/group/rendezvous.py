"""How the launchers of all hosts find each other: torchrun's rendezvous, with errors that name what is wrong.

On one host the store listens on the loopback interface only. On several, node 0's listens on the interface that
leads to the others; every launcher says whom it waits for. Knows no model and no rank.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as torch_dist
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from dist.errors import ChatError, RankError, UsageError
from dist.group.hosts import Hosts, host_name, own_address, resolve
from dist.group.lines import GOODBYE, Line, Lines

BACKEND = "chat"
JOIN_S = 300.0
CONNECT_S = 2.0
ANSWER_S = 10.0
POLL_S = 0.2
STORE_TIMEOUT = timedelta(seconds=30)
PORT_ERRORS = {errno.EADDRINUSE: "Another program uses it", errno.EACCES: "It is reserved for the administrator"}

Notice = Callable[[str], None]


class Meeting(RendezvousHandler):
    """The meeting of all launchers.

    This host brings `count` ranks. It waits `join_s` for the others, and `answer_s` for whoever listens at node 0's
    port to answer as this program. `notice(text)` shows whom this one waits for, `""` that it is over; then `met`
    is called with what the other hosts said of themselves, by node. `program` is this program's version.
    """

    def __init__(
        self,
        hosts: Hosts,
        count: int = 1,
        *,
        join_s: float = JOIN_S,
        answer_s: float = ANSWER_S,
        notice: Notice = lambda _: None,
        met: Callable[[dict[int, dict[str, str]]], None] = lambda _: None,
        program: str = "",
    ) -> None:
        self._hosts = hosts
        self._join_s = join_s
        self._answer_s = answer_s
        self._notice = notice
        self._met = met
        self._mine = {"nodes": str(hosts.nodes), "host": host_name(), "program": program, "ranks": str(count)}
        self._lines: Lines | None = None
        self._line: Line | None = None
        self._began = time.monotonic()
        self.store: Any = None
        # Where the store is, once it is reached.
        self.place = ("", 0)
        self.others: dict[int, dict[str, str]] = {}

    def next_rendezvous(self) -> RendezvousInfo:
        """Meet the others. Raises ChatError."""
        hosts = self._hosts
        self._began = time.monotonic()
        if hosts.node == 0:
            self.place = address, port = self._open_store()
            self._wait_for_all()
        else:
            address, port = hosts.address, hosts.port
            self._join(address, port)
            self.place = resolve(address), port
        self._notice("")
        self._met(self.others)
        assert self.store is not None
        return RendezvousInfo(
            torch_dist.PrefixStore(  # type: ignore[attr-defined]
                "torchrun", self.store
            ),
            hosts.node,
            hosts.nodes,
            RendezvousStoreInfo(address, port),
        )

    def watch_others(self, lost: Callable[[int], None]) -> None:
        """Node 0, after the meeting: `lost(node)` is called when the launcher of another host was killed."""
        if self._lines is not None:
            self._lines.watch(lost)

    def watch_node_0(self, ended: Callable[[str], None]) -> None:
        """Another node, after the meeting: `ended(why)` is called when node 0's launcher ends (`Line.watch`)."""
        if self._line is not None:
            self._line.watch(ended)

    def leave(self, why: str = GOODBYE) -> None:
        """This launcher ends in an orderly way; node 0 says `why` to the others where they cannot know."""
        if self._line is not None:
            self._line.close()
        if self._lines is not None:
            self._lines.close(why)

    def ranks_of(self, node: int) -> list[int]:
        """Node 0, after the meeting: the ranks of a host. torchrun counts them host by host."""
        counts = [int((self.others | {0: self._mine})[number]["ranks"]) for number in range(self._hosts.nodes)]
        return list(range(sum(counts[:node]), sum(counts[: node + 1])))

    def _open_store(self) -> tuple[str, int]:
        """Node 0: listen, but only where the others come from."""
        hosts = self._hosts
        address = hosts.address if hosts.nodes == 1 else own_address(hosts.address, is_master=True)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            listener = socket.create_server((address, hosts.port), family=family, backlog=512)
        except OSError as error:
            why = PORT_ERRORS.get(error.errno or 0, error.strerror or str(error))
            raise UsageError(
                f"Port {hosts.port} cannot be used on {address}.",
                f"{why}.",
                "Set MASTER_PORT to another port, the same on all hosts.",
            ) from None
        port = int(listener.getsockname()[1])
        # The store closes the descriptor at its end.
        self.store = torch_dist.TCPStore(  # type: ignore[attr-defined]
            address,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=STORE_TIMEOUT,
            master_listen_fd=listener.detach(),
        )
        if hosts.nodes > 1:
            self._lines = Lines(address)
            self._mine["line"] = str(self._lines.port)
        self.store.set("chat/meeting", json.dumps(self._mine))
        return address, port

    def _wait_for_all(self) -> None:
        hosts, store = self._hosts, self.store
        assert store is not None
        missing = list(range(1, hosts.nodes))
        while missing:
            for node in tuple(missing):
                if store.check([f"chat/refused/{node}"]):
                    raise _refusal(json.loads(store.get(f"chat/refused/{node}")))
                if store.check([f"chat/joined/{node}"]):
                    self.others[node] = json.loads(store.get(f"chat/joined/{node}"))
                    missing.remove(node)
            if missing:
                self._wait(f"node {missing[0]} of {hosts.nodes} at {hosts.meeting_point}")
        store.set("chat/complete", "1")

    def _join(self, address: str, port: int) -> None:
        """The other nodes: find node 0's store, compare with what it expects, wait until all are there."""
        hosts = self._hosts
        target = resolve(address)
        own_address(address, is_master=False)
        waiting_for = f"node 0 at {hosts.meeting_point}"
        while True:
            try:
                with socket.create_connection((target, port), timeout=CONNECT_S):
                    break
            except OSError as error:
                self._wait(waiting_for, error.strerror or "no answer")
        store = self._open_connection(target, port)
        self.store = store
        self._compare(store)
        with contextlib.suppress(OSError):  # where it cannot be had, signs of life have to do
            self._line = Line(target, int(self.others[0]["line"]), hosts.node)
        store.set(f"chat/joined/{hosts.node}", json.dumps(self._mine))
        while not store.check(["chat/complete"]):
            self._wait(f"the other nodes at {hosts.meeting_point}")

    def _open_connection(self, target: str, port: int) -> Any:
        """Node 0's store. A program that answers nothing would be waited for: that is done on a thread."""
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def ask() -> None:
            try:
                patience = timedelta(seconds=self._answer_s)
                store = torch_dist.TCPStore(  # type: ignore[attr-defined]
                    target, port, is_master=False, wait_for_workers=False, timeout=patience
                )
                store.set_timeout(STORE_TIMEOUT)
                self.others[0] = json.loads(store.get("chat/meeting"))
                answer.put(store)
            except (RuntimeError, ValueError) as error:
                answer.put(f"{error}".splitlines()[0])

        threading.Thread(target=ask, name="ask", daemon=True).start()
        try:
            found = answer.get(timeout=self._answer_s)
        except queue.Empty:
            found = f"It has said nothing for {self._answer_s:.0f} s."
        if not isinstance(found, str):
            return found
        raise RankError(
            f"{self._hosts.meeting_point} answers, but not as node 0 of this program does.",
            found,
            "Set MASTER_PORT to another port, the same on all hosts.",
        )

    def _compare(self, store: Any) -> None:
        """Refuse, here and on node 0, what cannot go together."""
        node, theirs = self._hosts.node, self.others[0]
        problem: ChatError | None = None
        for name, what in (("nodes", "NNODES"), ("program", "The program's version")):
            here, there = self._mine.get(name), theirs.get(name)
            if here != there:
                problem = UsageError(
                    f"{what} differs between the hosts.",
                    f"{there} on node 0 ({theirs['host']}), {here} on node {node} ({self._mine['host']}).",
                    "Start all hosts with the same.",
                )
        if problem is None and store.add(f"chat/claimed/{node}", 1) > 1:
            # The host that came first goes on.
            raise UsageError(
                f"NODE_RANK={node} is taken.",
                f"Another host has joined {self._hosts.meeting_point} with it.",
                "Give each host a number of its own; if this one was started again, start all of them again.",
            )
        if problem is not None:
            store.set(f"chat/refused/{node}", json.dumps([problem.what, problem.why, problem.hint]))
            raise problem

    def _wait(self, whom: str, why: str = "") -> None:
        seconds = time.monotonic() - self._began
        if seconds > self._join_s:
            raise RankError(
                f"Waited {seconds:.0f} s for {whom}; it did not join.",
                f"The last attempt: {why}." if why else "",
                "Check MASTER_ADDR, MASTER_PORT and firewalls; --join_timeout waits longer.",
            )
        self._notice(f"Waiting for {whom}, {seconds:.0f} s" + (f" ({why.lower()})" if why else ""))
        time.sleep(POLL_S)

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return str(os.getpid())

    def shutdown(self) -> bool:
        return True


def register(meeting: Meeting) -> None:
    """Let torchrun's `--rdzv_backend=chat` mean this meeting."""

    def create(_: RendezvousParameters) -> Any:
        return meeting

    rendezvous_handler_registry.register(BACKEND, create)


def _refusal(parts: list[str]) -> UsageError:
    return UsageError(*parts)
