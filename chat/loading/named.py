"""Which folder a word of the user's stands for: a step's number, `latest`, `base`, or a path. Opens no weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from chat.files import expand
from dist.checkpoint.folder import Step, latest_step, newest_complete, run_steps
from dist.errors import CheckpointError, UsageError

LATEST_WORD, BASE_WORD = "latest", "base"
STEP_WORD = re.compile(r"(?:global_step_)?(\d+)")
NAMED_STEPS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What words refer to: the run's folder, None if `opened` lies in none, and the base model, if it is named."""

    opened: Path
    run: Path | None
    base: str

    def steps(self) -> tuple[Step, ...]:
        """The run's steps as they are now. Raises UsageError without a run."""
        if self.run is None:
            raise UsageError(
                "The checkpoint has no steps beside it.",
                f"{self.opened} does not lie in a global_step_* folder.",
                "/load FOLDER switches to any other folder.",
            )
        return run_steps(self.run) if self.run.is_dir() else ()

    def folder(self, word: str) -> Path:
        """The folder that `word` stands for now. Raises ChatError."""
        if word == BASE_WORD:
            return self._base()
        number = STEP_WORD.fullmatch(word)
        if number is None and word != LATEST_WORD:
            return expand(word).absolute()
        steps = self.steps()
        if not steps:
            raise CheckpointError(
                f"{self.run} no longer has any steps.", hint="/load FOLDER switches to another run."
            )
        assert self.run is not None
        latest = latest_step(self.run)
        wanted = int(number[1]) if number else steps[-1].number if latest is None else latest
        for step in steps:
            if step.number == wanted:
                return step.path
        numbers = [str(step.number) for step in steps[-NAMED_STEPS:]]
        of = "The latest of its steps are" if len(steps) > NAMED_STEPS else "Its steps are"
        raise CheckpointError(
            f"There is no step {wanted} in {self.run}.",
            f"{of} {', '.join(numbers)}.",
            "" if number else f"latest_checkpointed_iteration.txt names it; {_instead(steps)}",
        )

    def _base(self) -> Path:
        """The model that training started from, if an option or the config says where it is."""
        if self.base and expand(self.base).is_dir():
            return expand(self.base).absolute()
        raise CheckpointError(
            "The base model's folder is not known.",
            f"The checkpoint names {self.base}, which is not a folder here."
            if self.base
            else "The checkpoint names none.",
            "Give its folder instead of base, or start with --base_model FOLDER.",
        )


def _instead(steps: tuple[Step, ...]) -> str:
    """What to load in the place of a step that is gone."""
    complete = newest_complete(steps)
    if complete is None:
        return "/load NUMBER loads another."
    return f"the newest complete step is {complete.number}: /load {complete.number}"
