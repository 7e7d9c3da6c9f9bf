"""Whether a checkpoint can be refined by two passes a block: its first block tells. Knows no model and no rank.

Most checkpoints were never trained for it; at a fixed number of passes they write garbage. So where nothing names
`refine_iter`, one block is refined until it is exact, and what stood there after two passes is compared with that.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from dist.protocol import BlockUpdate, Turn
from dist.settings import DEFAULT, SETTINGS, GenerationSettings

BLOCK, PASSES = 16, 2
ENOUGH = 0.8
# Fewer tokens up to a stop token tell nothing: the first two are exact after two passes anyway.
FEWEST = 8


def undecided(origins: Mapping[str, str]) -> frozenset[str]:
    """The settings that a trial decides on: none where `refine_iter` was named. `origins`: where each came from."""
    if origins.get("refine_iter") != DEFAULT:
        return frozenset()
    return frozenset(name for name in ("refine_iter", "add_eos_length") if origins.get(name) == DEFAULT)


def until_decided(settings: GenerationSettings, undecided: Collection[str], auto_length: int) -> GenerationSettings:
    """What is likely to be used, and has the trial's width on GPUs: so a warm-up under it serves both."""
    values = {"refine_iter": "auto", "add_eos_length": auto_length}
    return replace(settings, **{name: values[name] for name in undecided})  # type: ignore[arg-type]


def trial_turn(prompt: tuple[int, ...], settings: GenerationSettings, placeholder: int) -> Turn:
    """One block of the reply to `prompt`, refined until it is exact: what a window as long as the reply does."""
    trial = replace(
        settings,
        add_eos_length=BLOCK - 1,
        refine_iter="auto",
        max_new_tokens=BLOCK,
        temperature=0.0,
        drafts="own",
        accept=None,
    )
    return Turn(prompts=(prompt,), settings=trial, placeholder=placeholder, stop_ids=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How many `of` a block's tokens were the `same` after two passes as in the end; 0 of 0: it was cut short."""

    same: int
    of: int

    @classmethod
    def of_block(cls, updates: Sequence[BlockUpdate], stop_ids: Sequence[int]) -> Trial:
        """From the updates of a `trial_turn`; what stands behind a stop token does not count."""
        if not updates or updates[-1].finish is None:
            return cls(same=0, of=0)
        texts, settled = list[tuple[int, ...]](), tuple[int, ...]()
        for update in updates:
            texts.append((*settled, *update.token_ids))
            settled += update.settled_ids
        early, final = texts[min(PASSES, len(texts)) - 1], texts[-1]
        end = next((at + 1 for at, token in enumerate(final) if token in stop_ids), len(final))
        return cls(same=sum(a == b for a, b in zip(early[:end], final[:end])), of=end)

    @property
    def tells(self) -> bool:
        """Whether enough tokens were compared."""
        return self.of >= FEWEST

    def chosen(
        self, settings: GenerationSettings, undecided: Collection[str], auto_length: int
    ) -> tuple[GenerationSettings, str]:
        """The settings to use, and why in a line. Only the `undecided` ones change."""
        refines = self.tells and self.same >= ENOUGH * self.of
        if refines:
            chosen = replace(settings, **{name: SETTINGS[name].default for name in undecided})  # type: ignore[arg-type]
        else:
            chosen = until_decided(settings, undecided, auto_length)
        what = f"refine_iter {chosen.refine_iter}, add_eos_length {chosen.add_eos_length}"
        if not self.tells:
            return chosen, f"{what} for this reply: its first block is too short to measure refinement by."
        share = f"{self.same} of {self.of} tokens of a first block were final after {PASSES} passes"
        rule = "" if refines else f", and below {ENOUGH:.0%} a fixed refine_iter writes garbage"
        return chosen, f"{what}, measured: {share}{rule}."
