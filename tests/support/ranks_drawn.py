"""Run by test_group.py on real ranks: drawn prompts and settings against the plain rule, in every family.

Rank 0 draws, asks and compares; the first case that differs ends the run with hypothesis' own report.
"""

from __future__ import annotations

import json
import random

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_rule import plain_rule
from tiny_models import FAMILIES, VOCABULARY, tiny_model

from dist.decode.drafts import Drafts, LookUp
from dist.decode.engine import Engine
from dist.group.group import TorchGroup
from dist.protocol import Control, Reply, Turn
from dist.settings import GenerationSettings

PROMPTS = st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=300).map(tuple)
few = settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def main() -> None:
    group = TorchGroup()
    for family in FAMILIES:
        engine = Engine(tiny_model(family), group, max_positions=512, drafts=wild)
        if group.rank:
            engine.follow()
        else:
            engine.warm_up(GenerationSettings(temperature=0.8))
            check(engine, family)
            engine.shutdown()
    if group.rank == 0:
        print(json.dumps({"size": group.size, "families": list(FAMILIES)}))
    group.close()


class Wild(Drafts):
    """The program's own drafts, but for those that are nonsense: by chance, which is the same on every rank."""

    def draft(self, text, tail, size, *, own=False):
        draw = random.Random(f"{len(text)} {text[-1]}")
        if draw.random() < 0.5:
            return super().draft(text, tail, size, own=own)
        return [draw.randrange(-1, VOCABULARY + 1) for _ in range(draw.randrange(2 * size))]


def wild(turn, row):
    return Wild({"lookup": LookUp()})


def check(engine: Engine, family: str) -> None:
    @few
    @given(
        prompt=PROMPTS,
        n=st.sampled_from([0, 1, 3, 7, 31, 127]),
        rounds=st.sampled_from([1, 2, 5, "auto", "auto"]),
        new=st.integers(1, 40),
        room=st.integers(1, 60),
        temperature=st.sampled_from([0.0, 0.0, 0.8]),
        stop_ids=st.sampled_from([(2,), (2, 5, 11, 17), tuple(range(2, 40, 3))]),
    )
    def same(prompt, n, rounds, new, room, temperature, stop_ids):
        settings = GenerationSettings(
            add_eos_length=n,
            refine_iter=rounds,
            max_new_tokens=new,
            max_length=len(prompt) + room,
            temperature=temperature,
            seed=7,
        )
        turn = Turn(prompts=(prompt,), settings=settings, placeholder=2, stop_ids=stop_ids)
        reply = list(engine.answer(turn, lambda: Control(settings=settings)))[-1]
        assert isinstance(reply, Reply)
        assert reply.token_ids == plain_rule(tiny_model(family), prompt, settings, 2, stop_ids, 512)

    same()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
