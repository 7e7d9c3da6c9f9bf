"""The prompts of one turn while they are answered: what was asked for, and what has come of it. Knows no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chat.batch.jobs import Circumstances, Job
from chat.batch.output import Output
from chat.batch.records import Record
from chat.text.stops import held_back
from chat.text.tokenizer import ChatTokenizer
from chat.text.trace import Trace
from dist.protocol import BlockUpdate, Reply, Turn
from dist.settings import GenerationSettings


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A prompt that fits, ready to be sent. `text` is that of its tokens."""

    job: Job
    token_ids: tuple[int, ...]
    text: str
    begun: tuple[int, ...]
    seed: int | None


class Batch:
    """The prompts of one turn, and what has come of them. `turn` is what an engine is to answer: `worker`'s."""

    def __init__(self, turn: Turn, worker: int, asked: Sequence[Asked], rows: Sequence[Row]) -> None:
        self.turn = turn
        self.worker = worker
        self.rows = rows
        self.waiting = dict(enumerate(asked))


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
