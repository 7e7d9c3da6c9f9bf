"""How a run over prompts is to refine, where nothing says so: its first prompt is tried out. Knows no ranks."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import islice
from typing import Protocol

from chat.batch.fitting import transcript_of
from chat.batch.jobs import Jobs
from chat.batch.prompts import Prompts
from chat.batch.workers import TurnAnswerer
from chat.loading.trial import Trial, trial_turn
from chat.start.options import LaunchOptions
from chat.text.prompt import fit
from chat.text.tokenizer import ChatTokenizer
from dist.errors import PromptError
from dist.protocol import BlockUpdate, Control
from dist.settings import GenerationSettings

LOOKED_AT = 100  # prompts, for one that fits


class TrialEngine(TurnAnswerer, Protocol):
    """What is needed of the engine."""

    @property
    def auto_length(self) -> int: ...


def measured(
    engine: TrialEngine,
    tokenizer: ChatTokenizer,
    options: LaunchOptions,
    settings: GenerationSettings,
    prompts: Prompts,
    *,
    undecided: Collection[str],
    stop: Callable[[], bool],
) -> tuple[GenerationSettings, str]:
    """The settings that the first prompt's first block speaks for, and why in a line.

    Only the `undecided` settings change. `stop` is asked once a pass whether the run is to end.
    """
    updates: list[BlockUpdate] = []
    prompt = _first(engine, tokenizer, options, settings, prompts)
    if prompt is not None:
        turn = trial_turn(prompt, settings, tokenizer.eos_id)
        try:
            for event in engine.answer(turn, lambda: Control(settings=turn.settings, cancel=stop())):
                if isinstance(event, BlockUpdate):
                    updates.append(event)
        except PromptError:
            # The prompt's own result will say what is wrong.
            updates.clear()
    return Trial.of_block(updates, tokenizer.stop_ids).chosen(settings, undecided, engine.auto_length)


def _first(
    engine: TurnAnswerer,
    tokenizer: ChatTokenizer,
    options: LaunchOptions,
    settings: GenerationSettings,
    prompts: Prompts,
) -> tuple[int, ...] | None:
    use_template = tokenizer.wants_template(options.use_chat_template)
    for job in islice(Jobs(prompts, 1), LOOKED_AT):
        try:
            return fit(
                transcript_of(job, options.system),
                tokenizer,
                settings,
                engine.max_positions,
                use_template=use_template,
                refuse=True,
            ).token_ids
        except PromptError:
            continue
    return None
