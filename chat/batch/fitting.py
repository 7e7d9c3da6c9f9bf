"""Prompts as token ids, made ready ahead of their use on threads of their own. Knows no engine and no results."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from chat.batch.jobs import Job
from chat.text.prompt import FittedPrompt
from chat.text.transcript import Transcript
from dist.errors import ChatError, PromptError

# So many prompts are ready, or being made so, before they are asked for: a batch for each of a few GPUs.
AHEAD = 256
THREADS = 8

# All samples of a prompt, and the prompt with the text of its tokens, or why it does not fit.
Fitted = tuple[tuple[Job, ...], "tuple[FittedPrompt, str] | PromptError"]


def fit_ahead(
    jobs: Iterable[Job],
    fit: Callable[[Job], FittedPrompt],
    decode: Callable[[Sequence[int]], str],
    *,
    threads: bool,
) -> Iterator[Fitted]:
    """The jobs in their order, a prompt's together. A line that is wrong raises when all before it are through.

    With `threads`, `fit` is called on several at a time, but for the first: what it changes, it changes then.
    """
    groups = _by_prompt(jobs)

    def outcome(group: tuple[Job, ...]) -> Fitted:
        try:
            fitted = fit(group[0])
        except PromptError as error:
            return group, error
        return group, (fitted, decode(fitted.token_ids))

    if not threads:
        yield from map(outcome, groups)
        return
    first = [*map(outcome, islice(groups, 1))]
    pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
    try:
        yield from _in_order(first, groups, lambda group: pool.submit(outcome, group))
    finally:
        # A run that is cancelled does not wait for prompts that nobody will answer.
        pool.shutdown(wait=False, cancel_futures=True)


def _by_prompt(jobs: Iterable[Job]) -> Iterator[tuple[Job, ...]]:
    """Jobs of the same prompt together. Those before a line that cannot be read come before its error."""
    group: list[Job] = []
    try:
        for job in jobs:
            if group and job.number != group[0].number:
                yield tuple(group)
                group.clear()
            group.append(job)
    except ChatError:
        if group:
            yield tuple(group)
        raise
    if group:
        yield tuple(group)


def _in_order(
    first: Sequence[Fitted],
    groups: Iterator[tuple[Job, ...]],
    begin: Callable[[tuple[Job, ...]], Future[Fitted]],
) -> Iterator[Fitted]:
    """The first ones, and the others as they are begun: before the first is handed out."""
    begun: deque[Future[Fitted]] = deque()
    wrong: ChatError | None = None
    ready = deque(first)
    while True:
        try:
            while wrong is None and len(begun) < AHEAD and (group := next(groups, None)) is not None:
                begun.append(begin(group))
        except ChatError as error:
            wrong = error
        if not ready and not begun:
            break
        yield ready.popleft() if ready else begun.popleft().result()
    if wrong is not None:
        raise wrong


def transcript_of(job: Job, system: str | None) -> Transcript:
    """The prompt's messages, under `system` where they bring no system message themselves."""
    transcript = job.prompt.transcript
    return transcript if not system or transcript.system else transcript.with_system(system)
