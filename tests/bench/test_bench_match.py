"""Matching tokens: in float32 all of them match, and one that does not is counted where it is."""

from __future__ import annotations

import copy
import json
import random

import pytest
import torch
from bench_match import main, settings_of, write_merged
from match_tables import figures, share, tables
from matching import Comparison, Difference, Look, OurPass, PublishedLoop, compare, first_difference, our_passes
from plain_rule import plain_rule
from tiny_models import FAMILIES, VOCABULARY, tiny_model

from chat.demo.adapter import write_adapter
from dist.checkpoint.open import open_checkpoint
from dist.decode.engine import Engine
from dist.decode.rule import Refinement
from dist.group.group import SoloGroup
from dist.model.load import load_model

pytestmark = pytest.mark.slow

PLACEHOLDER, STOPS, NEW = 2, (2, 7), 21
CELLS = ("7,1", "7,2", "7,4", "0,1", "31,2")
DRAW = random.Random(4)
PROMPTS = [tuple(DRAW.randrange(3, VOCABULARY) for _ in range(length)) for length in (1, 5, 40, 90)]


def disturbed(model):
    """The same model with an output head that is a little off."""
    other = copy.deepcopy(model)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        weight = other.get_output_embeddings().weight
        weight += 0.03 * torch.randn_like(weight)
    return other


def compared(theirs, ours, cell, stops=STOPS) -> list[Comparison]:
    engine = Engine(ours, SoloGroup(torch.device("cpu")), max_positions=512)
    loop = PublishedLoop(theirs, PLACEHOLDER, stops)
    return [compare(engine, loop, loop, prompt, settings_of(cell, NEW)) for prompt in PROMPTS]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_in_float32_every_token_of_every_pass_matches(family, cell):
    model = tiny_model(family)
    row = figures(cell, compared(model, model, cell))
    assert row["replies_same"] == row["replies"] == len(PROMPTS)
    assert row["places_same"] == row["until_same"] == row["until"] == row["places"] > 0
    assert row["pass_same"] == row["pass_places"] > 0
    assert (row["drafts_differ"], row["first_margins"], row["pass_others_margins"]) == (0, None, None)


@pytest.mark.parametrize("cell", CELLS)
def test_both_replies_and_their_matches_are_those_of_the_plain_rule(cell):
    model, other = tiny_model(), disturbed(tiny_model())
    settings = settings_of(cell, NEW)
    theirs, ours = (
        [plain_rule(one, prompt, settings, PLACEHOLDER, STOPS) for prompt in PROMPTS] for one in (model, other)
    )
    found = compared(model, other, cell)
    assert [one.theirs for one in found] == theirs
    assert [one.ours for one in found] == ours

    row = figures(cell, found)
    different = [pair for pair in zip(theirs, ours) if pair[0] != pair[1]]
    assert len(different) == row["replies"] - row["replies_same"] > 0
    assert row["places_same"] == sum(a == b for pair in zip(theirs, ours) for a, b in zip(*pair)) < row["places"]
    firsts = [next(place for place, (a, b) in enumerate(zip(*pair), 1) if a != b) for pair in different]
    assert row["until"] == sum(firsts) + sum(len(a) for a, b in zip(theirs, ours) if a == b)
    assert row["until_same"] == row["until"] - len(different)
    assert row["drafts_differ"] >= len(different)


@pytest.mark.parametrize("cell", CELLS)
def test_passes_have_the_inputs_and_the_new_places_that_the_decoder_asks_the_model_for(cell):
    settings, engine = (
        settings_of(cell, NEW),
        Engine(tiny_model(), SoloGroup(torch.device("cpu")), max_positions=512),
    )
    for prompt in PROMPTS:
        asked, updates = [], []
        refinement = Refinement(prompt, settings, placeholder=PLACEHOLDER, stop_ids=STOPS, limit=512)
        while refinement.finish is None:
            step = refinement.next_pass()
            asked.append((tuple(step.token_ids), step.wanted))
            chosen = tiny_model()(torch.tensor([step.token_ids])).logits[0, -step.wanted :].argmax(dim=-1).tolist()
            updates.append(refinement.accept(chosen, settings))
        passes = our_passes(prompt, updates, settings, PLACEHOLDER)
        assert [(one.token_ids, one.wanted - one.known) for one in passes] == asked
        loop = PublishedLoop(tiny_model(), PLACEHOLDER, STOPS)
        one = compare(engine, loop, loop, prompt, settings)
        cut_off = sum(made.wanted - len(made.draft) for made in passes)
        assert (one.passes, len(one.pass_margins)) == (len(asked), sum(n for _, n in asked) - cut_off)


