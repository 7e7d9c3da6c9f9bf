"""From the jobs of a run to turns, and from what comes of these to records. Knows no ranks and no files."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol

from chat.batch.jobs import Circumstances, Job, derive_seed
from chat.batch.output import Output
from chat.batch.records import Record, answered, failed
from chat.text.prompt import fit
from chat.text.stops import held_back
from chat.text.tokenizer import ChatTokenizer
from chat.text.trace import Trace
from chat.text.transcript import Transcript
from dist.errors import ChatError, PromptError
from dist.protocol import BlockUpdate, Control, Event, Reply, Turn
from dist.settings import GenerationSettings

# How far prompts may be begun before an earlier one is answered: so many results wait in memory at most.
MOST_AHEAD = 4096
# How many times as many prompts an engine gets as it decodes together: a row that ends is filled with the next one.
ROUNDS = 4

Poll = Callable[[], Control]


class TurnAnswerer(Protocol):
    """What is needed of the engine."""

    max_positions: int | None

    @property
    def slow_notice(self) -> str | None: ...

    def answer(self, turn: Turn, poll: Poll) -> Iterator[Event]: ...

    def rows_that_fit(self, tokens: int, block: int) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A prompt that fits, ready to be sent."""

    job: Job
    token_ids: tuple[int, ...]
    begun: tuple[int, ...]
    seed: int | None


class Batch:
    """The prompts of one turn, and what has come of them. `turn` is what an engine is to answer."""

    def __init__(self, turn: Turn, asked: Sequence[Asked], rows: Sequence[Row]) -> None:
        self.turn = turn
        self.rows = rows
        self.waiting = dict(enumerate(asked))


# What comes of a batch: an event, the engine's refusal of the whole of it, or None once it is answered.
Outcome = Event | PromptError | None


class Workers(Protocol):
    """Engines that answer batches side by side; `count` of them."""

    count: int

    def work(self, next_batch: Callable[[], Batch | None], poll: Poll) -> Iterator[tuple[Batch, Outcome]]:
        """Answer batches until `next_batch` gives none any more; each batch's last outcome is a refusal or None."""
        ...


class OneWorker:
    """This process's engine: one batch after the other."""

    count = 1

    def __init__(self, engine: TurnAnswerer) -> None:
        self._engine = engine

    def work(self, next_batch: Callable[[], Batch | None], poll: Poll) -> Iterator[tuple[Batch, Outcome]]:
        while (batch := next_batch()) is not None:
            try:
                for event in self._engine.answer(batch.turn, poll):
                    yield batch, event
            except PromptError as error:
                yield batch, error
            else:
                yield batch, None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """How the prompts of a run are to be answered.

    system      for prompts that bring no system message themselves
    trace       whether every pass is recorded
    batch_size  prompts decoded together; None: as many as fit
    shared      what all records hold
    """

    tokenizer: ChatTokenizer
    settings: GenerationSettings
    use_template: bool
    system: str | None
    trace: bool
    batch_size: int | None
    shared: Circumstances


