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
        self.path = folder / str(os.getpid())
        self._saved = ""

    def save(self, text: str) -> bool:
        """Keep `text` if it has changed; the empty text leaves nothing behind. Whether the disk took it."""
        if text == self._saved:
            return True
        try:
            if text:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
                    file.write(text)
            else:
                self.path.unlink(missing_ok=True)
        except OSError:
            return False
        finally:
            self._saved = text
        return True

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
                if path != self.path:
                    path.unlink(missing_ok=True)
        return found


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() if pid != os.getpid() else False
