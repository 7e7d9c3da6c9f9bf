"""Run by test_group.py on real ranks: one engine on all of them; rank 0 prints what came out as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import torch
from tiny_models import tiny_model

from dist.decode.engine import Engine
from dist.errors import PromptError
from dist.group.group import TorchGroup
from dist.group.wire import Verdict
from dist.protocol import BlockUpdate, Control, Load, Reply, Turn
from dist.setting_kinds import OF_RANK_0
from dist.settings import SETTINGS, GenerationSettings, parse_setting

PROMPT = tuple(3 + i % 50 for i in range(30))
GREEDY = GenerationSettings(add_eos_length=7, refine_iter=2, max_new_tokens=30)
SAMPLED = dataclasses.replace(GREEDY, temperature=0.9, top_p=0.9, seed=2**62 + 5)
SEEDED = dataclasses.replace(GREEDY, seed=1)
# Of every setting that travels, another value than SEEDED has.
CHANGES = {
    name: next(
        value for example in row.examples if (value := parse_setting(name, example)) != getattr(SEEDED, name)
    )
    for name, row in SETTINGS.items()
    if not isinstance(row.kind, OF_RANK_0)
} | {"seed": 2**63 - 1}


class Attentive(TorchGroup):
    """The ranks' group, which notes the settings of verdicts that it hears, where they are not SEEDED's."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: dict[str, object] = {}

    def agree(self, verdict: torch.Tensor) -> torch.Tensor:
        agreed = super().agree(verdict)
        settings = Verdict.unpacked(agreed, 0).settings.as_dict()
        self.heard |= {name: value for name, value in settings.items() if value != SEEDED.as_dict()[name]}
        return agreed


def after_token(reply: Sequence[int], new: int, stops: tuple[str, ...]) -> int | None:
    """Stop texts that are numbers of tokens."""
    return next((n for n, token in enumerate(reply[-new:], 1) if str(token) in stops), None)


def main() -> None:
    torch.manual_seed(0)
    group = Attentive()
    ends = None if group.rank else after_token
    engine = Engine(tiny_model(), group, max_positions=4096, ends=ends)
    if group.rank:
        assert group.receive() == Load(path="x" * 20_000, digest="")
        engine.follow()
        group.heard.clear()
        engine.follow()
        group.gather_errors(json.dumps(group.heard))
    else:
        group.publish(Load(path="x" * 20_000, digest=""))
        results = leader(engine)
        engine.shutdown()
        change_settings(engine)
        engine.shutdown()
        heard = group.gather_errors(None)
        print(json.dumps({"size": group.size, "heard": [json.loads(text) for text in heard.values()], **results}))
    group.close()


def change_settings(engine: Engine) -> None:
    """A turn for each setting, which changes in mid-reply."""
    turn = Turn(prompts=(PROMPT,), settings=SEEDED, placeholder=2, stop_ids=())
    for name, value in CHANGES.items():
        changed = SEEDED.with_value(name, value)
        *_, reply = engine.answer(turn, lambda changed=changed: Control(settings=changed))
        assert isinstance(reply, Reply)


def leader(engine: Engine) -> dict:
    def run(settings, prompt=PROMPT, poll=None, stop_ids=(2,)):
        turn = Turn(prompts=(prompt,), settings=settings, placeholder=2, stop_ids=stop_ids)
        return list(engine.answer(turn, poll or (lambda: Control(settings=settings))))

    polls = 0

    def poll():
        nonlocal polls
        polls += 1
        return Control(settings=dataclasses.replace(GREEDY, refine_iter=3), cancel=polls == 8)

    results = {
        "greedy": run(GREEDY)[-1].token_ids,
        "sampled": run(SAMPLED)[-1].token_ids,
        "auto": run(dataclasses.replace(GREEDY, refine_iter="auto"))[-1].token_ids,
        "long prompt": run(GREEDY, PROMPT * 60)[-1].token_ids,
    }
    live = run(GREEDY, poll=poll, stop_ids=())[-1]
    assert isinstance(live, Reply)
    results["cancelled"] = [live.finish, live.stats.iterations, live.token_ids]
    turn = Turn(prompts=(PROMPT,), settings=GREEDY, placeholder=2, stop_ids=(2,))
    for event in engine.answer(turn, lambda: Control(settings=GREEDY)):
        assert isinstance(event, BlockUpdate)
        break
    results["after an abandoned turn"] = run(GREEDY)[-1].token_ids
    try:
        run(GREEDY, prompt=())
    except PromptError as error:
        results["refused"] = str(error)
    results["after a refused turn"] = run(GREEDY)[-1].token_ids
    scored = Turn(prompts=(PROMPT,), settings=GREEDY, placeholder=2, stop_ids=(2,), logprobs=2)
    *_, last = engine.answer(scored, lambda: Control(settings=GREEDY))
    assert isinstance(last, Reply) and last.logprobs is not None
    results["logprobs"] = [value for value, _ in last.logprobs]
    # A reply's own last but three token ends it; the followers do not know which that is.
    for name, settings in (("blocks", GREEDY), ("window", dataclasses.replace(GREEDY, refine_iter="auto"))):
        target = str(results["greedy" if name == "blocks" else "auto"][-4])
        stopped = run(dataclasses.replace(settings, stop=(target,)))[-1]
        results[f"stopped, {name}"] = [stopped.finish, stopped.token_ids]
    return results


if __name__ == "__main__":
    main()
