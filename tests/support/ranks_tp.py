"""Run by test_tensor_parallel.py: on real gloo ranks, cut models, compare the parts and let them answer.

Arguments: comma-separated rank counts, then folders of models; "FOLDER, later" beside one has other weights of it.
Prints {count: {folder: {...}, "head": {...}}} as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch
from ranks import results_of_forks
from safetensors.torch import load_file

from dist.checkpoint.boxes import even_bounds
from dist.checkpoint.open import open_checkpoint
from dist.decode.engine import Engine
from dist.errors import ChatError
from dist.model.head import VocabularyHead, WholeHead
from dist.model.load import load_model
from dist.model.reload import Reloader
from dist.protocol import BlockUpdate, Control, Reply, Turn
from dist.settings import GenerationSettings

PROMPTS = (tuple(3 + i * 7 % 200 for i in range(25)), (5, 9), tuple(range(40, 71)))
GREEDY = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=12)
SAMPLED = dataclasses.replace(GREEDY, temperature=0.9, seed=2**62 + 5)
VARIANTS = {
    "cached": GREEDY,
    "plain": dataclasses.replace(GREEDY, decoder="plain"),
    "sampled": SAMPLED,
    "nucleus": dataclasses.replace(SAMPLED, top_p=0.9, top_k=40),
}
# Beside these, what is held to a rule of its own.
SURE = dataclasses.replace(GREEDY, refine_iter="auto", accept=0.03)


def main() -> None:
    print(json.dumps(results_of_forks(map(int, sys.argv[1].split(",")), load_all)))


def load_all(group) -> dict:
    return {folder: load(folder, group) for folder in sys.argv[2:]} | {"head": heads_apart(group)}


def load(folder: str, group) -> dict:
    try:
        loaded = load_model(open_checkpoint(folder), group, parallel="tp")
    except ChatError as error:
        return {"error": str(error)}
    differing = group.gather_errors(", ".join(differing_parts(folder, loaded, group)) or None)
    reloader = Reloader(loaded, group, open_checkpoint)
    engine = Engine(loaded.module, group, max_positions=loaded.max_positions, head=loaded.head, reloader=reloader)
    reads = [0] * group.size
    reads[group.rank] = loaded.facts.load_bytes
    read = torch.tensor(reads)
    group.sum_in_place(read)
    result = {
        "differing": differing,
        "parallel": loaded.facts.parallel,
        "held": loaded.facts.bytes_per_rank,
        "read": read.tolist(),
        "slow": engine.slow_reason,
    }
    later = f"{folder}, later"
    if group.rank:
        engine.follow()
    else:
        # Its last prompt is of threes: what it leaves must be the same on all ranks, or the next one falls out of
        # step.
        engine.warm_up(GREEDY)
        replies(engine, ((3, 3, 5, 9),), GREEDY)
        result |= {name: replies(engine, PROMPTS[:1], settings)[0] for name, settings in VARIANTS.items()}
        result["sure"] = replies(engine, PROMPTS[:1], SURE)[0]
        result["batch"] = replies(engine, PROMPTS, GREEDY)
        result["together"] = engine.forwards.batch is not None
        result["trace"] = traced(engine)
        scored = Turn(prompts=PROMPTS[:1], settings=GREEDY, placeholder=2, stop_ids=(2,), logprobs=2)
        *_, last = engine.answer(scored, lambda: Control(settings=GREEDY))
        assert isinstance(last, Reply)
        result["logprobs"] = [value for value, _ in last.logprobs or ()]
        if Path(later).exists():
            engine.load(reloader.check(later))
            result["later"] = replies(engine, PROMPTS[:1], GREEDY)[0]
        engine.shutdown()
    if Path(later).exists():
        result["differing later"] = group.gather_errors(", ".join(differing_parts(later, loaded, group)) or None)
    return result


def heads_apart(group) -> dict:
    """{vocabulary: which of the rows a head over all ranks chooses or gathers otherwise than a whole one}."""
    nan, low = float("nan"), float("-inf")
    reported = {}
    for vocabulary in (331, 9, 2):
        torch.manual_seed(vocabulary)
        # Few values, so that most rows have ties within and between shares.
        logits = torch.randint(-3, 3, (200, vocabulary)).float()
        logits[:4] = torch.tensor([[low], [0.0], [nan], [float("inf")]])
        logits[torch.arange(4, 50), torch.arange(4, 50) % vocabulary] = nan
        for dtype in (torch.float32, torch.bfloat16):
            whole = logits.to(dtype)
            bounds = even_bounds(vocabulary, group.size)
            mine = whole[:, bounds[group.rank] : bounds[group.rank + 1]]
            head = VocabularyHead(group, vocabulary)
            other = head.greedy(mine) != WholeHead().greedy(whole)
            joined = head.whole(mine[:, None])[:, 0]
            other |= ~torch.isclose(joined, whole, rtol=0, atol=0, equal_nan=True).all(-1)
            wrong = other.nonzero().flatten().tolist()
            reported[f"{vocabulary} {dtype}"] = group.gather_errors(str(wrong) if wrong else None)
    return reported


def replies(engine, prompts, settings) -> list:
    turn = Turn(prompts=prompts, settings=settings, placeholder=2, stop_ids=(2,))
    events = engine.answer(turn, lambda: Control(settings=settings))
    rows = {event.row: list(event.token_ids) for event in events if isinstance(event, Reply)}
    return [rows[row] for row in sorted(rows)]


def traced(engine) -> list:
    """The candidates of the first pass."""
    turn = Turn(prompts=PROMPTS[:1], settings=GREEDY, placeholder=2, stop_ids=(2,), trace=True)
    events = list(engine.answer(turn, lambda: Control(settings=GREEDY)))
    return next(event for event in events if isinstance(event, BlockUpdate)).candidates


def differing_parts(folder: str, loaded, group) -> list[str]:
    """Names of parameters that are not bit-equal to this rank's part of what was saved."""
    saved = load_file(next(Path(folder).glob("**/model.safetensors")))
    if "lm_head.weight" not in saved:
        saved["lm_head.weight"] = saved["model.embed_tokens.weight"]
    state = loaded.module.state_dict()
    wrong = [
        name
        for name in saved.keys() | state.keys()
        if not torch.equal(state[name].float(), part(name, saved[name], loaded.module.config, group).float())
    ]
    head, table = loaded.module.lm_head.weight, loaded.module.model.embed_tokens.weight
    if loaded.module.config.tie_word_embeddings:
        at = table.data_ptr() + loaded.head.first_token * table.shape[1] * table.element_size()
        wrong += ["the head is a copy"] if head.data_ptr() != at else []
    return wrong


def part(name: str, whole: torch.Tensor, config, group) -> torch.Tensor:
    """What a rank should hold, by the definition of each cut."""
    rank, size = group.rank, group.size
    if any(kind in name for kind in ("q_proj", "k_proj", "v_proj")):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        by_head = whole.unflatten(0, (heads, -1))
        if heads % size == 0:
            return by_head.chunk(size)[rank].flatten(0, 1)
        return by_head[rank * heads // size]
    if "o_proj.weight" in name or "down_proj.weight" in name:
        return whole.chunk(size, dim=1)[rank]
    if any(kind in name for kind in ("gate_proj", "up_proj", "lm_head")):
        return whole.chunk(size)[rank]
    return whole


if __name__ == "__main__":
    main()
