"""What each of the workers of a run has done, as it is shown."""

from __future__ import annotations

from chat.batch.shares import Shares


def test_each_worker_has_its_replies_tokens_and_seconds() -> None:
    now = 100.0
    shares = Shares(["rank 0", "ranks 1 to 2"], clock=lambda: now)
    assert not shares.begun
    shares.begin()
    assert shares.begun
    now += 2
    shares.add(0, 1000)
    shares.add(1, 3000)
    assert shares.text == "each copy 500 1,500"
    now += 2
    shares.add(0, 1)
    assert shares.lines() == [
        "all: 3 replies, 4,001 tokens in 4.00 s, 1,000 tokens/s",
        "rank 0: 2 replies, 1,001 tokens in 4.00 s, 250 tokens/s",
        "ranks 1 to 2: 1 reply, 3,000 tokens in 2.00 s, 1,500 tokens/s",
    ]


def test_one_model_on_all_ranks_has_one_line() -> None:
    shares = Shares(["all ranks"], clock=lambda: 1.0)
    assert shares.text == ""
    assert shares.lines() == ["all: 0 replies, 0 tokens in 0.00 s, 0 tokens/s"]
