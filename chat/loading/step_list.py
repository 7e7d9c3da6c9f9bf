"""The checkpoints that `--steps` names, opened but not read: all of them before the first one is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from chat.files import expand
from chat.loading.named import STEP_WORD, Surroundings
from dist.checkpoint.digest import digests
from dist.checkpoint.folder import find_weights, run_steps
from dist.checkpoint.open import Checkpoint
from dist.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedStep:
    """One of the checkpoints. `name` is its number, else its path.

    checkpoint, digest  what lies there; None and "" if it cannot be opened, for the reason `problem`
    """

    name: int | str
    checkpoint: Checkpoint | None = None
    digest: str = ""
    problem: CheckpointError | None = None


def asked_steps(
    words: Sequence[str], folder: str, base: str | None, open_folder: Callable[[str], Checkpoint]
) -> Iterator[AskedStep]:
    """The checkpoints that the words stand for beside `folder`, a run or one of its steps; each once.

    Raises UsageError for the number of a step where there is no run.
    """
    opened = expand(folder).absolute()
    run: Path | None = opened
    if not run_steps(opened):
        steps = find_weights(opened).steps
        run = steps[0].path.parent if steps else None
    around = Surroundings(opened=opened, run=run, base=base or "")
    seen: set[Path] = set()
    for word in words:
        number = STEP_WORD.fullmatch(word)
        try:
            checkpoint = open_folder(str(around.folder(word)))
            digest = digests(checkpoint).checkpoint
        except CheckpointError as problem:
            yield AskedStep(name=int(number[1]) if number else word, problem=problem)
        except OSError as error:  # training removes old steps, perhaps in this moment
            gone = CheckpointError(f"{word} cannot be read.", f"{error}.", "Check that it is still there.")
            yield AskedStep(name=int(number[1]) if number else word, problem=gone)
        else:
            if checkpoint.path.absolute() not in seen:
                seen.add(checkpoint.path.absolute())
                name = str(checkpoint.path) if checkpoint.step is None else checkpoint.step
                yield AskedStep(name=name, checkpoint=checkpoint, digest=digest)


def first_there(steps: Iterator[AskedStep] | Sequence[AskedStep]) -> Checkpoint:
    """The first of the checkpoints that can be opened. Raises CheckpointError if none can."""
    problem: CheckpointError | None = None
    for step in steps:
        if step.checkpoint is not None:
            return step.checkpoint
        problem = problem or step.problem
    assert problem is not None
    raise problem
