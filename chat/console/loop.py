"""The thread that reads keys and draws: it paints when asked and lives on after a fault. Knows no key's meaning."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from prompt_toolkit.application import Application

from chat.console.keyboard import GuardedKeys
from chat.console.orders import Orders
from chat.console.painter import Painter

FRAME_SECONDS = 0.05
TICK_SECONDS = 0.2
# How long a frame may keep the interpreter from the engine's thread: by default 5 ms, twenty times a second.
SWITCH_SECONDS = 0.0001
MAX_FAULTS, FAULT_SECONDS = 20, 2.0


class Loop:
    """Runs one application on a thread of its own; all but `start`, `join` and `alive` belongs to that thread.

    `on_tick` is called a few times a second, `on_fault` with what is to be said of a fault that was survived, and
    `on_end` with the error that ended the thread.
    """

    def __init__(
        self,
        app: Application[None],
        orders: Orders,
        painter: Painter,
        *,
        on_tick: Callable[[], None],
        on_fault: Callable[[str], None],
        on_end: Callable[[BaseException], None],
    ) -> None:
        app.key_processor = GuardedKeys(app.key_processor._bindings, self._on_fault)
        self._app = app
        self._orders = orders
        self._painter = painter
        self._on_tick = on_tick
        self._say_fault = on_fault
        self._on_end = on_end
        self._after_paint: list[Callable[[], None]] = []
        self._last_paint = 0.0
        self._running = threading.Event()
        self._failure: BaseException | None = None
        self._faults: deque[float] = deque(maxlen=MAX_FAULTS)
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)

    def start(self) -> None:
        """Returns once keys are read, or that has failed."""
        sys.setswitchinterval(SWITCH_SECONDS)
        self._thread.start()
        self._running.wait()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        """Wait for the thread's end."""
        if self._thread.is_alive():
            self._thread.join()

    def after_paint(self, call: Callable[[], None]) -> None:
        """Call once what was ordered so far is on the screen."""
        self._after_paint.append(call)

    @property
    def running(self) -> bool:
        """Whether keys are read."""
        return self._app.is_running and not self._app.is_done

    def exit(self) -> None:
        """End the application, if it runs."""
        if self.running:
            self._app.exit()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001  (the edge of the thread: handed to the main thread)
            self._failure = error
        finally:
            self._running.set()
        if self._failure is not None:
            self._on_end(self._failure)

    async def _main(self) -> None:
        self._orders.attach()
        asyncio.get_running_loop().set_exception_handler(self._on_exception)

        def ready() -> None:
            self._app.create_background_task(self._paint_when_asked())
            self._app.create_background_task(self._tick())
            self._running.set()

        await self._app.run_async(pre_run=ready, handle_sigint=False, set_exception_handler=False)

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something that runs beside the keys failed: a completion, a drawing. The line lives on if it can."""
        error = context.get("exception") or RuntimeError(str(context.get("message")))
        self._on_fault(error) if isinstance(error, Exception) else self._fail(error)

    def _on_fault(self, error: Exception) -> None:
        """Log a fault and say it in one line; too many in a row end the console."""
        now = time.monotonic()
        self._faults.append(now)
        print("".join(traceback.format_exception(error)), file=sys.stderr, flush=True)
        if len(self._faults) == MAX_FAULTS and now - self._faults[0] < FAULT_SECONDS:
            self._fail(error)
            return
        self._say_fault(f"That key failed ({type(error).__name__}: {error}). The line is kept; the log has more.")
        self._app.invalidate()

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        self.exit()

    async def _paint_when_asked(self) -> None:
        while True:
            await self._orders.come()
            await asyncio.sleep(max(0.0, self._last_paint + FRAME_SECONDS - time.monotonic()))
            self._orders.take_note()
            try:
                self._paint()
            except Exception as error:  # noqa: BLE001  (the edge of the thread: handed to the main thread)
                self._fail(error)
                return

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._on_tick()

    def _paint(self) -> None:
        """Carry out all orders and show what came of them."""
        self._orders.carry_out()
        if self._app.is_done:
            return
        self._painter.paint()
        self._last_paint = time.monotonic()
        while self._after_paint:
            self._after_paint.pop()()
