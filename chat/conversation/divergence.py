"""Where two checkpoints' replies to one prompt diverge, and whether that can be said. Pure; knows no model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from chat.conversation.provenance import is_other
from chat.sessions.nodes import Made
from chat.text.cells import visible
from chat.text.running_text import Decode
from dist.counted import counted
from dist.protocol import BlockUpdate
from dist.settings import SAMPLING

BLOCKS = ("refine_iter", "add_eos_length")
WORDS = 4  # tokens shown of each reply where they diverge


class Margins:
    """For each token of a reply by how much its logit led the second best, where the passes' candidates say."""

    def __init__(self) -> None:
        self._margins: list[float] = []

    def take(self, update: BlockUpdate) -> None:
        for places in (update.candidates or ())[: update.settled]:
            probabilities = [probability for _, probability in places[:2]]
            apart = len(probabilities) > 1 and probabilities[1] > 0
            self._margins.append(math.log(probabilities[0] / probabilities[1]) if apart else math.inf)

    def at(self, place: int) -> float | None:
        """In logits, at a token of the reply."""
        return self._margins[place] if place < len(self._margins) else None


def not_comparable(before: Made, now: Made) -> str | None:
    """Why these two replies can't be compared, or None.

    Only exact replies to one prompt can; if the same weights made both, any two that were made the same way.
    """
    if before.turn.prompt != now.turn.prompt:
        return "their prompts differ"
    for name in SAMPLING:
        if before.settings.get(name) != now.settings.get(name):
            return f"{name} was {before.settings.get(name)} and is {now.settings.get(name)}"
    if now.settings.get("temperature") and before.turn.seed != now.turn.seed:
        return f"the seed was {before.turn.seed} and is {now.turn.seed} (/seed {before.turn.seed} uses it again)"
    if any(made.turn.settings.get("refine_iter") != "auto" for made in (before, now)):
        if not _same_weights(before, now):
            return "both must be made at refine_iter auto"
        for name in BLOCKS:
            if before.settings.get(name) != now.settings.get(name):
                return f"{name} was {before.settings.get(name)} and is {now.settings.get(name)}"
    if any(made.turn.settings.get("accept") is not None for made in (before, now)):
        return "replies made with accept are not exact"
    if any(_changed(made) for made in (before, now)):
        return "settings changed while one of them was made"
    return None


def divergence(before: Made, now: Made, decode: Decode, margin: Margins | None = None) -> str:
    """In a sentence how far a reply is that of the checkpoint before. `margin`: of the newer one, in 16 bits."""
    who = _name(before)
    problem = not_comparable(before, now)
    if problem:
        return f"Not comparable with the reply of {who}: {problem}."
    ours, theirs = now.token_ids, before.token_ids
    both = min(len(ours), len(theirs))
    place = next((at for at in range(both) if ours[at] != theirs[at]), both)
    if place == both:
        whole = len(ours) == len(theirs)
        far = f"all {both:,} tokens" if whole else f"the {counted(both, 'token')} that both have"
        return f"The same as the reply of {who}, in {far}."
    at = margin.at(place) if margin is not None else None
    doubt = "" if at is None else f" The top-2 margin there is {at:.2f} logits, and 16 bits round."
    return (
        f"The same as the reply of {who} for {counted(place, 'token')}, "
        f"then {_words(ours, place, decode)} in the place of {_words(theirs, place, decode)}.{doubt}"
    )


def _same_weights(before: Made, now: Made) -> bool:
    was, present = before.checkpoint, now.checkpoint
    return was is not None and present is not None and not is_other(was, present)


def _changed(made: Made) -> bool:
    return any(change.name in (*SAMPLING, "seed", "refine_iter", "decoder", "accept") for change in made.changes)


def _name(made: Made) -> str:
    checkpoint = made.checkpoint
    if checkpoint is None:
        return "an unknown checkpoint"
    return checkpoint.path if checkpoint.step is None else f"step {checkpoint.step}"


def _words(token_ids: Sequence[int], place: int, decode: Decode) -> str:
    text = decode(token_ids[place : place + WORDS]).strip()
    return f'"{visible(text)}"' if text else "its end"