class Answerer:
    """Makes the records of jobs, in batches as workers become free, in the order of the jobs."""

    def __init__(
        self, engine: TurnAnswerer, workers: Workers, task: Task, output: Output, stop: Callable[[], bool]
    ) -> None:
        self._engine = engine
        self._workers = workers
        self._task = task
        self._output = output
        self._stop = stop
        self._slow_notice = engine.slow_notice
        self._again: deque[list[Asked]] = deque()
        self._next: Asked | None = None
        self._wrong: ChatError | None = None
        self._undone = 0
        self._fitting: Iterator[Asked] = iter(())

    def answer_all(self, jobs: Iterable[Job], count: int) -> None:
        """Answer the jobs, `count` of them, until all are or the run is to stop."""
        self._undone = count
        self._fitting = self._those_that_fit(jobs)
        for batch, outcome in self._workers.work(self._next_batch, self._control):
            self._take(batch, outcome)

    def _control(self) -> Control:
        return Control(settings=self._task.settings, cancel=self._stop())

    def _next_batch(self) -> Batch | None:
        """What the next free worker is to answer, None if there is nothing at present. Raises ChatError."""
        # That prompts cannot be read together, say, is found out when the first ones are.
        if self._engine.slow_notice not in (None, self._slow_notice):
            self._slow_notice = self._engine.slow_notice
            self._output.say(self._slow_notice)
        if self._output.cancelled or self._stop():
            return None
        if self._again:
            again = self._again.popleft()
            return self._batch(again, self._most_together(again))
        # Of few prompts each worker gets its share.
        share = -(-self._undone // self._workers.count)
        asked: list[Asked] = []
        together = 1
        while (one := self._peek()) is not None:
            ahead = one.job.place - self._output.written >= MOST_AHEAD
            if asked and (ahead or len(asked) >= share):
                break
            if ahead and self._workers.count > 1:
                return None
            fitting = self._most_together([*asked, one])
            # A long prompt leaves room for fewer beside it: it begins the next turn.
            if asked and len(asked) >= (fitting if fitting < together else _most_in_turn(fitting)):
                break
            together = fitting
            asked.append(one)
            self._next = None
        if not asked and self._wrong is not None:
            raise self._wrong
        return self._batch(asked, together) if asked else None

    def _put(self, job: Job, record: Record) -> None:
        self._undone -= 1
        self._output.put(job, record)

    def _peek(self) -> Asked | None:
        """The next prompt to send, which stays the next one."""
        if self._next is None:
            try:
                self._next = next(self._fitting, None)
            except ChatError as error:  # a line that is wrong; what stands before it is answered first
                self._wrong = error
        return self._next

    def _those_that_fit(self, jobs: Iterable[Job]) -> Iterator[Asked]:
        """The jobs whose prompts fit; those that don't become results at once."""
        task = self._task
        for _, group in groupby(jobs, key=lambda job: job.number):
            samples = tuple(group)
            try:
                fitted = fit(
                    transcript_of(samples[0], task.system),
                    task.tokenizer,
                    task.settings,
                    self._engine.max_positions,
                    use_template=task.use_template,
                    refuse=True,
                )
            except PromptError as error:
                for job in samples:
                    self._put(job, failed(job, error, self._seed(job), task.shared))
            else:
                for job in samples:
                    yield Asked(job=job, token_ids=fitted.token_ids, begun=fitted.begun, seed=self._seed(job))

    def _most_together(self, asked: Sequence[Asked]) -> int:
        if self._task.batch_size is not None:
            return self._task.batch_size
        settings = self._task.settings
        longest = max(len(one.token_ids) for one in asked) + settings.max_new_tokens
        return self._engine.rows_that_fit(min(longest, settings.max_length), settings.add_eos_length + 1)

    def _seed(self, job: Job) -> int | None:
        seed = self._task.settings.seed
        return None if seed is None else derive_seed(seed, job.sample)

    def _batch(self, asked: Sequence[Asked], together: int) -> Batch:
        task = self._task
        own = tuple(replace(task.settings, seed=one.seed) for one in asked)
        turn = Turn(
            prompts=tuple(one.token_ids for one in asked),
            settings=task.settings,
            placeholder=task.tokenizer.eos_id,
            stop_ids=task.tokenizer.stop_ids,
            trace=task.trace,
            row_settings=own if task.settings.samples else None,
            together=together,
            logprobs=task.settings.logprobs,
            begun=tuple(one.begun for one in asked) if task.settings.prefill else (),
        )
        return Batch(turn, asked, [Row(one.job, task, self._output, one.begun) for one in asked])

    def _take(self, batch: Batch, outcome: Outcome) -> None:
        if isinstance(outcome, BlockUpdate):
            batch.rows[outcome.row].take(outcome)
        elif isinstance(outcome, Reply):
            one = batch.waiting.pop(outcome.row)
            batch.rows[outcome.row].ended(outcome)
            record = answered(one.job, one.token_ids, outcome, one.seed, self._task.tokenizer, self._task.shared)
            self._put(one.job, batch.rows[outcome.row].add_to(record))
        elif isinstance(outcome, PromptError):
            self._refused(batch, outcome)
        elif outcome is None and batch.waiting:
            raise ChatError(f"{len(batch.waiting)} prompts of a turn got no reply.")

    def _refused(self, batch: Batch, error: PromptError) -> None:
        """An engine has refused a turn: each half of it is tried again, down to the prompt that is to blame."""
        left = list(batch.waiting.values())
        if len(batch.turn.prompts) == 1:
            self._put(left[0].job, failed(left[0].job, error, left[0].seed, self._task.shared))
            return
        half = -(-len(left) // 2)
        self._again.extend(part for part in (left[:half], left[half:]) if part)


class Row:
    """A reply while it is made: its trace, and its text as far as it is finished."""

    def __init__(self, job: Job, task: Task, output: Output, begun: tuple[int, ...]) -> None:
        self._job = job
        self._tokenizer = task.tokenizer
        self._output = output
        self._trace = Trace(self._tokenizer.decode) if task.trace else None
        self._stops = task.settings.stop
        self._finished = begun

    def take(self, update: BlockUpdate) -> None:
        if self._trace is not None:
            self._trace.take(update)
            self._output.trace(self._job, self._trace)
        if update.settled:
            self._finished += update.settled_ids
            self._output.tokens(len(update.settled_ids))
            if update.finish != "stop":  # what ended it is no part of its text
                self._output.so_far(self._so_far)

    def _so_far(self) -> str:
        text = self._tokenizer.decode(self._finished)
        return text[: len(text) - held_back(text, self._stops)]

    def ended(self, reply: Reply) -> None:
        """The whole of it is there, of which another process may have sent no parts."""
        self._output.tokens(max(0, len(reply.token_ids) - len(self._finished)))

    def add_to(self, record: Record) -> Record:
        return record if self._trace is None else {**record, "trace": self._trace.as_blocks()}


def _most_in_turn(together: int) -> int:
    """Prompts that are answered one by one get a turn each: its reply is written before the next turn begins."""
    return 1 if together == 1 else ROUNDS * together


def transcript_of(job: Job, system: str | None) -> Transcript:
    """The prompt's messages, under `system` where they bring no system message themselves."""
    transcript = job.prompt.transcript
    return transcript if not system or transcript.system else transcript.with_system(system)
