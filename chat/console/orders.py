"""What other threads want done on the console's, in order. Knows no screen and no keys."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

Order = Callable[[], None]


class Orders:
    """Orders from any thread, carried out on the console's by `carry_out`; its loop is woken once for many.

    Until `attach` they only gather.
    """

    def __init__(self) -> None:
        self._waiting: deque[Order] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bell: asyncio.Event | None = None
        self._rung = False

    def add(self, order: Order) -> None:
        """From any thread; does not wait."""
        self._waiting.append(order)
        loop, bell = self._loop, self._bell
        if loop is not None and bell is not None and not self._rung:
            self._rung = True  # waking the loop costs more than an order
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(bell.set)

    def carry_out(self) -> None:
        """All that there are, the first one first."""
        while self._waiting:
            self._waiting.popleft()()

    # On the console's thread.

    def attach(self) -> None:
        """Wake the loop that is running from now on, first of all for what has gathered."""
        self._bell = asyncio.Event()
        self._bell.set()
        self._loop = asyncio.get_running_loop()

    async def come(self) -> None:
        """Wait until there are some."""
        assert self._bell is not None
        await self._bell.wait()

    def take_note(self) -> None:
        """Those that come from now on wake the loop again; to be called before the others are carried out."""
        assert self._bell is not None
        self._bell.clear()
        self._rung = False
