"""Replies and passes of the engine against those of the published loop, token by token. Knows no table and no file.

In the benchmark's letters B is the published loop with resident weights, C is the engine.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch

from dist.decode.engine import Engine
from dist.protocol import BlockUpdate, Control, Reply, Turn
from dist.settings import GenerationSettings

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What B chooses at each place of one pass, its second choice, and by how much the logit of that is lower."""

    tokens: Ids
    runners_up: Ids
    margins: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A place of a pass (all counted from 0) at which C has `ours` and B `theirs`; margin and runner-up are B's."""

    block: int
    iteration: int
    place: int
    theirs: int
    ours: int
    runner_up: int
    margin: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OurPass:
    """One pass of C: it read `token_ids`, of `wanted` places the first `known` stood already, `draft` came out.

    The draft of a block's last pass is cut where the reply ends.
    """

    block: int
    iteration: int
    token_ids: Ids
    wanted: int
    known: int
    draft: Ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One prompt under one setting: both replies, where drafts first differ, and C's passes as B sees them.

    `judged` has an entry for each of `pass_differences`: the token that float32 chooses there, and its margin.
    """

    theirs: Ids
    ours: Ids
    first: Difference | None
    margins: tuple[float, ...]
    passes: int
    pass_margins: tuple[float, ...]
    pass_differences: tuple[Difference, ...]
    judged: tuple[tuple[int, float], ...]

    @property
    def until(self) -> int:
        """Tokens up to and including the first at which the replies differ, else all."""
        pairs = enumerate(zip_longest(self.theirs, self.ours), 1)
        return next((place for place, (a, b) in pairs if a != b), len(self.theirs))


class PublishedLoop:
    """Arm B. The same input gives the same choices, so what was read for the present prompt is not read again."""

    def __init__(self, module: Any, placeholder: int, stop_ids: Iterable[int]) -> None:
        self.placeholder = placeholder
        self.stop_ids = tuple(stop_ids)
        self.forwards, self.seconds = 0, 0.0
        self._module = module
        self._seen: dict[tuple[Ids, int], Look] = {}

    def forget(self) -> None:
        """Another prompt follows."""
        self._seen.clear()

    def look(self, token_ids: Ids, wanted: int) -> Look:
        """The choices after each of the last `wanted` tokens."""
        if (token_ids, wanted) not in self._seen:
            self._seen[token_ids, wanted] = self._read(token_ids, wanted)
        return self._seen[token_ids, wanted]

    @torch.inference_mode()
    def _read(self, token_ids: Ids, wanted: int) -> Look:
        started = time.perf_counter()
        device = next(self._module.parameters()).device
        logits = self._module(input_ids=torch.tensor([token_ids], device=device), use_cache=False).logits
        best = logits.argmax(dim=-1)[0, -wanted:].unsqueeze(-1)
        scores = logits[0, -wanted:].float()
        next_best = scores.scatter(-1, best, -torch.inf).max(dim=-1)
        margins = scores.gather(-1, best).squeeze(-1) - next_best.values
        look = Look(
            tokens=tuple(best.squeeze(-1).tolist()),
            runners_up=tuple(next_best.indices.tolist()),
            margins=tuple(margins.tolist()),
        )
        self.forwards += 1
        self.seconds += time.perf_counter() - started
        return look

    def blocks(self, prompt: Ids, settings: GenerationSettings) -> list[list[Look]]:
        """Every block's passes. A pass after one that changed nothing is left out: it would choose the same."""
        n, prefix, blocks = settings.add_eos_length, prompt, []
        rounds = int(settings.refine_iter)
        while True:
            draft: Ids = (self.placeholder,) * (n + 1)
            looks: list[Look] = []
            while len(looks) < rounds and (not looks or looks[-1].tokens[:n] != draft[:n]):
                draft = looks[-1].tokens if looks else draft
                looks.append(self.look(prefix + draft[:n], n + 1))
            blocks.append(looks)
            prefix += looks[-1].tokens
            made = len(prefix) - len(prompt)
            if made >= settings.max_new_tokens or set(looks[-1].tokens) & set(self.stop_ids):
                return blocks

    def reply(self, blocks: Sequence[Sequence[Look]], settings: GenerationSettings) -> Ids:
        """The reply that these blocks make, up to the first stop token or the budget."""
        tokens = [token for looks in blocks for token in looks[-1].tokens]
        ends = [place for place, token in enumerate(tokens, 1) if token in self.stop_ids]
        return tuple(tokens[: min([settings.max_new_tokens, *ends[:1]])])


