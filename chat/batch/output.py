"""Where the results of a run go, in the order of the prompts: file, stdout, progress. Knows no engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType

from chat.batch.jobs import Job, Jobs
from chat.batch.printer import ReplyPrinter
from chat.batch.progress import Progress
from chat.batch.records import CANCELLED, ERROR, Record
from chat.batch.results_file import ResultsFile
from chat.text.trace import Trace


class Output:
    """Takes results as they come and passes them on in order, to `passed_on` too.

    written    how many of the jobs, from the first on, are passed on (those of an earlier run count)
    kept       how many results of an earlier run there are
    failed     how many results are failures
    cancelled  whether one was cancelled
    """

    def __init__(
        self,
        jobs: Jobs,
        *,
        file: ResultsFile | None,
        printer: ReplyPrinter | None,
        progress: Progress,
        passed_on: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self.written = file.finished if file is not None else 0
        self.failed = file.failed if file is not None else 0
        self.cancelled = False
        self._waiting: dict[int, Record] = dict(file.later) if file is not None else {}
        self.kept = self.written + len(self._waiting)
        self._made = self.kept
        self._jobs = jobs
        self._file = file
        self._printer = printer
        self._progress = progress
        self._passed_on = passed_on

    @property
    def complete(self) -> bool:
        """Whether every job has its result."""
        return self.written == len(self._jobs) and not self.cancelled

    def missing(self, step: int) -> tuple[Iterator[Job], int]:
        """The jobs of a checkpoint that have no result yet, and how many they are.

        To be called before the first result of one of them is put.
        """
        first, there = self.written, frozenset(self._waiting)
        start, end = step * self._jobs.each, (step + 1) * self._jobs.each
        count = end - max(start, min(end, first)) - sum(start <= place < end for place in there)
        jobs = self._jobs.of_step(step)
        return (job for job in jobs if job.place >= first and job.place not in there), count

    @property
    def nobody_reads(self) -> bool:
        """Whether stdout was closed by its reader and there is no file."""
        return self._file is None and self._printer is not None and self._printer.gone

    def __enter__(self) -> Output:
        if self.kept:
            self.say(f"{self.kept} of {len(self._jobs)} results were already there.")
        self._progress.start()
        self._pass_on()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.clear()
        if self._file is None:
            return
        if self.complete and kind is None:
            self._file.finish()
        else:
            self._file.close()

    def put(self, job: Job, record: Record) -> None:
        """A result; it is passed on when all before it have been."""
        if record["finish_reason"] == ERROR:
            self.failed += 1
            self.say(f"{self._named(job)}: {record['error']}")
        if record["finish_reason"] == CANCELLED:
            self.cancelled = True
        else:
            self._made += 1
            self._progress.step(self.failed)
        self._waiting[job.place] = record
        if job.place == self.written:
            self._pass_on()
        elif self._file is not None:
            self._file.add_later(job.place, record)

    def begin(self) -> None:
        """The first prompts are about to be sent: what came before is no part of the speed that is shown."""
        self._progress.begin()

    def tokens(self, count: int) -> None:
        """So many more tokens of replies are made."""
        self._progress.tokens(count, self.failed)

    def so_far(self, text: Callable[[], str]) -> None:
        """A block of a reply is finished; `text` gives the reply's text up to its end."""
        if self._printer is not None and self._printer.streams:
            self._printer.so_far(text())

    def trace(self, job: Job, trace: Trace) -> None:
        """A pass was made. Where no record will show it, it is reported on stderr."""
        if self._file is None and self._printer is not None and not self._printer.as_json:
            self.say(f"{self._named(job)}, {trace.last_line()}")

    def say(self, text: str) -> None:
        """A line on stderr."""
        self._progress.say(text)

    def tell_interrupted(self) -> None:
        """Say how far it came, and how to go on."""
        more = " Run the same command again to continue." if self._file is not None else ""
        self.say(f"Interrupted: {self._made} of {len(self._jobs)} replies are done.{more}")

    def _named(self, job: Job) -> str:
        """Which prompt a job answers and, where a prompt gets several replies, which of them it is."""
        sample = f", sample {job.sample + 1}" if self._jobs.samples > 1 else ""
        return f"prompt {job.number + 1}{sample}"

    def _pass_on(self) -> None:
        """All results that have none missing before them."""
        had = len(self._waiting)
        while self.written in self._waiting:
            record = self._waiting.pop(self.written)
            if self._file is not None:
                self._file.add(record)
            if self._printer is not None:
                self._printer.reply(record)
            self._passed_on(record)
            self.written += 1
        if self._file is not None and had - len(self._waiting):
            self._file.caught_up(self._waiting)
