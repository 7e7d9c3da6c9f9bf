"""Prompts in, results out, without a conversation: one prompt, many, pipes. Knows no keys and no ranks.

Order is kept, a prompt that fails becomes a result, and what is done is on disk before the next turn begins.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Protocol

from chat.batch.jobs import Circumstances, Job, conditions_of, derive_seed, jobs_of, with_seed
from chat.batch.output import Output
from chat.batch.printer import Progress, ReplyPrinter, ReplyStreams
from chat.batch.prompts import Prompt
from chat.batch.records import Record, answered, failed
from chat.batch.results_file import ResultsFile, check_results
from chat.files import expand
from chat.start.options import LaunchOptions
from chat.text.prompt import fit
from chat.text.tokenizer import ChatTokenizer
from chat.text.trace import Trace
from chat.text.transcript import Transcript
from dist.errors import ChatError, PromptError
from dist.protocol import BlockUpdate, Control, Event, Reply, Turn
from dist.settings import GenerationSettings

ALL_FINE, SOME_FAILED, INTERRUPTED = 0, 4, 130

Asked = Callable[[], bool]


def check_output(
    options: LaunchOptions,
    settings: GenerationSettings,
    use_template: bool,
    prompts: Sequence[Prompt],
    facts: Mapping[str, Any],
) -> None:
    """Refuse an output file that this run cannot go on with, as far as `facts` are known by now.

    Changes nothing. Raises UsageError.
    """
    if options.output_file is not None:
        known = conditions_of(options, settings, use_template, facts)
        check_results(expand(options.output_file), jobs_of(prompts, options.n), known)


class TurnAnswerer(Protocol):
    """What is needed of the engine."""

    max_positions: int | None

    @property
    def remark(self) -> str | None: ...

    def answer(self, turn: Turn, poll: Callable[[], Control]) -> Iterator[Event]: ...

    def rows_that_fit(self, tokens: int, block: int) -> int: ...


def run_batch(
    engine: TurnAnswerer,
    tokenizer: ChatTokenizer,
    options: LaunchOptions,
    settings: GenerationSettings,
    prompts: Sequence[Prompt],
    streams: ReplyStreams,
    facts: Mapping[str, Any],
    *,
    interrupted: Asked,
) -> int:
    """Answer all prompts; gives the exit code: 0, 4 if some failed, 130 if interrupted.

    Of `facts` the checkpoint and the dtype are recorded with each result. `interrupted` is asked once per pass
    whether the run is to end; what is finished by then is kept. Raises UsageError for an output
    file that cannot be gone on with; errors of the engine other than PromptError pass through.
    """
    jobs = jobs_of(prompts, options.n)
    use_template = tokenizer.wants_template(options.use_chat_template)
    file = None
    if options.output_file is not None:
        conditions = conditions_of(options, settings, use_template, facts)
        file = ResultsFile(expand(options.output_file), jobs, conditions)
    settings = with_seed(settings, file.seed if file is not None else None)
    with _output(options, streams, jobs, file) as output:
        answerer = _Answerer(
            engine=engine,
            tokenizer=tokenizer,
            transcripts=tuple(_transcript(prompt, options.system) for prompt in prompts),
            settings=settings,
            use_template=use_template,
            trace=options.verbose_trace,
            batch_size=options.batch_size,
            shared=Circumstances(
                settings=conditions_of(options, settings, use_template, facts),
                numbered=settings.samples or options.n > 1,
            ),
            output=output,
            stop=lambda: interrupted() or output.nobody_reads,
        )
        if options.n > 1 and not settings.samples:
            output.say("temperature is 0, so all samples of a prompt are the same.")
        answerer.answer_all(output.missing)
        if output.complete:
            return SOME_FAILED if output.failed else ALL_FINE
        if not output.nobody_reads:
            output.tell_interrupted()
        return INTERRUPTED


def _transcript(prompt: Prompt, system: str | None) -> Transcript:
    """The prompt's messages, under `system` where they bring no system message themselves."""
    if not system or prompt.transcript.system:
        return prompt.transcript
    return prompt.transcript.with_system(system)