@pytest.mark.parametrize("cell", ["7,1", "0,1"])
def test_passes_and_margins_are_those_of_the_models_own_logits(cell):
    model, other = tiny_model(), disturbed(tiny_model())
    block = settings_of(cell, NEW).add_eos_length + 1
    found = compared(model, other, cell, stops=())
    for prompt, one in zip(PROMPTS, found):
        prefix, firsts, others, margins = list(prompt), [], [], []
        for start in range(0, NEW, block):
            size = min(block, NEW - start)
            ids = torch.tensor([prefix + [PLACEHOLDER] * (size - 1)])
            with torch.no_grad():
                logits = model(ids).logits[0, -size:]
            chosen = one.ours[start : start + size]
            top = logits.topk(2)
            for place, token in enumerate(chosen):
                margin = float(top.values[place, 0] - top.values[place, 1])
                margins.append(margin)
                if token != int(logits[place].argmax()):
                    others.append((start // block, place, token, margin))
                    firsts.append(margin)
            prefix += chosen
        assert one.passes == -(-NEW // block)
        assert one.pass_margins == pytest.approx(margins, abs=1e-4)
        for difference, (index, place, token, margin) in zip(one.pass_differences, others, strict=True):
            assert (difference.block, difference.place, difference.ours) == (index, place, token)
            assert difference.margin == pytest.approx(margin, abs=1e-4)
        assert one.judged == tuple((two.theirs, two.margin) for two in one.pass_differences)
        # Up to the first difference both ways read the same.
        assert one.first == next(iter(one.pass_differences), None)
    assert any(one.pass_differences for one in found)


def look(*tokens, margin=1.0) -> Look:
    return Look(tokens=tokens, runners_up=(9,) * len(tokens), margins=(margin,) * len(tokens))


def made(block, iteration, *draft) -> OurPass:
    return OurPass(block=block, iteration=iteration, token_ids=(1,), wanted=len(draft), known=0, draft=draft)


def test_a_draft_that_differs_is_found_in_the_pass_where_it_first_did_though_it_was_put_right():
    blocks = [[look(3, 4, 5)], [look(3, 4, 5, margin=0.25), look(3, 6, 6)]]
    ours = [made(0, 0, 3, 4, 5), made(1, 0, 3, 9, 5), made(1, 1, 3, 6, 6)]
    assert first_difference(blocks, ours) == Difference(
        block=1, iteration=0, place=1, theirs=4, ours=9, runner_up=9, margin=0.25
    )


def test_passes_that_one_way_leaves_out_and_places_after_the_end_are_no_differences():
    blocks = [[look(3, 4, 5), look(3, 4, 6)], [look(2, 8, 8), look(2, 5, 5)]]
    assert first_difference(blocks, [made(0, 0, 3, 4, 5), made(0, 1, 3, 4, 6), made(1, 0, 2)]) is None
    assert first_difference(blocks, [made(0, 0, 3, 4, 5)]) is not None


def test_the_tables_hold_the_figures():
    difference = Difference(block=0, iteration=0, place=1, theirs=4, ours=9, runner_up=9, margin=0.125)
    other = Difference(block=1, iteration=0, place=0, theirs=4, ours=8, runner_up=9, margin=0.5)
    common = {"margins": (1.0, 3.0), "pass_margins": (2.0,) * 10, "passes": 4}
    one = {"first": difference, "pass_differences": (difference,), "judged": ((9, 0.0625),)}
    two = {"first": other, "pass_differences": (other, other), "judged": ((4, 0.5), (7, 0.75))}
    none = {"first": None, "pass_differences": (), "judged": ()}
    rows = [
        Comparison(theirs=(3, 4, 5, 2), ours=(3, 9, 5), **one, **common),
        Comparison(theirs=(3, 4, 2), ours=(3, 4, 2), **two, **common),
        Comparison(theirs=(3,), ours=(3,), **none, **common),
    ]
    lines = tables([figures("7,2", rows)]).splitlines()
    whole, single = (line.split(" | ") for line in lines if line.startswith("| 7,2"))
    assert whole == ["| 7,2", "3", "2", "8", "75.00 %", "6", "83.33 %", "2", "0.312", "0.5", "2 |"]
    assert single == ["| 7,2", "12", "30", "90.00 %", "3", "1", "1", "1", "0.5", "0.5", "0.5", "0.75", "2 |"]


def test_only_all_is_a_hundred_percent():
    assert (share(5, 5), share(99_999, 100_000)) == ("100 %", "99.99 %")


def test_a_checkpoint_of_verls_matches_wholly_in_float32(tiny_checkpoint, tmp_path, capsys):
    file = tmp_path / "figures.json"
    options = ["--dtype", "float32", "--prompts", "5", "--max_new_tokens", "12", "--json", str(file)]
    main([str(tiny_checkpoint("fsdp1", 2)), *options])
    saved = json.loads(file.read_text())
    assert [row["N, R"] for row in saved["rows"]] == ["7,2", "7,4", "0,1", "31,2"]
    assert all(row["replies_same"] == 5 and row["pass_same"] == row["pass_places"] for row in saved["rows"])
    assert all(one == {"first": None, "passes": [], "judged": []} for row in saved["differences"] for one in row)
    shown = capsys.readouterr().out
    assert shown.count("100 %") == 12 and "float32. C: uncaptured" in shown and "5 prompts" in shown


def test_no_prompt_is_begun_after_the_time_that_was_given(tiny_checkpoint, capsys):
    options = ["--dtype", "float32", "--max_new_tokens", "4", "--cells", "3,2", "--seconds", "1e-3"]
    main([str(tiny_checkpoint("fsdp1", 2)), *options])
    assert "1 prompts" in capsys.readouterr().out


def test_a_base_model_and_an_adapter_become_a_checkpoint(tiny_checkpoint, tmp_path):
    base = tiny_checkpoint("fsdp1_tied", 2) / "reference"
    name = "model.layers.1.self_attn.q_proj.weight"
    before = load_model(open_checkpoint(base), SoloGroup(torch.device("cpu"))).module.state_dict()
    left, right = torch.randn(before[name].shape[0], 3), torch.randn(3, before[name].shape[1])
    write_adapter(tmp_path / "adapter.safetensors", {name: (left, right)}, 6.0)
    write_merged(base, tmp_path / "made", tmp_path / "adapter.safetensors")
    after = load_model(open_checkpoint(tmp_path / "made"), SoloGroup(torch.device("cpu"))).module.state_dict()
    change = left.bfloat16().float() @ right.bfloat16().float() * 2
    assert torch.equal(after.pop(name), (before.pop(name) + change).bfloat16().float())
    assert all(torch.equal(after[key], value) for key, value in before.items())
