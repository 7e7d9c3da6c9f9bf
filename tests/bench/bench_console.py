"""What the terminal costs the engine at 1,000 updates a second, and how fast it answers keys meanwhile.

    PYTHONPATH=.:tests/support python tests/bench/bench_console.py [SECONDS]

A child on a real pseudo-terminal does fixed work once a millisecond, as an engine does between updates: without a
console, then with every update on the screen. Meanwhile keys are pressed and waited for.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

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
    data = b"x" * 100_000
    began = time.perf_counter()
    for _ in range(50):
        work(data)
    each = (time.perf_counter() - began) / 50
    return b"x" * int(100_000 * 0.5 / RATE / each)


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

        console.set_status("ready")
        with_console = run(show)
        console.close()
    out.write_text(json.dumps({"alone": alone, "with": with_console, "updates": int(seconds * RATE)}))


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    if "BENCH_OUT" in os.environ:
        child(seconds, Path(os.environ["BENCH_OUT"]))
        return
    from pty_screen import PtyScreen

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result"
        root = Path(__file__).parents[2]
        env = {"PYTHONPATH": f"{root}:{root}/tests/support", "BENCH_OUT": str(out), "XDG_STATE_HOME": folder}
        waits = []
        with PtyScreen([sys.executable, __file__, str(seconds)], env=env, timeout=60 + seconds) as screen:
            screen.wait_for("ready")
            word = ""
            while not out.exists() and screen.process.poll() is None:
                word = "" if len(word) > 30 else word
                if not word:
                    screen.send("\x15")
                key = chr(97 + len(waits) % 26)
                word += key
                began = time.perf_counter()
                screen.send(key)
                while f"› {word}" not in screen.text and screen.process.poll() is None:
                    time.sleep(0.0005)
                    if time.perf_counter() - began > 5:
                        break
                if screen.process.poll() is None:
                    waits.append(time.perf_counter() - began)
                time.sleep(0.1)
            screen.wait_end()
        result = json.loads(out.read_text())
    period = seconds
    clock, own = ((result["with"][at] - result["alone"][at]) / period for at in range(2))
    waits.sort()
    print(
        f"{result['updates']:,} updates in {period:.0f} s; the engine's own work {result['alone'][0] / period:.1%}"
    )
    print(
        f"cost of the terminal: {clock:.1%} of the engine's time by the clock, {own:.1%} of its thread's CPU time"
    )
    print(
        f"keys: {len(waits)}, median {statistics.median(waits) * 1000:.0f} ms, "
        f"95 % within {waits[int(len(waits) * 0.95)] * 1000:.0f} ms, slowest {waits[-1] * 1000:.0f} ms"
    )


if __name__ == "__main__":
    main()