def _output(
    options: LaunchOptions, streams: ReplyStreams, jobs: tuple[Job, ...], file: ResultsFile | None
) -> Output:
    """Where results go: to the file if there is one, else to stdout; with `--json` to stdout in any case."""
    printer = None
    if file is None or options.json:
        printer = ReplyPrinter(
            streams.replies, as_json=options.json, alone=len(jobs) == 1, streams=not options.verbose_trace
        )
    done = file.finished if file is not None else 0
    crowded = printer is not None and streams.replies.isatty()
    progress = Progress(streams.notices, 0 if crowded else len(jobs), done, environ=os.environ)
    return Output(jobs, file=file, printer=printer, progress=progress, notices=streams.notices)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A prompt that fits, ready to be sent."""

    job: Job
    token_ids: tuple[int, ...]
    seed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answerer:
    """Makes the records of jobs, a turn at a time. `transcripts` are the prompts by number.

    `batch_size` prompts go into a turn; None: as many as fit.
    """

    engine: TurnAnswerer
    tokenizer: ChatTokenizer
    transcripts: tuple[Transcript, ...]
    settings: GenerationSettings
    use_template: bool
    trace: bool
    batch_size: int | None
    shared: Circumstances
    output: Output
    stop: Asked

    def answer_all(self, jobs: Iterable[Job]) -> None:
        """Turn after turn in the order of the jobs, until all are answered or the run is to stop."""
        turn: list[_Asked] = []
        remark = self.engine.remark
        for asked in self._fitting(jobs):
            if turn and len(turn) >= self._most_together([*turn, asked]):
                self._send(turn)
                turn = []
                # That prompts cannot be read together, say, is found out when the first ones are.
                if self.engine.remark not in (None, remark):
                    remark = self.engine.remark
                    self.output.say(remark)
                if self.output.cancelled or self.stop():
                    return
            turn.append(asked)
        if turn:
            self._send(turn)

    def _fitting(self, jobs: Iterable[Job]) -> Iterator[_Asked]:
        """The jobs whose prompts fit; those that don't become results at once."""
        for number, group in groupby(jobs, key=lambda job: job.number):
            samples = tuple(group)
            try:
                fitted = fit(
                    self.transcripts[number],
                    self.tokenizer,
                    self.settings,
                    self.engine.max_positions,
                    use_template=self.use_template,
                    refuse=True,
                )
            except PromptError as error:
                for job in samples:
                    self.output.put(job, failed(job, error, self._seed(job), self.shared))
            else:
                for job in samples:
                    yield _Asked(job=job, token_ids=fitted.token_ids, seed=self._seed(job))

    def _most_together(self, turn: Sequence[_Asked]) -> int:
        if self.batch_size is not None:
            return self.batch_size
        longest = max(len(asked.token_ids) for asked in turn) + self.settings.max_new_tokens
        return self.engine.rows_that_fit(min(longest, self.settings.max_length), self.settings.add_eos_length + 1)

    def _seed(self, job: Job) -> int | None:
        return None if self.settings.seed is None else derive_seed(self.settings.seed, job.sample)

    def _send(self, asked: Sequence[_Asked]) -> None:
        """One turn of the engine. If it refuses the turn, each prompt gets a turn of its own."""
        own = tuple(replace(self.settings, seed=one.seed) for one in asked)
        turn = Turn(
            prompts=tuple(one.token_ids for one in asked),
            settings=self.settings,
            placeholder=self.tokenizer.eos_id,
            stop_ids=self.tokenizer.stop_ids,
            trace=self.trace,
            row_settings=own if self.settings.samples else None,
        )
        waiting = dict(enumerate(asked))
        rows = [_Row(one.job, self) for one in asked]
        try:
            for event in self.engine.answer(turn, lambda: Control(settings=self.settings, cancel=self.stop())):
                if isinstance(event, BlockUpdate):
                    rows[event.row].take(event)
                elif isinstance(event, Reply):
                    one = waiting.pop(event.row)
                    record = answered(one.job, one.token_ids, event, one.seed, self.tokenizer, self.shared)
                    self.output.put(one.job, rows[event.row].add_to(record))
        except PromptError as error:
            if len(asked) == 1:
                self.output.put(asked[0].job, failed(asked[0].job, error, asked[0].seed, self.shared))
            else:
                for one in waiting.values():
                    self._send((one,))
            return
        if waiting:
            raise ChatError(f"{len(waiting)} prompts of a turn got no reply.")


class _Row:
    """A reply while it is made: its trace, and its text as far as it is finished."""

    def __init__(self, job: Job, answerer: _Answerer) -> None:
        self._job = job
        self._tokenizer = answerer.tokenizer
        self._output = answerer.output
        self._trace = Trace(self._tokenizer.decode) if answerer.trace else None
        self._finished: tuple[int, ...] = ()

    def take(self, update: BlockUpdate) -> None:
        if self._trace is not None:
            self._trace.take(update)
            self._output.trace(self._job, self._trace)
        if update.settled:
            self._finished += update.settled_ids
            self._output.so_far(lambda: self._tokenizer.decode(self._tokenizer.without_stop(self._finished)))

    def add_to(self, record: Record) -> Record:
        return record if self._trace is None else {**record, "trace": self._trace.as_blocks()}
