"""What the terminal costs the engine at 1,000 updates a second, and how fast it answers keys meanwhile.

    PYTHONPATH=. python tests/bench/bench_console.py [SECONDS]

A child on a real pseudo-terminal does fixed work once a millisecond, as an engine does between updates: without a
console, then with every update on the screen and in the status line. Meanwhile keys are pressed and waited for.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import pty
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

KEYS = "\u0430\u0431\u0432\u0433\u0434\u0435\u0436\u0437\u0438\u043a"  # letters that no frame holds
BLOCK, PASSES = 32, 8
RATE = 1000.0
TEXT = (
    "The quick brown fox jumps over the lazy dog, and then **once more** over it.\n\n- a bullet\n" * 200
).encode()


def decode(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def work(data: bytes) -> None:
    """What an engine does for one update; like a launch of kernels it lets other threads run meanwhile."""
    hashlib.sha256(data).digest()


def calibrated() -> bytes:
    """Data whose hashing takes about half of the time between two updates."""
    data, took = b"x" * 100_000, []
    for _ in range(200):
        began = time.perf_counter()
        work(data)
        took.append(time.perf_counter() - began)
    return b"x" * int(100_000 * 0.5 / RATE / min(took))  # the best: other work on the machine makes the others


def updates(count: int):  # type: ignore[no-untyped-def]
    from dist.protocol import BlockUpdate

    for number in range(count):
        block, iteration = divmod(number, PASSES)
        start = block * BLOCK % (len(TEXT) - BLOCK)
        ids = tuple(TEXT[start : start + BLOCK])
        exact = BLOCK * (iteration + 1) // PASSES
        done = iteration == PASSES - 1
        yield BlockUpdate(
            index=block,
            iteration=iteration + 1,
            token_ids=ids[:exact] + (63,) * (BLOCK - exact),
            changed=tuple(iteration == 0 or exact - 4 <= at < exact for at in range(BLOCK)),
            exact=exact,
            settled=BLOCK if done else 0,
        )


def child(seconds: float, out: Path) -> None:
    from chat.console.app import Console
    from chat.conversation.work import Made
    from chat.screen.draw import Palette, ReplyView
    from chat.terminal.streams import open_streams, session_mode

    streams = open_streams()
    palette = Palette.of(streams)
    data = calibrated()

    def run(show) -> tuple[float, float]:  # type: ignore[no-untyped-def]
        """Seconds that the updates take, by the clock and of this thread; each is due at its time."""
        made = list(updates(int(seconds * RATE)))
        spent, cpu = 0.0, time.thread_time()
        began = time.perf_counter()
        for number, update in enumerate(made):
            due = began + number / RATE
            time.sleep(max(0.0, due - time.perf_counter()))
            at = time.perf_counter()
            work(data)
            show(update)
            spent += time.perf_counter() - at
        return spent, time.thread_time() - cpu

    alone = run(lambda update: None)
    with session_mode(streams) as mode:
        console = Console(
            streams, commands=(), history_file=out.with_name("history"), complete=lambda _: (), mode=mode
        )
        console.start()
        console.set_busy(True)
        view = ReplyView(decode, console.width, console.height, palette)

        def show(update) -> None:  # type: ignore[no-untyped-def]
            frame = view.update(update)
            console.commit(frame.commit)
            console.show_live(frame.draw)
            made.take(update)
            console.set_status(" · ".join([*made.words(time.monotonic()), "Ctrl-C stops"]))

        made = Made(time.monotonic())
        console.set_status("ready")
        with_console = run(show)
        console.close()
    out.write_text(json.dumps({"alone": alone, "with": with_console, "updates": int(seconds * RATE)}))


class Keyboard:
    """The child's terminal: keys in, and what it writes looked through for them, which costs next to nothing."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environ = {**os.environ, "TERM": "xterm-256color", **env}
        self.process = subprocess.Popen(
            list(command), stdin=slave, stdout=slave, stderr=slave, env=environ, start_new_session=True
        )
        os.close(slave)

    def wait_for(self, wanted: bytes, seconds: float) -> bool:
        """Read until `wanted` has come; False if it does not, or the child ends."""
        deadline, seen = time.perf_counter() + seconds, b""
        while (left := deadline - time.perf_counter()) > 0:
            if not select.select([self._master], [], [], left)[0]:
                return False
            try:
                seen = seen[-len(wanted) :] + os.read(self._master, 65536)
            except OSError:  # the child has closed its terminal
                return False
            if wanted in seen:
                return True
        return False

    def answered(self, key: str) -> float | None:
        """Seconds until a key is on the screen; None if the child has ended."""
        began = time.perf_counter()
        os.write(self._master, key.encode())
        return time.perf_counter() - began if self.wait_for(key.encode(), 5) else None


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    if "BENCH_OUT" in os.environ:
        child(seconds, Path(os.environ["BENCH_OUT"]))
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result"
        root = Path(__file__).parents[2]
        env = {"PYTHONPATH": f"{root}", "BENCH_OUT": str(out), "XDG_STATE_HOME": folder}
        keyboard = Keyboard([sys.executable, __file__, str(seconds)], env)
        assert keyboard.wait_for(b"ready", 60 + seconds)
        waits: list[float] = []
        for key in itertools.cycle(KEYS):
            wait = keyboard.answered(key)
            if wait is None:
                break
            waits.append(wait)
            keyboard.wait_for(b"nothing", 0.03 + 0.04 * (len(waits) % 3))  # out of step with the frames
        keyboard.process.wait()
        result = json.loads(out.read_text())
    report(result, sorted(waits), seconds)


def report(result: dict[str, Any], waits: Sequence[float], seconds: float) -> None:
    clock, own = ((result["with"][at] - result["alone"][at]) / seconds for at in range(2))
    busy = ", ".join(f"{load:.1f}" for load in os.getloadavg()[:2])
    print(
        f"{result['updates']:,} updates in {seconds:.0f} s; the engine's own work "
        f"{result['alone'][0] / seconds:.1%}; load average {busy} on {os.cpu_count()} cores"
    )
    print(
        f"cost of the terminal: {clock:.1%} of the engine's time by the clock, {own:.1%} of its thread's CPU time"
    )
    late = sum(wait > 0.05 for wait in waits)
    print(
        f"keys: {len(waits)}, median {statistics.median(waits) * 1000:.1f} ms, "
        f"99 % within {waits[int(len(waits) * 0.99)] * 1000:.0f} ms, slowest {waits[-1] * 1000:.0f} ms, "
        f"{late} later than 50 ms"
    )


if __name__ == "__main__":
    main()
