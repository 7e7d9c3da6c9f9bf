"""The line that is being typed, kept on disk: a program that was killed leaves it to the next. Knows no keys.

One file for each running program, named by its process; whoever finds one whose process is gone takes it over.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


class Draft:
    """The draft of this process in `folder`. A disk that fails is no error."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own = folder / str(os.getpid())
        self._saved = ""

    def save(self, text: str) -> None:
        """Keep `text` if it has changed; the empty text leaves nothing behind."""
        if text == self._saved:
            return
        with suppress(OSError):
            if text:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                descriptor = os.open(self._own, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
                    file.write(text)
            else:
                self._own.unlink(missing_ok=True)
        self._saved = text

    def take_over(self) -> str:
        """The newest draft that a process left behind, "" if there is none; it is this process's from now on."""
        found = ""
        with suppress(OSError):
            left = [path for path in self._folder.iterdir() if path.name.isdigit() and not _runs(int(path.name))]
            left.sort(key=lambda path: path.stat().st_mtime, reverse=True)
            for path in left:
                found = found or path.read_text(encoding="utf-8", errors="replace")
            self.save(found)
            for path in left:
                if path != self._own:
                    path.unlink(missing_ok=True)
        return found


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() if pid != os.getpid() else False
