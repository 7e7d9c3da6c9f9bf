"""An engine that yields real events but needs no model, and what a run over prompts with it leaves behind."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from chat.text.tokenizer import ChatTokenizer
from dist.protocol import BlockUpdate, Control, Event, FinishReason, PrefillUpdate, Reply, ReplyStats, Turn
from dist.settings import GenerationSettings

SETTINGS = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=40, max_length=200)
SAMPLING = SETTINGS.with_value("temperature", 0.7)
FACTS = {"checkpoint": "/runs/global_step_3", "dtype": "float32", "processes": 2}
BLOCK = 4


def question(prompt: str) -> str:
    """The last line of the user's in the text of a prompt, with or without the template."""
    return [line for line in prompt.split("\n") if line and line != "assistant"][-1]


def never() -> bool:
    """A run that nobody interrupts."""
    return False


@dataclass
class ScriptedEngine:
    """Answers each prompt with the text that `say` makes of the prompt's text and its seed.

    Blocks are of four tokens and two passes. `before_pass` runs before each pass, with the pass's number; what
    it raises passes through.
    """

    tokenizer: ChatTokenizer
    max_positions: int | None = None
    fits: Callable[[int, int], int] = lambda tokens, block: 1
    say: Callable[[str, int | None], str] = lambda text, seed: f"You said {question(text)}, {seed}."
    before_pass: Callable[[int], None] = lambda number: None
    order: Callable[[list[Any]], Iterable[Any]] = list
    turns: list[Turn] = field(default_factory=list)
    passes: int = 0
    remark_after: Callable[[int], str | None] = lambda turns: None
    captures: bool = False

    @property
    def slow_notice(self) -> str | None:
        return self.remark_after(len(self.turns))

    def rows_that_fit(self, tokens: int, block: int) -> int:
        return self.fits(tokens, block)

    def answer(self, turn: Turn, poll: Callable[[], Control]) -> Iterator[Event]:
        self.turns.append(turn)
        for row, prompt in self.order(list(enumerate(turn.prompts))):
            yield PrefillUpdate(done=len(prompt), total=len(prompt))
            yield from self._reply(turn, row, prompt, poll)

    def _reply(self, turn: Turn, row: int, prompt: tuple[int, ...], poll: Callable[[], Control]) -> Iterator[Event]:
        seed = (turn.settings if turn.row_settings is None else turn.row_settings[row]).seed
        text = self.say(self.tokenizer.decode(prompt), seed)
        ids = (*self.tokenizer.encode(text), self.tokenizer.eos_id)
        finish: FinishReason = "stop"
        if len(ids) > turn.settings.max_new_tokens:
            ids, finish = ids[: turn.settings.max_new_tokens], "length"
        for index in range(0, len(ids), BLOCK):
            block = ids[index : index + BLOCK]
            for iteration in (1, 2):
                self.before_pass(self.passes)
                self.passes += 1
                if poll().cancel:
                    yield self._end(turn, row, prompt, ids[:index], "cancelled")
                    return
                last = iteration == 2
                yield BlockUpdate(
                    row=row,
                    index=index // BLOCK,
                    iteration=iteration,
                    token_ids=block if last else (turn.placeholder,) * len(block),
                    changed=(last,) * len(block),
                    exact=len(block) if last else 0,
                    settled=len(block) if last else 0,
                    finish=finish if last and index + BLOCK >= len(ids) else None,
                    candidates=(((block[0], 1.0),),) * len(block) if turn.trace else None,
                )
        yield self._end(turn, row, prompt, ids, finish)

    def _end(
        self, turn: Turn, row: int, prompt: tuple[int, ...], ids: tuple[int, ...], finish: FinishReason
    ) -> Reply:
        blocks = -(-len(ids) // BLOCK)
        stats = ReplyStats(
            forwards=2 * blocks,
            prefill_forwards=0,
            iterations=(2,) * blocks,
            converged=(False,) * blocks,
            ttft_s=0.25,
            decode_s=0.5,
            tokens=len(ids),
        )
        return Reply(
            row=row, prompt_len=len(prompt), token_ids=ids, finish=finish, settings=turn.settings, stats=stats
        )


@dataclass(frozen=True)
class Texts:
    """Two text streams of a program whose output is piped, or shown on a terminal."""

    replies: io.StringIO = field(default_factory=io.StringIO)
    notices: io.StringIO = field(default_factory=io.StringIO)
    progress: bool = False


@dataclass(frozen=True)
class Piped:
    """Streams of which one is a real pipe."""

    replies: TextIO
    notices: TextIO
    progress: bool = False


class Screen(io.StringIO):
    """A text stream that is a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass
class Ran:
    """What a run left behind."""

    code: int
    out: str
    err: str
    engine: ScriptedEngine


Run = Callable[..., Ran]


def records(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".json":
        found: list[dict[str, Any]] = json.loads(path.read_text())
        return found
    return [json.loads(line) for line in path.read_text().splitlines()]
