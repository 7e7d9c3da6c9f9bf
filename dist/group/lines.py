"""A connection from every host's launcher to node 0's that carries nothing; the kernel closes it with a process.

So node 0 hears at once of a host that is gone, also while nothing is sent between the ranks. A cut cable closes
nothing: that shows in the missing signs of life (`dist/group/board.py`).
"""

from __future__ import annotations

import re
import select
import socket
import threading
from collections.abc import Callable

GOODBYE = b"."
LONGEST = 64
# What stands on the line of a launcher that said who it is, and no goodbye.
KILLED = re.compile(rb"(\d+)\n\Z")
CONNECT_S = 10.0


class Lines:
    """Node 0's ends, from the moment at which it listens at `port` of `address`."""

    def __init__(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, 0), family=family, backlog=512)
        self._watched = False
        self.port = int(self._listener.getsockname()[1])

    def watch(self, lost: Callable[[int], None]) -> None:
        """From now on call `lost(node)`, on a thread of its own, when a launcher is gone without a goodbye."""
        self._watched = True
        threading.Thread(target=self._watch, args=(lost,), name="lines", daemon=True).start()

    def close(self) -> None:
        """Listen no more; once there is a watch, it stays to the end of the process."""
        if not self._watched:
            self._listener.close()

    def _watch(self, lost: Callable[[int], None]) -> None:
        heard: dict[socket.socket, bytes] = {}
        while True:
            for ready in select.select([self._listener, *heard], [], [])[0]:
                if ready is self._listener:
                    heard[ready.accept()[0]] = b""
                    continue
                try:
                    data = ready.recv(LONGEST)
                except OSError:
                    data = b""
                if data and len(heard[ready]) < LONGEST:
                    heard[ready] += data
                    continue
                ready.close()
                if said := KILLED.match(heard.pop(ready)):
                    lost(int(said[1]))


class Line:
    """Another node's end. It stays open until `close`, or until this process dies."""

    def __init__(self, address: str, port: int, node: int) -> None:
        """Raises OSError."""
        self._socket = socket.create_connection((address, port), timeout=CONNECT_S)
        self._socket.sendall(b"%d\n" % node)

    def close(self) -> None:
        """This launcher ends in an orderly way, and has said what there is to say."""
        with self._socket:
            self._socket.sendall(GOODBYE)
