"""The progress line: what it says, and how seldom it is drawn."""

from __future__ import annotations

import io

from chat.batch.progress import Progress


def test_it_tells_replies_tokens_a_second_and_the_time_left() -> None:
    now = 100.0
    progress = Progress(io.StringIO(), 1_000_010, 10, shows=True, clock=lambda: now)
    assert progress.text(0) == "10/1000010 replies"
    now += 2
    progress.tokens(3000, 0)
    assert progress.text(0) == "10/1000010 replies, 1,500 tokens/s"
    for _ in range(500):
        progress.step(1)
    # Of the replies of an earlier run nothing is known but that they are there.
    assert progress.text(1) == "510/1000010 replies, 1,500 tokens/s, 1:06:38 left, 1 failed"


def test_a_million_replies_do_not_draw_it_a_million_times() -> None:
    now, screen = 0.0, io.StringIO()
    progress = Progress(screen, 10_000, 0, shows=True, clock=lambda: now)
    for _ in range(10_000):
        now += 1e-4
        progress.step(0)
    assert 5 < screen.getvalue().count("\r") < 20
    assert screen.getvalue().endswith("10000/10000 replies, 0:00 left")
