"""Hosts for tests: network namespaces of this machine, joined by virtual cables. Needs root, or says why it cannot.

Each has a host name of its own, which stands for a loopback address in its /etc/hosts, as on Debian. Nothing leaves
the machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType

NETWORK, NETWORK_6 = "10.231.77", "fd77"


def obstacle() -> str | None:
    """Why this machine allows no network namespaces, or None."""
    for tool in ("ip", "unshare", "hostname"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    name = f"dllm-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return None


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Hosts:
    """`count` hosts on one cable (a bridge in a namespace of its own). A context manager."""

    def __init__(self, count: int = 2) -> None:
        self._mark = f"dllm{os.getpid()}"
        self._switch = f"{self._mark}-switch"
        self.names = [f"host{letter}" for letter in "abcdefg"[:count]]
        self.spaces = [f"{self._mark}-{name}" for name in self.names]
        self._slow: subprocess.Popen[str] | None = None
        self.addresses = [f"{NETWORK}.{number}" for number in range(1, count + 1)]

    def __enter__(self) -> Hosts:
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")
        for number, (name, space, address) in enumerate(zip(self.names, self.spaces, self.addresses)):
            folder = Path("/etc/netns") / space
            folder.mkdir(parents=True)
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
            _ip("netns", "add", space)
            _ip("-n", space, "link", "set", "lo", "up")
            _ip(
                "-n", space, "link", "add", "cable0", "type", "veth", "peer", f"port{number}", "netns", self._switch
            )
            _ip("-n", self._switch, "link", "set", f"port{number}", "master", "bridge", "up")
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", "cable0")
            _ip("-n", space, "addr", "add", f"{NETWORK_6}::{number + 1}/64", "dev", "cable0", "nodad")
            _ip("-n", space, "link", "set", "cable0", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._slow is not None:
            self._slow.kill()
            self._slow.wait()
        for space in (*self.spaces, self._switch):
            subprocess.run(["ip", "netns", "del", space], capture_output=True)
            shutil.rmtree(Path("/etc/netns") / space, ignore_errors=True)

    def command(self, host: int, *words: str) -> list[str]:
        """The command that runs `words` on a host."""
        renamed = f'hostname {self.names[host]}; exec "$@"'
        return ["ip", "netns", "exec", self.spaces[host], "unshare", "--uts", "bash", "-c", renamed, "bash", *words]

    def variables(self, host: int, *, master: str = "", port: int = 29400) -> dict[str, str]:
        """What the start script is given on a host; `master` is node 0's address by default."""
        return {
            "NNODES": str(len(self.names)),
            "NODE_RANK": str(host),
            "MASTER_ADDR": master or self.addresses[0],
            "MASTER_PORT": str(port),
        }

    def kill_all(self, host: int) -> None:
        """Kill all that runs on a host, at once."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.spaces[host]], check=True, capture_output=True, text=True
        )
        for pid in listed.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def cut(self, host: int) -> None:
        """Pull a host's cable: what is sent is lost without a word."""
        _ip("-n", self._switch, "link", "set", f"port{host}", "down")

    def slow_down(self, host: int, milliseconds: int) -> None:
        """Let everything that a host sends and receives take so long: its cable is led through a program."""
        words = [sys.executable, str(Path(__file__).with_name("slow_cable.py")), str(milliseconds)]
        self._slow = subprocess.Popen(
            ["ip", "netns", "exec", self._switch, *words], stdout=subprocess.PIPE, text=True
        )
        assert self._slow.stdout is not None
        with self._slow.stdout as said:
            assert said.readline() == "ready\n"
        # host -- port -- [second bridge -- left] program [right -- bridge] -- the others
        _ip("-n", self._switch, "link", "add", "second", "type", "bridge")
        for name, bridge in ((f"port{host}", "second"), ("left", "second"), ("right", "bridge")):
            _ip("-n", self._switch, "link", "set", name, "master", bridge, "up")
        _ip("-n", self._switch, "link", "set", "second", "up")

    def round_trip(self, host: int, other: int) -> float:
        """Milliseconds from one host to another and back, by a TCP connection that is refused."""
        code = (
            "import socket, sys, time; began = time.perf_counter(); s = socket.socket()\n"
            "try: s.connect((sys.argv[1], 9))\n"
            "except ConnectionRefusedError: print((time.perf_counter() - began) * 1000)"
        )
        words = [sys.executable, "-c", code, self.addresses[other]]
        ran = subprocess.run(self.command(host, *words), check=True, capture_output=True, text=True)
        return float(ran.stdout)

    def listening(self, host: int) -> list[str]:
        """The addresses that TCP sockets of a host listen on."""
        listed = subprocess.run(
            ["ip", "netns", "exec", self.spaces[host], "cat", "/proc/net/tcp", "/proc/net/tcp6"],
            check=True,
            capture_output=True,
            text=True,
        )
        return [line.split()[1] for line in listed.stdout.splitlines() if " 0A " in line]
