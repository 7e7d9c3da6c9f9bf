"""A small child that puts the terminal back when its parent dies by any means. Knows the mode and no text."""

from __future__ import annotations

import subprocess
from contextlib import suppress

# Attributes off, autowrap and cursor on, bracketed paste off, what stood below erased: a shell can go on from here.
RESET_CODES = "\\033[0m\\033[?7h\\033[?25h\\033[?2004l\\r\\n\\033[J"

GUARD_SCRIPT = """
trap '' HUP INT QUIT TERM TSTP PIPE
read -r word || word=
[ "$word" = done ] && exit 0
stty "$1" <&1
printf '%b' "$2"
"""


class Guard:
    """A small shell child that puts the terminal back if this process dies by any means.

    It holds the terminal and the mode found at the start, waits on a pipe and ends with it. `close` says
    that all is in order.
    """

    def __init__(self, fd: int) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        try:
            mode = subprocess.run(
                ["stty", "-g"], stdin=fd, capture_output=True, check=True, text=True
            ).stdout.strip()
            self._child = subprocess.Popen(
                ["/bin/sh", "-c", GUARD_SCRIPT, "dllm-chat-guard", mode, RESET_CODES],
                stdin=subprocess.PIPE,
                stdout=fd,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        except (OSError, subprocess.CalledProcessError):
            return  # no stty, or no terminal: nothing to guard

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    def close(self) -> None:
        if self._child is None:
            return
        with suppress(OSError, subprocess.TimeoutExpired):
            self._child.communicate(b"done\n", timeout=2)
        self._child = None


def start_guard(fd: int) -> Guard:
    """Start the guard of the terminal `fd`; call before the mode is changed."""
    return Guard(fd)
