"""Brings files into the page cache while the program is busy otherwise. Knows no checkpoint.

A start spends seconds on importing libraries, in which a disk has nothing to do.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

from dist.model.memory import host_free

CALL_BYTES = 64 << 20


def prefetch(paths: Sequence[Path]) -> threading.Thread:
    """Read the files in a thread, as far as half of the host's free memory holds them.

    It ends quietly where a file cannot be read: whoever needs the bytes will say so.
    """
    thread = threading.Thread(target=_read, args=(paths, host_free() // 2), name="prefetch", daemon=True)
    thread.start()
    return thread


def _read(paths: Sequence[Path], room: int) -> None:
    try:
        with Path(os.devnull).open("wb", buffering=0) as nowhere:
            for path in paths:
                with path.open("rb", buffering=0) as file:
                    # Neither copies the bytes nor holds the interpreter, as reading them would.
                    while room > 0 and (sent := os.sendfile(nowhere.fileno(), file.fileno(), None, CALL_BYTES)):
                        room -= sent
    except OSError:
        return
