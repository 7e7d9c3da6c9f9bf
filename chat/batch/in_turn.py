"""The checkpoints that `--steps` names, each loaded over the last one's weights. Knows no prompts.

A step that has changed since it was opened at the start ends the run: it makes no results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from chat.batch.jobs import Maker
from chat.loading.step_list import AskedStep
from chat.text.tokenizer import ChatTokenizer
from dist.errors import CheckpointError
from dist.protocol import Load


class Adopted(Protocol):
    """What is needed of a checkpoint that was loaded."""

    @property
    def tokenizer(self) -> ChatTokenizer: ...
    @property
    def use_template(self) -> bool: ...
    @property
    def facts(self) -> Any: ...
    @property
    def notices(self) -> tuple[str, ...]: ...


class Checkpoints(Protocol):
    """What is needed to turn to another checkpoint; loading.checkpoints.Checkpoints is one."""

    def check(self, folder: Path) -> str: ...
    def load(self, argument: str) -> Adopted: ...


class Others(Protocol):
    """The other copies of the model, which take over what rank 0 does."""

    def load(self, order: Load) -> None: ...


def makers_of(steps: Sequence[AskedStep]) -> tuple[Maker, ...]:
    """What results say of the steps, and what decides them besides settings."""
    return tuple(
        Maker(name=step.name, conditions={"step": step.name}, gone=True)
        if step.checkpoint is None
        else Maker(
            name=step.name,
            conditions={"step": step.name, "checkpoint": str(step.checkpoint.path), "digest": step.digest},
        )
        for step in steps
    )


class InTurn:
    """Loads one step after the other; `loaded` is the folder loaded at first, with its `tokenizer`."""

    def __init__(
        self,
        steps: Sequence[AskedStep],
        checkpoints: Checkpoints,
        others: Others | None,
        *,
        loaded: Path,
        tokenizer: ChatTokenizer,
        use_template: bool,
    ) -> None:
        self.makers = makers_of(steps)
        self._steps = steps
        self._checkpoints = checkpoints
        self._others = others
        self._loaded = loaded
        self._tokenizer = tokenizer
        self._use_template = use_template
        self._template = _template(tokenizer)

    def turn_to(self, step: int, say: Callable[[str], None]) -> ChatTokenizer:
        """Load that one; returns its tokenizer. Raises CheckpointError if it cannot be loaded or has changed."""
        asked = self._steps[step]
        if asked.checkpoint is None:
            assert asked.problem is not None
            raise asked.problem
        folder = asked.checkpoint.path
        if folder != self._loaded:
            self._load(asked, folder, say)
        return self._tokenizer

    def _load(self, asked: AskedStep, folder: Path, say: Callable[[str], None]) -> None:
        digest = self._checkpoints.check(folder)
        if digest != asked.digest:
            raise CheckpointError(
                f"{folder} has changed since the run began.",
                f"Its digest was {asked.digest} and is now {digest or 'unreadable'}.",
                "Run the same command again once it is complete.",
            )
        if self._others is not None:
            self._others.load(Load(path=str(folder.absolute()), digest=digest))
        adopted = self._checkpoints.load(str(folder))
        if adopted.facts.digest != digest:
            raise CheckpointError(f"{folder} changed while it was being read.", "", "Run the same command again.")
        if adopted.use_template != self._use_template:
            raise CheckpointError(
                f"Only one of {asked.name} and the step before it has a chat template.",
                "Their replies could not be compared.",
                "--no-use_chat_template, or --chat_template FILE, gives all of them the same prompts.",
            )
        self._loaded, self._tokenizer = folder, adopted.tokenizer
        say(f"{adopted.facts.who} answers, ready in {adopted.facts.ready_seconds} s: {folder}")
        for notice in adopted.notices:
            say(notice)
        if _template(adopted.tokenizer) != self._template:
            say("Its chat template is different: replies may differ because of their prompts.")


def _template(tokenizer: ChatTokenizer) -> str:
    return tokenizer.template.template.text if tokenizer.template is not None else ""