def our_passes(
    prompt: Ids, updates: Iterable[BlockUpdate], settings: GenerationSettings, placeholder: int
) -> list[OurPass]:
    """C's passes with their inputs, from the updates of one reply that only `max_new_tokens` limits."""
    passes: list[OurPass] = []
    prefix, draft, known = prompt, (), 0
    for update in updates:
        if update.iteration == 1:
            room = settings.max_new_tokens - (len(prefix) - len(prompt))
            draft, known = (placeholder,) * min(settings.add_eos_length + 1, room), 0
        passes.append(
            OurPass(
                block=update.index,
                iteration=update.iteration - 1,
                token_ids=prefix + draft[:-1],
                wanted=len(draft),
                known=known,
                draft=update.token_ids,
            )
        )
        draft, known = update.token_ids, update.exact
        prefix += update.settled_ids
    return passes


def differences(look: Look, made: OurPass) -> Iterable[Difference]:
    """Places at which C's draft after a pass is not B's, in order."""
    for place, (theirs, ours) in enumerate(zip(look.tokens, made.draft)):
        if theirs != ours:
            yield Difference(
                block=made.block,
                iteration=made.iteration,
                place=place,
                theirs=theirs,
                ours=ours,
                runner_up=look.runners_up[place],
                margin=look.margins[place],
            )


def first_difference(blocks: Sequence[Sequence[Look]], passes: Sequence[OurPass]) -> Difference | None:
    """Where both ways part: up to there they read the same inputs. None if no draft differs.

    Passes that either way leaves out would change nothing, so its last draft of the block stands for them.
    """
    for block, looks in enumerate(blocks):
        ours = [made for made in passes if made.block == block]
        for iteration in range(max(len(looks), len(ours)) if ours else 0):
            pair = looks[min(iteration, len(looks) - 1)], ours[min(iteration, len(ours) - 1)]
            for difference in differences(*pair):
                return difference
    return None


def compare(
    engine: Engine, loop: PublishedLoop, judge: PublishedLoop, prompt: Ids, settings: GenerationSettings
) -> Comparison:
    """Both ways' replies to one prompt, and B's choices on the inputs of C's passes.

    Where these differ `judge`, the published loop in float32, is asked as well.
    """
    turn = Turn(prompts=(prompt,), settings=settings, placeholder=loop.placeholder, stop_ids=loop.stop_ids)
    events = list(engine.answer(turn, lambda: Control(settings=settings)))
    updates = [event for event in events if isinstance(event, BlockUpdate)]
    ours = next(event.token_ids for event in events if isinstance(event, Reply))
    passes = our_passes(prompt, updates, settings, loop.placeholder)
    blocks = loop.blocks(prompt, settings)
    pairs = [(loop.look(made.token_ids, made.wanted), made) for made in passes]
    # What stood already was chosen, and counted, in an earlier pass.
    others = [(made, one) for look, made in pairs for one in differences(look, made) if one.place >= made.known]
    verdicts = [(judge.look(made.token_ids, made.wanted), one.place) for made, one in others]
    return Comparison(
        theirs=loop.reply(blocks, settings),
        ours=ours,
        first=first_difference(blocks, passes),
        margins=tuple(margin for block in blocks for look in block for margin in look.margins),
        passes=len(passes),
        pass_margins=tuple(m for look, made in pairs for m in look.margins[made.known : len(made.draft)]),
        pass_differences=tuple(one for _, one in others),
        judged=tuple((look.tokens[place], look.margins[place]) for look, place in verdicts),
    )
