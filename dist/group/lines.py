"""A connection from every host's launcher to node 0's, for last words only; the kernel closes it when either dies.

So each side hears at once when the other is gone, also while nothing is sent between the ranks. A cut cable closes
nothing: that shows in the missing signs of life (`dist/group/board.py`).
"""

from __future__ import annotations

import re
import select
import socket
import threading
from collections.abc import Callable

# A launcher that ends in an orderly way says this, or why; one that is killed says nothing.
GOODBYE = "."
LONGEST = 1024
NODE = re.compile(r"(\d+)\n")
CONNECT_S = 10.0


class Lines:
    """Node 0's ends, from the moment at which it listens at `port` of `address`."""

    def __init__(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, 0), family=family, backlog=512)
        self.port = int(self._listener.getsockname()[1])
        self._heard: dict[socket.socket, bytes] = {}
        self._watched = False

    def watch(self, lost: Callable[[int], None]) -> None:
        """From now on call `lost(node)`, on a thread of its own, when a launcher is gone without a goodbye."""
        self._watched = True
        threading.Thread(target=self._watch, args=(lost,), name="lines", daemon=True).start()

    def close(self, why: str = GOODBYE) -> None:
        """This launcher ends in an orderly way; `why` is for those who do not know otherwise."""
        if not self._watched:
            self._listener.close()
        for line in tuple(self._heard):
            _say(line, why)

    def _watch(self, lost: Callable[[int], None]) -> None:
        heard = self._heard
        while True:
            for ready in select.select([self._listener, *heard], [], [])[0]:
                if ready is self._listener:
                    heard[ready.accept()[0]] = b""
                elif data := _receive(ready):
                    heard[ready] += data
                else:
                    ready.close()
                    said = NODE.fullmatch(heard.pop(ready).decode(errors="replace"))
                    if said:
                        lost(int(said[1]))


class Line:
    """Another node's end. It stays open until `close`, or until this process dies."""

    def __init__(self, address: str, port: int, node: int) -> None:
        """Raises OSError."""
        self._socket = socket.create_connection((address, port), timeout=CONNECT_S)
        self._socket.settimeout(None)
        self._socket.sendall(f"{node}\n".encode())

    def watch(self, ended: Callable[[str], None]) -> None:
        """From now on call `ended(why)`, on a thread of its own, when node 0's launcher ends.

        `why` is its last word, GOODBYE or more; empty if it was killed.
        """
        threading.Thread(target=self._watch, args=(ended,), name="line", daemon=True).start()

    def close(self) -> None:
        """This launcher ends in an orderly way, and has said elsewhere what there is to say."""
        with self._socket:
            _say(self._socket, GOODBYE)

    def _watch(self, ended: Callable[[str], None]) -> None:
        heard = b""
        while data := _receive(self._socket):
            heard += data
        ended(heard.decode(errors="replace"))


def _receive(line: socket.socket) -> bytes:
    """What comes next; nothing at the end."""
    try:
        return line.recv(LONGEST)
    except OSError:
        return b""


def _say(line: socket.socket, text: str) -> None:
    try:
        line.sendall(text.encode()[:LONGEST])
    except OSError:
        return  # nobody is there any more
