"""Prompts in, results out, without a conversation: one prompt, many, pipes. Knows no keys and no ranks.

Order is kept, a prompt that fails becomes a result, and what is done is on disk before the next turn begins.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from chat.batch.jobs import Circumstances, Jobs, conditions_of, with_seed
from chat.batch.output import Output
from chat.batch.printer import ReplyPrinter, ReplyStreams
from chat.batch.progress import Progress
from chat.batch.prompts import Prompts
from chat.batch.results_file import ResultsFile, check_results
from chat.batch.turns import Answerer, OneWorker, Task, TurnAnswerer, Workers
from chat.files import expand
from chat.start.options import LaunchOptions
from chat.text.tokenizer import ChatTokenizer
from dist.settings import GenerationSettings

ALL_FINE, SOME_FAILED, INTERRUPTED = 0, 4, 130


def check_output(
    options: LaunchOptions,
    settings: GenerationSettings,
    use_template: bool,
    prompts: Prompts,
    facts: Mapping[str, Any],
    undecided: Collection[str] = (),
) -> None:
    """Refuse an output file that this run cannot go on with, as far as `facts` are known by now.

    `undecided` settings are measured later. Changes nothing. Raises UsageError.
    """
    if options.output_file is not None:
        conditions = conditions_of(options, settings, use_template, facts)
        known = {name: value for name, value in conditions.items() if name not in undecided}
        check_results(expand(options.output_file), Jobs(prompts, options.n), known)


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
) -> int:
    """Answer all prompts; gives the exit code: 0, 4 if some failed, 130 if interrupted.

    `workers` are by default `engine` alone; else it is one of them, and the others are its equals.
    Of `facts` the checkpoint and the dtype are recorded with each result. `interrupted` is asked once per pass
    whether the run is to end; what is finished by then is kept. Raises UsageError for an output
    file that cannot be gone on with; errors of the engine other than PromptError pass through.
    """
    jobs = Jobs(prompts, options.n)
    use_template = tokenizer.wants_template(options.use_chat_template)
    file = None
    if options.output_file is not None:
        conditions = conditions_of(options, settings, use_template, facts)
        file = ResultsFile(expand(options.output_file), jobs, conditions)
    settings = with_seed(settings, file.seed if file is not None else None)
    with _output(options, streams, jobs, file) as output:
        task = Task(
            tokenizer=tokenizer,
            settings=settings,
            use_template=use_template,
            system=options.system,
            trace=options.verbose_trace,
            batch_size=options.batch_size,
            shared=Circumstances(
                settings=conditions_of(options, settings, use_template, facts),
                numbered=settings.samples or options.n > 1,
            ),
        )
        answerer = Answerer(
            engine, workers or OneWorker(engine), task, output, lambda: interrupted() or output.nobody_reads
        )
        if options.n > 1 and not settings.samples:
            output.say("temperature is 0, so all samples of a prompt are the same.")
        answerer.answer_all(output.missing(), len(jobs) - output.kept)
        if output.complete:
            return SOME_FAILED if output.failed else ALL_FINE
        if not output.nobody_reads:
            output.tell_interrupted()
        return INTERRUPTED


def _output(options: LaunchOptions, streams: ReplyStreams, jobs: Jobs, file: ResultsFile | None) -> Output:
    """Where results go: to the file if there is one, else to stdout; with `--json` to stdout in any case."""
    printer = None
    if file is None or options.json:
        printer = ReplyPrinter(
            streams.replies, as_json=options.json, alone=len(jobs) == 1, streams=not options.verbose_trace
        )
    done = file.finished if file is not None else 0
    crowded = printer is not None and streams.replies.isatty()
    progress = Progress(streams.notices, 0 if crowded else len(jobs), done, shows=streams.progress)
    return Output(jobs, file=file, printer=printer, progress=progress)
