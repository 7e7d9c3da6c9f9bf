"""Launchers meet: who is waited for is said, what cannot go together is refused on both sides, waiting ends."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from checkpoints import free_port

from dist.errors import ChatError, RankError, UsageError
from dist.group.hosts import LOOPBACK, Hosts
from dist.group.rendezvous import Meeting


class Launcher(threading.Thread):
    """A launcher at its meeting, on a thread. What it said and how it ended stays."""

    def __init__(self, hosts: Hosts, *, join_s: float = 60.0, answer_s: float = 30.0, program: str = "1.0") -> None:
        super().__init__(daemon=True)
        self.said: list[str] = []
        self.error: ChatError | None = None
        self.meeting = Meeting(hosts, join_s=join_s, answer_s=answer_s, notice=self.said.append, program=program)
        self.start()

    def run(self) -> None:
        try:
            self.info = self.meeting.next_rendezvous()
        except ChatError as error:
            self.error = error

    def end(self) -> Launcher:
        self.join(60)
        assert not self.is_alive()
        self.meeting.leave()
        return self

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 20
        while not any(text in one for one in self.said):
            assert time.monotonic() < deadline, self.said
            time.sleep(0.01)


def hosts(node: int, port: int, nodes: int = 2) -> Hosts:
    return Hosts(nodes=nodes, node=node, address=LOOPBACK, port=port)


def listening() -> set[str]:
    """Addresses that TCP sockets of this process's network listen on, as the kernel writes them."""
    lines = [line for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {line.split()[1] for line in lines if " 0A " in line}


def test_one_host_meets_itself_at_once_on_the_loopback_interface_only():
    before = listening()
    launcher = Launcher(Hosts()).end()
    assert launcher.error is None
    store = launcher.info.bootstrap_store_info
    assert (launcher.info.rank, launcher.info.world_size, store.master_addr) == (0, 1, LOOPBACK)
    opened = {address for address in listening() - before if address.endswith(f":{store.master_port:04X}")}
    assert opened == {f"0100007F:{store.master_port:04X}"}


def test_hosts_say_whom_they_wait_for_and_meet():
    port = free_port()
    second = Launcher(hosts(1, port, 3))
    second.wait_for(f"Waiting for node 0 at {LOOPBACK}:{port}, 0 s (connection refused)")
    first = Launcher(hosts(0, port, 3))
    first.wait_for(f"Waiting for node 2 of 3 at {LOOPBACK}:{port}, ")
    second.wait_for("Waiting for the other nodes at ")
    third = Launcher(hosts(2, port, 3))
    for node, launcher in enumerate((first, second, third)):
        launcher.end()
        assert launcher.error is None
        assert (launcher.info.rank, launcher.info.world_size) == (node, 3)
        assert launcher.said[-1] == ""
    third.info.store.set("ranks", "all")
    assert first.info.store.get("ranks") == b"all"


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"nodes": 3}, "NNODES differs between the hosts. 2 on node 0 ("),
        ({"program": "1.1"}, "The program's version differs between the hosts. 1.0 on node 0 ("),
    ],
)
def test_what_cannot_go_together_is_refused_on_both_hosts(other, text):
    port = free_port()
    first = Launcher(hosts(0, port))
    second = Launcher(hosts(1, port, other.get("nodes", 2)), program=other.get("program", "1.0"))
    for launcher in (first, second):
        assert isinstance(launcher.end().error, UsageError)
        assert str(launcher.error).startswith(text)


def test_a_number_can_be_taken_once():
    port = free_port()
    first, second = Launcher(hosts(0, port, 3)), Launcher(hosts(1, port, 3))
    second.wait_for("Waiting for the other nodes")
    again = Launcher(hosts(1, port, 3)).end()
    assert str(again.error).startswith("NODE_RANK=1 is taken.")
    third = Launcher(hosts(2, port, 3))
    assert [launcher.end().error for launcher in (first, second, third)] == [None] * 3


@pytest.mark.parametrize("node", [0, 1])
def test_waiting_ends(node):
    port = free_port()
    launcher = Launcher(hosts(node, port), join_s=0.5).end()
    assert isinstance(launcher.error, RankError)
    assert f"for node {1 - node}" in str(launcher.error)
    assert "--join_timeout waits longer" in str(launcher.error)


@contextmanager
def other_server(*, answers: bool) -> Iterator[int]:
    """A program that is not this one, listening on a port."""
    with socket.create_server((LOOPBACK, 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                if answers:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    connection.close()
                else:
                    kept.append(connection)

        kept: list[socket.socket] = []
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in kept:
            connection.close()
    # The interpreter cannot end while a thread is within the store's code.
    for asking in [one for one in threading.enumerate() if one.name == "ask"]:
        asking.join(30)


@pytest.mark.parametrize("answers", [True, False])
def test_a_port_at_which_something_else_listens_is_named(answers):
    with other_server(answers=answers) as port:
        taken = Launcher(hosts(0, port)).end()
        assert str(taken.error).startswith(f"Port {port} cannot be used on {LOOPBACK}. Another program uses it.")
        stranger = Launcher(hosts(1, port), answer_s=0.5).end()
        assert str(stranger.error).startswith(f"{LOOPBACK}:{port} answers, but not as node 0 of this program does.")
