"""Prompts made ready ahead: in order, whatever the threads do, and no further than is said."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from chat.batch.fitting import AHEAD, fit_ahead
from dist.errors import PromptError, UsageError


def jobs(count: int, taken: list[int], wrong: int | None = None) -> Iterator[Any]:
    """Two samples of each prompt; line `wrong` cannot be read."""
    for number in range(count):
        if number == wrong:
            raise UsageError("Line 8 is not JSON.")
        for sample in range(2):
            taken.append(number)
            yield SimpleNamespace(number=number, sample=sample)


def fit(job: Any) -> Any:
    time.sleep(random.random() / 1000)
    if job.number % 10 == 7:
        raise PromptError("Too long.")
    return SimpleNamespace(token_ids=(job.number, 1))


def decode(ids: Any) -> str:
    return " ".join(map(str, ids))


@pytest.mark.parametrize("threads", [False, True])
def test_prompts_come_in_order_with_all_their_samples(threads: bool) -> None:
    found = list(fit_ahead(jobs(300, []), fit, decode, threads=threads))
    assert [[job.number for job in group] for group, _ in found] == [[number] * 2 for number in range(300)]
    assert [isinstance(fitted, PromptError) for _, fitted in found] == [number % 10 == 7 for number in range(300)]
    assert found[42][1] == (SimpleNamespace(token_ids=(42, 1)), "42 1")


@pytest.mark.parametrize("threads", [False, True])
def test_a_wrong_line_is_raised_behind_all_that_stands_before_it(threads: bool) -> None:
    ahead = fit_ahead(jobs(300, [], wrong=8), fit, decode, threads=threads)
    assert [next(ahead)[0][0].number for _ in range(8)] == list(range(8))
    with pytest.raises(UsageError, match="Line 8"):
        next(ahead)


def test_no_more_is_read_than_a_few_prompts_ahead() -> None:
    taken: list[int] = []
    ahead = fit_ahead(jobs(1_000_000, taken), fit, decode, threads=True)
    for _ in range(50):
        next(ahead)
    assert max(taken) <= 50 + AHEAD + 1
    ahead.close()  # type: ignore[attr-defined]
