"""What a run over prompts is to make: its jobs, its seeds, the conditions it runs under. Knows no model.

All but the dtype is known before a model loads, and so most outputs of other runs are refused by then.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from chat.batch.prompts import Prompt, Prompts
from chat.start.options import LaunchOptions
from dist.settings import MAX_SEED, GenerationSettings

CONDITION_FACTS = ("checkpoint", "digest", "dtype")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One reply to be made.

    place    among the replies of the run, from 0
    number   of the prompt in the input, from 0
    prompt   the prompt itself
    sample   which of the prompt's replies, from 0
    step     which of the run's checkpoints makes it, from 0
    """

    place: int
    number: int
    prompt: Prompt
    sample: int
    step: int = 0

    @property
    def given(self) -> Any:
        """The prompt as it was read."""
        return self.prompt.given


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What all replies of a run share: the settings in force, and whether each carries a sample and a seed.

    `step` is what each says of the checkpoint that made it, None where the run has one only.
    """

    settings: Mapping[str, Any]
    numbered: bool
    step: int | str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """One of the run's checkpoints. `name` is what results say of it, None where there is one only.

    conditions  what decides its replies besides what decides all
    gone        it is not there any more, and so not all of them are known
    """

    name: int | str | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Jobs:
    """The replies to make, in the order of the results: all samples of a prompt, then those of the next.

    Of `steps` checkpoints each makes all of these, one after the other.
    """

    prompts: Prompts
    samples: int
    steps: int = 1

    def __len__(self) -> int:
        return self.each * self.steps

    @property
    def each(self) -> int:
        """How many each checkpoint makes."""
        return len(self.prompts) * self.samples

    def __iter__(self) -> Iterator[Job]:
        for step in range(self.steps):
            yield from self.of_step(step)

    def of_step(self, step: int) -> Iterator[Job]:
        """Those that one of the checkpoints makes."""
        for number, prompt in enumerate(self.prompts):
            for sample in range(self.samples):
                place = step * self.each + number * self.samples + sample
                yield Job(place=place, number=number, prompt=prompt, sample=sample, step=step)


def conditions_of(
    options: LaunchOptions, settings: GenerationSettings, use_template: bool, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Whatever decides the replies besides the prompts, by name. Of `facts` checkpoint, digest and dtype count."""
    return {
        **settings.as_dict(),
        **{name: facts[name] for name in CONDITION_FACTS if name in facts},
        "use_chat_template": use_template,
        **({} if options.chat_template is None else {"chat_template": options.chat_template}),
        "system": options.system,
        "n": options.n,
    }


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
