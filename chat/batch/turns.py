"""From the jobs of a run to turns, and from what comes of these to records. Knows no ranks and no files."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from chat.batch.fitting import fit_ahead, transcript_of
from chat.batch.jobs import Job, derive_seed
from chat.batch.output import Output
from chat.batch.records import Record, answered, failed
from chat.batch.rows import Asked, Batch, Row, Task
from chat.batch.shares import Shares
from chat.batch.workers import Outcome, TurnAnswerer, Workers, rehearsal
from chat.text.prompt import FittedPrompt, fit
from dist.errors import ChatError, PromptError
from dist.protocol import BlockUpdate, Control, Reply, Turn

# How far prompts may be begun before an earlier one is answered: so many results wait in memory at most.
MOST_AHEAD = 4096
# How many times as many prompts an engine gets as it decodes together: a row that ends is filled with the next one.
ROUNDS = 4


class Answerer:
    """Makes the records of jobs, in batches as workers become free, in the order of the jobs."""

    def __init__(
        self,
        engine: TurnAnswerer,
        workers: Workers,
        task: Task,
        output: Output,
        shares: Shares,
        stop: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._workers = workers
        self._task = task
        self._output = output
        self._shares = shares
        self._stop = stop
        self._slow_notice = engine.slow_notice
        self._again: deque[list[Asked]] = deque()
        self._next: Asked | None = None
        self._wrong: ChatError | None = None
        self._undone = self._unsent = 0
        self._fitting: Iterator[Asked] = iter(())

    def answer_all(self, jobs: Iterable[Job], count: int) -> None:
        """Answer the jobs, `count` of them, until all are or the run is to stop."""
        self._undone = self._unsent = count
        self._fitting = self._those_that_fit(jobs)
        if not self._shares.begun:
            self._rehearse()
            self._output.begin()
            self._shares.begin()
        for batch, outcome in self._workers.work(self._next_batch, self._control):
            self._take(batch, outcome)

    def _control(self) -> Control:
        return Control(settings=self._task.settings, cancel=self._stop())

    def _rehearse(self) -> None:
        """Have all workers make what GPUs need for batches like the first one."""
        settings = self._task.settings
        fast = self._engine.captures and self._engine.slow_notice is None and settings.decoder == "cached"
        first = self._peek() if fast else None
        together = 1 if first is None else min(self._most_together([first]), self._share(MOST_AHEAD))
        if first is not None and together > 1 and not self._stop():
            tokens = min(len(first.token_ids) + settings.max_new_tokens, settings.max_length)
            turn = rehearsal(settings, self._task.tokenizer.eos_id, together, tokens)
            self._workers.rehearse(turn)

    def _share(self, together: int) -> int:
        """How many prompts a worker gets at most: of few each as many, and of many fewer towards the end."""
        count = len(self._workers.names)
        return max(-(-self._unsent // count), min(together, -(-self._undone // count)))

    def _next_batch(self, worker: int) -> Batch | None:
        """What a free worker is to answer, None if there is nothing at present. Raises ChatError."""
        # That prompts cannot be read together, say, is found out when the first ones are.
        if self._engine.slow_notice not in (None, self._slow_notice):
            self._slow_notice = self._engine.slow_notice
            self._output.say(self._slow_notice)
        if self._output.cancelled or self._stop():
            return None
        if self._again:
            again = self._again.popleft()
            return self._batch(worker, again, self._most_together(again))
        asked: list[Asked] = []
        together = fitting = 1
        longest = 0
        while (one := self._peek()) is not None:
            ahead = one.job.place - self._output.written >= MOST_AHEAD
            if asked and ahead:
                break
            if ahead and len(self._workers.names) > 1:
                return None
            if not asked or len(one.token_ids) > longest:
                longest, fitting = len(one.token_ids), self._most_together([one])
            if asked and len(asked) >= self._share(fitting):
                break
            # A long prompt leaves room for fewer beside it: it begins the next turn.
            if asked and len(asked) >= (fitting if fitting < together else _most_in_turn(fitting)):
                break
            together = fitting
            asked.append(one)
            self._next = None
        self._unsent -= len(asked)
        if not asked and self._wrong is not None:
            raise self._wrong
        return self._batch(worker, asked, together) if asked else None

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

        def fit_one(job: Job) -> FittedPrompt:
            return fit(
                transcript_of(job, task.system),
                task.tokenizer,
                task.settings,
                self._engine.max_positions,
                use_template=task.use_template,
                refuse=True,
            )

        threads = task.tokenizer.takes_threads
        for samples, fitted in fit_ahead(jobs, fit_one, task.tokenizer.decode, threads=threads):
            if isinstance(fitted, PromptError):
                self._unsent -= len(samples)
                for job in samples:
                    self._put(job, failed(job, fitted, self._seed(job), task.shared))
                continue
            prompt, text = fitted
            for job in samples:
                yield Asked(
                    job=job, token_ids=prompt.token_ids, text=text, begun=prompt.begun, seed=self._seed(job)
                )

    def _most_together(self, asked: Sequence[Asked]) -> int:
        if self._task.batch_size is not None:
            return self._task.batch_size
        settings = self._task.settings
        longest = max(len(one.token_ids) for one in asked) + settings.max_new_tokens
        return self._engine.rows_that_fit(min(longest, settings.max_length), settings.add_eos_length + 1)

    def _seed(self, job: Job) -> int | None:
        seed = self._task.settings.seed
        return None if seed is None else derive_seed(seed, job.sample)

    def _batch(self, worker: int, asked: Sequence[Asked], together: int) -> Batch:
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
        return Batch(turn, worker, asked, [Row(one.job, task, self._output, one.begun) for one in asked])

    def _take(self, batch: Batch, outcome: Outcome) -> None:
        if isinstance(outcome, BlockUpdate):
            batch.rows[outcome.row].take(outcome)
        elif isinstance(outcome, Reply):
            one = batch.waiting.pop(outcome.row)
            batch.rows[outcome.row].ended(outcome)
            task = self._task
            record = answered(one.job, one.token_ids, one.text, outcome, one.seed, task.tokenizer, task.shared)
            self._put(one.job, batch.rows[outcome.row].add_to(record))
            self._shares.add(batch.worker, len(outcome.token_ids))
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


def _most_in_turn(together: int) -> int:
    """Prompts that are answered one by one get a turn each: its reply is written before the next turn begins."""
    return 1 if together == 1 else ROUNDS * together
