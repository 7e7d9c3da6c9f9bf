"""Start the whole program as a user does: run_chat.sh, real ranks, a real terminal, folders of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from pty_screen import PtyScreen

# The figures after a reply, in full or where there is little room; what is shown while it is made has none of it.
FIGURES = re.compile(r"tok/s(?: ·|,)?\s+first ")
ROOT = Path(__file__).resolve().parents[2]
READY_S = 120.0


def replied(count: int = 1) -> Callable[[PtyScreen], bool]:
    """Whether so many replies are there, with their figures."""
    return lambda screen: len(FIGURES.findall("\n".join(screen.scrollback))) == count


def tokens_made(screen: PtyScreen) -> int:
    """How many tokens of the reply in the making are finished, by the status line."""
    found = re.search(r"pass [\d,]+ · ([\d,]+) tokens? · ", screen.text)
    return int(found[1].replace(",", "")) if found else 0


def in_mid_reply(screen: PtyScreen) -> bool:
    """At least two blocks are finished, more are to come."""
    return tokens_made(screen) >= 8


def environment(home: Path, **more: str) -> dict[str, str]:
    """This Python first on the PATH, XDG folders below `home`, one thread a rank."""
    return {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("VIRTUAL_ENV", "CONDA", "XDG"))
        },
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "XDG_DATA_HOME": str(home / "data"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "OMP_NUM_THREADS": "1",
        "TERM": "xterm-256color",
        **more,
    }


def run_chat(
    home: Path, *arguments: str, stdin: str | None = None, timeout: float = READY_S
) -> subprocess.CompletedProcess[str]:
    """Run the program without a terminal, to its end."""
    return subprocess.run(
        ["bash", str(ROOT / "run_chat.sh"), *arguments],
        env=environment(home),
        input=stdin or "",
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def ranks_below(script: int) -> dict[int, int]:
    """{rank: process id} of what runs below a start script."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "environ").read_bytes().split(b"\0")
            command = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"DLLM_LAUNCHER_PID={script}".encode() in words and b"chat" in command:
            rank = next((int(word[5:]) for word in words if word.startswith(b"RANK=")), 0)
            found[rank] = int(path.name)
    return found


def listening(pid: int) -> list[str]:
    """The addresses that a process's TCP sockets listen on."""
    own = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            own.add(str(entry.readlink()))
        except OSError:
            continue
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in own:
                address, _, port = words[1].partition(":")
                shown = (
                    ".".join(str(byte) for byte in reversed(bytes.fromhex(address))) if name == "tcp" else address
                )
                found.append(f"{shown}:{int(port, 16)}")
    return found


class Chat(PtyScreen):
    """The program on a terminal, at its first prompt."""

    def __init__(
        self,
        home: Path,
        *arguments: str,
        wait: bool = True,
        command: Callable[..., list[str]] = lambda *words: list(words),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """`command` is handed the words that start the program, and may say where that is done."""
        self.home = home
        words = command("bash", str(ROOT / "run_chat.sh"), *arguments)
        super().__init__(words, columns=100, rows=30, env=environment(home, **(variables or {})), timeout=30.0)
        if wait:
            self.wait_for("/help lists the commands", READY_S)
            self.wait_for(re.compile("Alt-Enter new line|This line was not sent last time"))

    def say(self, line: str) -> None:
        """Type a line and send it."""
        self.type(line)
        self.send("\r")

    def ranks(self) -> dict[int, int]:
        """{rank: process id} of what runs below the start script."""
        return ranks_below(self.process.pid)

    def kill(self, rank: int) -> None:
        os.kill(self.ranks()[rank], signal.SIGKILL)

    def sessions(self) -> list[str]:
        """The journals' texts."""
        return [path.read_text() for path in (self.home / "state").glob("dllm-chat/sessions/*.jsonl")]
