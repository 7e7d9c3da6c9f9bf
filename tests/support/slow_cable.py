"""A cable that takes its time, for kernels without netem: frames pass through this program, each some later.

    python slow_cable.py MILLISECONDS

Makes the taps `left` and `right` in the network namespace that it runs in, says "ready", and carries frames both
ways until it is ended. No frame is lost or reordered; at most QUEUED wait in each direction.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

TUNSETIFF = 0x400454CA
TAP, WITHOUT_HEADER = 0x0002, 0x1000
FRAME, QUEUED = 65536, 20_000


def tap(name: str) -> int:
    """A new virtual network card, by its other end."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", name.encode(), TAP | WITHOUT_HEADER))
    return file


def main() -> None:
    delay = float(sys.argv[1]) / 1000
    ends = [tap("left"), tap("right")]
    print("ready", flush=True)
    waiting: dict[int, deque[tuple[float, bytes]]] = {end: deque() for end in ends}
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    while True:
        due = [queue[0][0] for queue in waiting.values() if queue]
        wait = max(0.0, min(due) - time.monotonic()) if due else None
        for end in select.select(ends, [], [], wait)[0]:
            try:
                frame = os.read(end, FRAME)
            except BlockingIOError:
                continue
            except OSError:  # the card is not up yet
                time.sleep(0.01)
                continue
            if len(waiting[other[end]]) < QUEUED:
                waiting[other[end]].append((time.monotonic() + delay, frame))
        for end, queue in waiting.items():
            while queue and queue[0][0] <= time.monotonic():
                try:
                    os.write(end, queue[0][1])
                except BlockingIOError:
                    break
                except OSError:  # nobody is there: as with a cable that is not plugged in
                    pass
                queue.popleft()


if __name__ == "__main__":
    main()
