"""Prompts in, results out, without a conversation: one prompt, many, pipes. Knows no keys and no ranks.

Order is kept, a prompt that fails becomes a result, and what is done is on disk before the next turn begins.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from chat.batch.jobs import Circumstances, Jobs, Maker, conditions_of, with_seed
from chat.batch.output import Output
from chat.batch.printer import ReplyPrinter, ReplyStreams
from chat.batch.progress import Progress
from chat.batch.prompts import Prompts
from chat.batch.results_file import ResultsFile, check_results
from chat.batch.rows import Task
from chat.batch.shares import Shares
from chat.batch.summary import Summary
from chat.batch.turns import Answerer
from chat.batch.workers import OneWorker, TurnAnswerer, Workers
from chat.files import expand
from chat.start.options import LaunchOptions
from chat.text.tokenizer import ChatTokenizer
from dist.settings import GenerationSettings

ALL_FINE, SOME_FAILED, INTERRUPTED = 0, 4, 130


class Steps(Protocol):
    """The checkpoints that answer in turn, on all ranks and in all copies."""

    @property
    def makers(self) -> Sequence[Maker]: ...

    def turn_to(self, step: int, say: Callable[[str], None]) -> ChatTokenizer:
        """Have that one answer, by its tokenizer. Raises ChatError if it cannot, or is not what it was."""
        ...


class OneStep:
    """The checkpoint that is loaded, and no other."""

    makers = (Maker(),)

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer

    def turn_to(self, step: int, say: Callable[[str], None]) -> ChatTokenizer:
        return self._tokenizer


def check_output(
    options: LaunchOptions,
    settings: GenerationSettings,
    use_template: bool,
    prompts: Prompts,
    facts: Mapping[str, Any],
    undecided: Collection[str] = (),
    makers: Sequence[Maker] = OneStep.makers,
) -> Collection[int]:
    """Refuse an output file that this run cannot go on with, as far as `facts` are known by now.

    `undecided` settings are measured later. Changes nothing; gives which of the `makers` have nothing left to do.
    Raises UsageError.
    """
    if options.output_file is None:
        return ()
    conditions = conditions_of(options, settings, use_template, facts)
    known = {name: value for name, value in conditions.items() if name not in undecided}
    jobs = Jobs(prompts, options.n, len(makers))
    there = check_results(expand(options.output_file), jobs, known, makers)
    later = [place // jobs.each for place in there.later]
    done = there.finished
    return [
        step
        for step in range(jobs.steps)
        if max(0, min(jobs.each, done - step * jobs.each)) + later.count(step) == jobs.each
    ]


def run_batch(
    engine: TurnAnswerer,
    tokenizer: ChatTokenizer,
    options: LaunchOptions,
    settings: GenerationSettings,
    prompts: Prompts,
    streams: ReplyStreams,
    facts: Mapping[str, Any],
    *,
    interrupted: Callable[[], bool],
    workers: Workers | None = None,
    steps: Steps | None = None,
) -> int:
    """Answer all prompts; gives the exit code: 0, 4 if some failed, 130 if interrupted.

    `workers` are by default `engine` alone; else it is one of them, and the others are its equals. With `steps`
    each of these answers all prompts in turn, and a table of what they made stands at the end.
    Of `facts` the checkpoint and the dtype are recorded with each result. `interrupted` is asked once per pass
    whether the run is to end; what is finished by then is kept. Raises UsageError for an output
    file that cannot be continued; errors of the engine other than PromptError pass through.
    """
    turns = steps or OneStep(tokenizer)
    jobs = Jobs(prompts, options.n, len(turns.makers))
    use_template = tokenizer.wants_template(options.use_chat_template)
    conditions = conditions_of(options, settings, use_template, facts)
    file = None
    if options.output_file is not None:
        file = ResultsFile(expand(options.output_file), jobs, conditions, turns.makers)
    settings = with_seed(settings, file.seed if file is not None else None)
    conditions = conditions_of(options, settings, use_template, facts)
    summary = None if steps is None else _summary(steps, jobs, file)
    those: Workers = workers or OneWorker(engine)
    shares = Shares(those.names)
    with _output(options, streams, jobs, file, summary, shares) as output:
        if options.n > 1 and not settings.samples:
            output.say("temperature is 0, so all samples of a prompt are the same.")
        for number, maker in enumerate(turns.makers):
            missing, count = output.missing(number)
            if not count:
                continue
            shared = Circumstances(
                settings={**conditions, **maker.conditions},
                numbered=settings.samples or options.n > 1,
                step=maker.name,
            )
            task = _task(turns.turn_to(number, output.say), options, settings, shared, use_template)
            stop = partial(_stops, interrupted, output)
            answerer = Answerer(engine, those, task, output, shares, stop)
            answerer.answer_all(missing, count)
            if output.cancelled or interrupted() or output.nobody_reads:
                break
        for line in shares.lines() if options.rank_progress else ():
            output.say(line)
        return _end(output, summary)


def _summary(steps: Steps, jobs: Jobs, file: ResultsFile | None) -> Summary:
    """Of what these steps answer, with what the file holds already."""
    summary = Summary([maker.name or 0 for maker in steps.makers], jobs.each)
    for record in file.records() if file is not None else ():
        summary.add(record)
    return summary


def _end(output: Output, summary: Summary | None) -> int:
    """Say what is to be said at the end; gives the exit code."""
    if output.complete:
        if summary is not None:
            output.say(summary.table())
        return SOME_FAILED if output.failed else ALL_FINE
    if not output.nobody_reads:
        output.tell_interrupted()
    return INTERRUPTED


def _stops(interrupted: Callable[[], bool], output: Output) -> bool:
    return interrupted() or output.nobody_reads


def _task(
    tokenizer: ChatTokenizer,
    options: LaunchOptions,
    settings: GenerationSettings,
    shared: Circumstances,
    use_template: bool,
) -> Task:
    return Task(
        tokenizer=tokenizer,
        settings=settings,
        use_template=use_template,
        system=options.system,
        trace=options.verbose_trace,
        batch_size=options.batch_size,
        shared=shared,
    )


def _output(
    options: LaunchOptions,
    streams: ReplyStreams,
    jobs: Jobs,
    file: ResultsFile | None,
    summary: Summary | None,
    shares: Shares,
) -> Output:
    """Where results go: to the file if there is one, else to stdout; with `--json` to stdout in any case."""
    printer = None
    if file is None or options.json:
        printer = ReplyPrinter(
            streams.replies, as_json=options.json, alone=len(jobs) == 1, streams=not options.verbose_trace
        )
    done = file.finished if file is not None else 0
    crowded = printer is not None and streams.replies.isatty()
    more = (lambda: shares.text) if options.rank_progress else str
    progress = Progress(streams.notices, 0 if crowded else len(jobs), done, shows=streams.progress, more=more)
    taken = {} if summary is None else {"passed_on": summary.add}
    return Output(jobs, file=file, printer=printer, progress=progress, **taken)
