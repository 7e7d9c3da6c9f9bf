"""Prompts in, results out, without a conversation: one prompt, many, pipes. Knows no keys and no ranks.

Order is kept, a prompt that fails becomes a result, and what is done is on disk before the next turn begins.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from chat.files import expand
from chat.options import LaunchOptions
from chat.output import Output
from chat.prompts import Prompt
from chat.records import Circumstances, Job, Record, answered, failed
from chat.replies import Progress, ReplyPrinter, ReplyStreams
from chat.results import ResultsFile
from chat.tokenizer import ChatTokenizer
from chat.trace import Trace
from chat.transcript import Transcript, fit
from dist.errors import ChatError, PromptError
from dist.protocol import BlockUpdate, Control, Event, Reply, Turn
from dist.settings import MAX_SEED, GenerationSettings

ALL_FINE, SOME_FAILED, INTERRUPTED = 0, 4, 130
CONDITION_FACTS = ("checkpoint", "dtype")
DEFAULT_BATCH_SIZE = 1

Asked = Callable[[], bool]


class TurnAnswerer(Protocol):
    """What is needed of the engine."""

    max_positions: int | None

    def answer(self, turn: Turn, poll: Callable[[], Control]) -> Iterator[Event]: ...


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
    jobs = tuple(
        Job(place=number * options.n + sample, number=number, given=prompt.given, sample=sample)
        for number, prompt in enumerate(prompts)
        for sample in range(options.n)
    )
    use_template = tokenizer.wants_template(options.use_chat_template)
    extra = {
        **{name: facts[name] for name in CONDITION_FACTS if name in facts},
        "use_chat_template": use_template,
        "system": options.system,
        "n": options.n,
    }
    file = None
    if options.output_file is not None:
        file = ResultsFile(expand(options.output_file), jobs, {**settings.as_dict(), **extra})
    settings = with_seed(settings, file.seed if file is not None else None)
    shared = Circumstances(settings={**settings.as_dict(), **extra}, numbered=settings.samples or options.n > 1)
    with _output(options, streams, jobs, file) as output:
        answerer = _Answerer(
            engine=engine,
            tokenizer=tokenizer,
            transcripts=tuple(_transcript(prompt, options.system) for prompt in prompts),
            settings=settings,
            use_template=use_template,
            trace=options.verbose_trace,
            shared=shared,
            output=output,
            stop=lambda: interrupted() or output.nobody_reads,
        )
        if options.n > 1 and not settings.samples:
            output.say("temperature is 0, so all samples of a prompt are the same.")
        size = options.batch_size or DEFAULT_BATCH_SIZE
        answerer.answer_all(group_jobs(jobs[output.written :], size, options.n))
    if not output.complete:
        return INTERRUPTED
    return SOME_FAILED if output.failed else ALL_FINE


def with_seed(settings: GenerationSettings, earlier: int | None) -> GenerationSettings:
    """Settings that name the seed if they sample: their own, else that of an earlier run, else a fresh one."""
    if not settings.samples or settings.seed is not None:
        return settings
    drawn = secrets.randbelow(MAX_SEED) if earlier is None else earlier
    return dataclasses.replace(settings, seed=drawn)


def derive_seed(seed: int, sample: int) -> int:
    """The seed of a prompt's `sample`-th reply: `seed` itself for the first, fixed and unrelated ones after it."""
    if sample == 0:
        return seed
    digest = hashlib.sha256(f"{seed}:{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") & MAX_SEED


def group_jobs(jobs: Sequence[Job], size: int, samples: int) -> Iterator[tuple[Job, ...]]:
    """The jobs in turns of at most `size`, each turn with one seed and so with one sample of each prompt."""
    window = size * samples
    for start in range(0, len(jobs), window):
        part = jobs[start : start + window]
        for sample in sorted({job.sample for job in part}):
            same = tuple(job for job in part if job.sample == sample)
            yield from (same[at : at + size] for at in range(0, len(same), size))


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
class _Answerer:
    """Makes the records of jobs, a turn at a time. `transcripts` are the prompts by number."""

    engine: TurnAnswerer
    tokenizer: ChatTokenizer
    transcripts: tuple[Transcript, ...]
    settings: GenerationSettings
    use_template: bool
    trace: bool
    shared: Circumstances
    output: Output
    stop: Asked

    def answer_all(self, turns: Iterable[Sequence[Job]]) -> None:
        """Turn after turn, until all are answered or the run is to stop."""
        for jobs in turns:
            for job, record in self.answer(jobs):
                self.output.put(job, record)
            if self.output.cancelled or self.stop():
                return

    def answer(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Record]]:
        """The records of `jobs`, which share one sample number, as they come."""
        fitting: list[tuple[Job, tuple[int, ...]]] = []
        for job in jobs:
            try:
                prompt = fit(
                    self.transcripts[job.number],
                    self.tokenizer,
                    self.settings,
                    self.engine.max_positions,
                    use_template=self.use_template,
                    refuse=True,
                )
            except PromptError as error:
                yield job, failed(job, error, self._seed(job), self.shared)
            else:
                fitting.append((job, prompt.token_ids))
        if fitting:
            yield from self._send(fitting)

    def _seed(self, job: Job) -> int | None:
        return None if self.settings.seed is None else derive_seed(self.settings.seed, job.sample)

    def _send(self, asked: Sequence[tuple[Job, tuple[int, ...]]]) -> Iterator[tuple[Job, Record]]:
        """One turn of the engine. If it refuses the turn, each prompt gets a turn of its own."""
        settings = dataclasses.replace(self.settings, seed=self._seed(asked[0][0]))
        turn = Turn(
            prompts=tuple(ids for _, ids in asked),
            settings=settings,
            placeholder=self.tokenizer.eos_id,
            stop_ids=self.tokenizer.stop_ids,
            trace=self.trace,
        )
        waiting = dict(enumerate(asked))
        rows = [_Row(job, self) for job, _ in asked]
        try:
            for event in self.engine.answer(turn, lambda: Control(settings=settings, cancel=self.stop())):
                if isinstance(event, BlockUpdate):
                    rows[event.row].take(event)
                elif isinstance(event, Reply):
                    job, ids = waiting.pop(event.row)
                    record = answered(job, ids, event, self.tokenizer, self.shared)
                    yield job, rows[event.row].add_to(record)
        except PromptError as error:
            if len(asked) == 1:
                yield asked[0][0], failed(asked[0][0], error, settings.seed, self.shared)
            else:
                for one in waiting.values():
                    yield from self._send((one,))
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
        if update.done:
            self._finished += update.token_ids
            self._output.so_far(lambda: self._tokenizer.decode(self._tokenizer.without_stop(self._finished)))

    def add_to(self, record: Record) -> Record:
        return record if self._trace is None else {**record, "trace": self._trace.as_blocks()}
