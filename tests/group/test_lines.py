"""Node 0 hears of a launcher that is killed, and not of one that says goodbye."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
from pathlib import Path

from dist.group.lines import Line, Lines

ROOT = Path(__file__).resolve().parents[2]
HOLD = (
    "import sys, time; from dist.group.lines import Line; line = Line('127.0.0.1', int(sys.argv[1]), 2); print(1); "
)


def test_a_killed_launcher_is_heard_of_at_once_and_a_goodbye_is_not_a_loss():
    lines = Lines("127.0.0.1")
    lost: queue.SimpleQueue[int] = queue.SimpleQueue()
    lines.watch(lost.put)
    Line("127.0.0.1", lines.port, 1).close()
    child = subprocess.Popen(
        [sys.executable, "-uc", HOLD + "time.sleep(600)", str(lines.port)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == b"1\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert lost.get(timeout=20) == 2
    assert lost.empty()
