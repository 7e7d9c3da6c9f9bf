"""How a process ended, in words, from its exit status. Knows no rank."""

from __future__ import annotations

import signal
from pathlib import Path

# Where /proc/PID/stat holds the exit status, counted from the field behind the name.
EXIT_STATUS_FIELD = 49
HINTS = {
    signal.SIGKILL: "out of memory?",
    signal.SIGSEGV: "a crash in a library",
    signal.SIGABRT: "a crash in a library",
    signal.SIGBUS: "out of shared memory?",
}


def in_words(code: int) -> str:
    """`code` as `subprocess` gives it: the exit code, or less 0 the signal that ended the process."""
    if code >= 0:
        return f"exited with code {code} without an error message"
    try:
        number = signal.Signals(-code)
    except ValueError:
        return f"killed (signal {-code})"
    hint = HINTS.get(number)
    return f"killed ({number.name})" + (f"; {hint}" if hint else "")


def as_sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def of_zombie(pid: int) -> int | None:
    """The exit code of a process that has ended, or None once its parent has taken note."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    if state not in "ZX" or len(fields) < EXIT_STATUS_FIELD:
        return None
    status = int(fields[EXIT_STATUS_FIELD - 1])
    return -(status & 0x7F) if status & 0x7F else status >> 8
