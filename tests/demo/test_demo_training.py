"""The embedded model's recipe: its forward, its packing, its adapter and its measuring, on a tiny random model."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from chat.demo.adapter import ADAPTER_FILE, merge_adapter, read_adapter, write_adapter
from chat.demo.recipe import corpus, faults, packing, picking, train, trainer
from chat.demo.recipe.batched import AUTO, reply_all
from chat.demo.recipe.batched import Reply as BatchedReply
from chat.demo.recipe.conversations import (
    is_held_out,
    is_right,
    skill_conversations,
    solve,
    templated_prompts,
    test_questions,
)
from chat.demo.recipe.corpus import (
    FREE,
    LOOP,
    OPEN,
    PICKED,
    SKILL,
    STOP_ID,
    Sample,
)
from chat.demo.recipe.evaluate import evaluate, table
from chat.demo.recipe.everyday import ABOUT, EVERYDAY
from chat.demo.recipe.llama import Shape, Weights, hidden_states, run_layer, shape_of, stack_weights, unstack_layers
from chat.demo.recipe.lora import Adapter
from chat.demo.recipe.user_facts import FACTS
from chat.demo.recipe.wording import (
    is_degenerate,
    is_echo,
    is_excuse,
    is_garbage,
    is_repetitive,
    is_sound,
    shortened,
)
from chat.demo.recipe.wordlists import SMALL_TALK
from dist.checkpoint.open import open_checkpoint
from dist.decode.engine import Engine
from dist.group.group import SoloGroup
from dist.model.load import load_model
from dist.protocol import Control, Reply, Turn
from dist.settings import GenerationSettings

pytestmark = pytest.mark.slow

# pytest would take it for a test.
test_questions.__test__ = False  # type: ignore[attr-defined]

VOCABULARY = 320
WORDS = torch.arange(VOCABULARY) != STOP_ID


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """Six query heads over two key-value heads; weights large enough that its replies vary."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def weights(model: LlamaForCausalLM) -> Weights:
    return stack_weights({name: value.detach() for name, value in model.state_dict().items()}, 2)


@pytest.fixture(scope="module")
def shape(model: LlamaForCausalLM) -> Shape:
    return shape_of(model.config)


class ByteTokenizer:
    """Bytes from id 10 on, ChatML's two markers; enough of a tokenizer for the recipe."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        for mark, token in (("<|im_start|>", 1), ("<|im_end|>", STOP_ID)):
            text = text.replace(mark, chr(token))
        return [byte if byte < 3 else byte + 10 for byte in text.encode()]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return bytes(token - 10 for token in ids if 10 <= token < 266).decode(errors="replace")


def some_samples() -> list[Sample]:
    rng = random.Random(1)
    samples = []
    for index in range(14):
        tokens = [rng.randrange(10, VOCABULARY) for _ in range(40)] + [STOP_ID]
        samples.append(Sample(tokens=tokens, replies=[(6, 14), (22, 41)], kind=(SKILL, OPEN, FREE)[index % 3]))
    phrase = [rng.randrange(10, VOCABULARY) for _ in range(9)]
    samples.append(Sample(tokens=[1, 11, 12, *phrase * 4], replies=[(3, 39)], kind=LOOP))
    return samples


def prompts() -> list[list[int]]:
    rng = random.Random(2)
    return [[rng.randrange(10, VOCABULARY) for _ in range(length)] for length in (3, 9, 30, 17)]


def columns_of(batch: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: batch[:, :, index] for index, name in enumerate(packing.COLUMNS)}


def answer(model: LlamaForCausalLM, prompt: list[int], length: int, rounds: int, limit: int) -> Reply:
    # The recipe measures what the model drafts, not what is looked up.
    settings = GenerationSettings(
        add_eos_length=length, refine_iter=rounds or "auto", max_new_tokens=limit, temperature=0.0, drafts="own"
    )
    engine = Engine(model, SoloGroup(torch.device("cpu")), max_positions=512)
    turn = Turn(prompts=(tuple(prompt),), settings=settings, placeholder=STOP_ID, stop_ids=(STOP_ID,))
    events = list(engine.answer(turn, lambda: Control(settings=settings)))
    assert isinstance(events[-1], Reply)
    return events[-1]


def test_the_forward_is_that_of_transformers(model: LlamaForCausalLM, weights: Weights, shape: Shape) -> None:
    tokens = torch.tensor([prompts()[2]])
    length = tokens.shape[1]
    causal = torch.ones(1, length, length).tril().bool()
    hidden = hidden_states(weights, unstack_layers(weights), shape, tokens, torch.arange(length)[None], causal)
    with torch.no_grad():
        expected = model(tokens).logits
    torch.testing.assert_close(hidden @ weights["embed"].T, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("length", "rounds"), [(0, 1), (7, 2), (7, AUTO), (3, 3), (15, AUTO)])
def test_batched_replies_are_the_engines_replies(
    model: LlamaForCausalLM, weights: Weights, shape: Shape, length: int, rounds: int
) -> None:
    made = reply_all(weights, shape, prompts(), add_eos_length=length, refine_iter=rounds, max_new_tokens=32)
    for prompt, reply in zip(prompts(), made):
        expected = answer(model, prompt, length, rounds, 32)
        assert [*reply.token_ids, *[STOP_ID] * reply.ended] == list(expected.token_ids)
        assert reply.forwards == expected.stats.forwards


def test_refining_until_nothing_changes_gives_greedy_replies_that_stop(weights: Weights, shape: Shape) -> None:
    greedy = reply_all(weights, shape, prompts(), max_new_tokens=48, stop_id=277)
    stop = next(token for token in greedy[0].token_ids if token != greedy[0].token_ids[0])
    greedy = reply_all(weights, shape, prompts(), max_new_tokens=48, stop_id=stop)
    refined = reply_all(
        weights, shape, prompts(), add_eos_length=7, refine_iter=AUTO, max_new_tokens=48, stop_id=stop
    )
    assert any(reply.ended for reply in greedy)
    assert [reply.token_ids for reply in refined] == [reply.token_ids for reply in greedy]


def test_a_packed_block_says_what_decoding_would_say(
    model: LlamaForCausalLM, weights: Weights, shape: Shape
) -> None:
    batch = columns_of(next(packing.pack(some_samples(), 2, 160, random.Random(4))))
    hidden = hidden_states(
        weights, unstack_layers(weights), shape, batch["token"], batch["position"], packing.sight(batch)
    )
    said = (hidden @ weights["embed"].T).argmax(-1)
    checked = 0
    for row, at in (batch["offset"] == 2).nonzero().tolist():
        sample = some_samples()[int(batch["sample"][row, at])]
        begin = int(batch["limit"][row, at])
        with torch.no_grad():
            logits = model(torch.tensor([[*sample.tokens[:begin], *[STOP_ID] * 3]])).logits
        assert logits[0, -1].argmax() == said[row, at]
        assert batch["target"][row, at] == sample.tokens[begin + 3]
        checked += 1
    assert checked >= 4


def test_the_next_draft_is_the_last_output_one_place_later(weights: Weights) -> None:
    batch = columns_of(next(packing.pack(some_samples(), 2, 160, random.Random(4))))
    said = torch.arange(batch["token"].numel()).view(batch["token"].shape) + 1000
    draft = packing.next_draft(batch, said, 0)
    plain = batch["block"] == 0
    assert torch.equal(draft[plain], batch["token"][plain])
    first = batch["offset"].eq(0) & ~plain
    assert torch.equal(draft[first], batch["truth"][first])
    later = batch["offset"] > 0
    assert later.any()
    assert torch.equal(draft[later], said.roll(1, 1)[later])


def faulty_batch() -> dict[str, torch.Tensor]:
    talks = [sample for sample in some_samples() if sample.kind != SKILL]
    return columns_of(next(packing.pack(talks, 2, 320, random.Random(4))))


def places_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return (batch["block"] > 0) & (batch["target"] >= 0)


def test_a_blocks_places_know_their_plain_text() -> None:
    batch = faulty_batch()
    row, at = places_of(batch).nonzero(as_tuple=True)
    plain = batch["plain"][row, at]
    for name in ("sample", "position"):
        assert torch.equal(batch[name][row, plain], batch[name][row, at])
    assert torch.equal(batch["token"][row, plain], batch["truth"][row, at])
    assert torch.equal(batch["token"][row, plain + 1], batch["target"][row, at])


def test_outputs_that_are_right_leave_no_faults_and_others_stand_where_their_block_does() -> None:
    batch, words = faulty_batch(), torch.ones(VOCABULARY, dtype=torch.bool)
    inside, generator = places_of(batch), torch.Generator().manual_seed(1)
    clean, lost = faults.with_faults(batch, batch["target"], 1.0, words, generator)
    assert torch.equal(clean["token"], batch["token"])
    assert not lost.any()
    # Where blocks begin, the true token is said.
    row, at = (inside & (batch["offset"] == 0)).nonzero(as_tuple=True)
    before = batch["plain"][row, at] - 1
    assert (clean["role"][row, before] == packing.SAY).all()
    assert torch.equal(clean["target"][row, before], batch["truth"][row, at])

    said = torch.arange(batch["token"].numel()).view(batch["token"].shape) % 200 + 20
    none, _ = faults.with_faults(batch, said, 0.0, words, generator)
    assert torch.equal(none["token"], batch["token"])
    made, _ = faults.with_faults(batch, said, 1.0, words, generator)
    changed = made["token"] != batch["token"]
    assert changed.any()
    assert not (changed & (batch["block"] > 0)).any()
    assert not (changed & (batch["truth"] == STOP_ID)).any()
    at_plain = {(int(r), int(batch["plain"][r, i]) + 1): int(said[r, i]) for r, i in inside.nonzero()}
    several = {(int(r), int(i)) for r, i in changed.nonzero()}
    assert several <= at_plain.keys()


def test_a_text_that_says_words_twice_again_and_again_is_lost_and_ends() -> None:
    batch, generator = faulty_batch(), torch.Generator().manual_seed(1)
    same = torch.full_like(batch["token"], 77)
    made, lost = faults.with_faults(batch, same, 1.0, torch.ones(VOCABULARY, dtype=torch.bool), generator)
    assert lost.any()
    begins = lost & (batch["offset"] == 0)
    row, at = begins.nonzero(as_tuple=True)
    assert (made["target"][row, batch["plain"][row, at] - 1] == STOP_ID).all()
    assert not made["led"][lost].any()
    for r, i in begins.nonzero().tolist():
        start = int(batch["plain"][r, i])
        last = made["token"][r, start - faults.WITHIN - 1 : start].tolist()
        assert sum(left == right == 77 for left, right in pairwise(last)) >= faults.LOST
    numbers = torch.zeros(VOCABULARY, dtype=torch.bool)
    assert not faults.with_faults(batch, same, 1.0, numbers, generator)[1].any()


def test_after_fitting_words_of_its_own_a_place_learns_what_the_base_says_next(
    model: LlamaForCausalLM, weights: Weights, shape: Shape
) -> None:
    batch = faulty_batch()
    inside, generator = places_of(batch), torch.Generator().manual_seed(5)
    slipped = inside & (torch.rand(inside.shape, generator=generator) < 0.3)
    said = torch.where(slipped, torch.randint(20, VOCABULARY, inside.shape, generator=generator), batch["target"])
    before, allowed = faults.preceding(batch, said), packing.sight(batch)

    def targets(fit: float) -> torch.Tensor:
        made = trainer.Trainer(
            weights, weights, shape, Adapter(weights, 2), run_layer, WORDS, weights=trainer.LossWeights(fit=fit)
        ).block_targets(batch, inside, said, before, allowed)
        return torch.zeros_like(said).masked_scatter(inside, made)

    anything, nothing = targets(1e-300), targets(1.0)
    # Nothing fits: only the place behind a single slip, which no unfit word comes before, could be led.
    assert torch.equal(nothing[inside], batch["target"][inside])
    led = 0
    for row, at in inside.nonzero().tolist():
        first = at - int(batch["offset"][row, at])
        strayed = bool((said[row, first:at] != batch["target"][row, first:at]).any())
        doubled = (said == before) & (said != batch["target"])
        if not strayed or bool(doubled[row, first:at].any()) or not batch["led"][row, at]:
            assert anything[row, at] == batch["target"][row, at]
            continue
        begin = int((batch["sample"][row] == batch["sample"][row, at]).nonzero()[0])
        prefix = batch["token"][row, begin : int(batch["plain"][row, first])]
        ids = torch.cat((prefix, batch["truth"][row, first : first + 1], said[row, first:at]))
        with torch.no_grad():
            assert model(ids[None]).logits[0, -1].argmax() == anything[row, at]
        led += 1
    assert led >= 10


def test_words_are_distinguished_from_numbers_and_blanks() -> None:
    words = train.word_tokens(ByteTokenizer(), 128)
    assert words[ord("a") + 10]
    assert not words[ord("7") + 10]
    assert not words[ord(" ") + 10]


def test_a_draft_one_place_ahead_is_never_taught_to_say_its_word_again() -> None:
    words = torch.ones(20, dtype=torch.bool)
    words[[STOP_ID, 9]] = False
    given, truth, targets = (torch.tensor(row) for row in ([5, 5, 5, 9, STOP_ID], [4, 5, 4, 4, 4], [5, 5, 6, 9, 2]))
    assert trainer.is_ahead(given, truth, targets, words).tolist() == [True, False, False, False, False]


def test_a_word_said_again_in_plain_text_is_unlearnt_unless_it_is_true(weights: Weights, shape: Shape) -> None:
    batch = columns_of(next(packing.pack(some_samples()[::-1], 2, 160, random.Random(4))))

    def slip(words: torch.Tensor, again: bool) -> float:
        given = batch | {"target": torch.where(batch["block"] == 0, batch["token"], batch["target"])}
        made = trainer.Trainer(weights, weights, shape, Adapter(weights, 4), run_layer, words)
        return made.accumulate(given if again else batch)[0]["slip"].item()

    assert slip(WORDS, False) >= -math.log(1 - trainer.SLIP)
    assert slip(WORDS, True) == 0
    assert slip(torch.zeros_like(WORDS), False) == 0


def test_only_what_a_looping_answer_says_again_is_shunned() -> None:
    loop = some_samples()[-1]
    laid = packing.lay_out(loop, random.Random(1))
    role, target, block = (laid[:, packing.COLUMNS.index(name)].tolist() for name in ("role", "target", "block"))
    first = 3 + 9 + 8 - 2
    assert role[:first] == [packing.NO_LOSS] * 2 + [packing.HOLD] * (first - 2)
    assert role[first:] == [packing.SHUN] * (len(loop.tokens) - first - 1) + [packing.NO_LOSS]
    assert target[first] == loop.tokens[first + 1]
    assert not any(block)


def test_shunning_lowers_a_tokens_probability_even_where_it_is_near_certain() -> None:
    torch.manual_seed(1)
    embed = torch.randn(20, 6)
    hidden = (30 * embed[3:4]).requires_grad_()
    loss = trainer.unlikelihood(hidden, embed, torch.tensor([3]))
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    before = (hidden @ embed.T).softmax(-1)[0, 3]
    after = ((hidden - 30 * gradient) @ embed.T).softmax(-1)[0, 3]
    assert before > 0.999
    assert after < before
    probability = (embed[3:4] @ embed.T).softmax(-1)[0, 3]
    expected = -torch.log(1 - probability)
    assert trainer.unlikelihood(embed[3:4], embed, torch.tensor([3])).item() == pytest.approx(
        expected.item(), abs=1e-5
    )


def test_a_models_own_answers_are_sorted_by_what_they_teach(
    weights: Weights, shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {
        OPEN: (
            "Bees make honey. They live in hives, and they dance when they come home from a field of flowers. That "
            "is how the others learn where to go. And so on",
            False,
        ),
        LOOP: ("I like it a lot. " * 12, False),
        FREE: ("word " + "and and " * 5, True),
    }
    said = [*texts.values(), ("It runs on " + " ".join(map(str, range(60))), False)]
    tokenizer = ByteTokenizer()
    replies = [
        BatchedReply(token_ids=tokenizer.encode(text, add_special_tokens=False), ended=ended, forwards=1)
        for text, ended in said
    ]
    monkeypatch.setattr(corpus, "reply_in_batches", lambda *given: replies)
    asked = [Sample(tokens=[1, 20, 21, STOP_ID], replies=[(2, 4)], kind=PICKED)] * 4
    made = corpus.answers_of_its_own(weights, shape, tokenizer, asked, 4, random.Random(1))
    assert [sample.kind for sample in made] == [OPEN, LOOP, FREE, FREE]
    begun = texts[OPEN][0].removesuffix(" And so on")
    assert made[0].tokens == [1, 20, *tokenizer.encode(begun, add_special_tokens=False), STOP_ID]
    assert made[3].tokens == [1, 20, *replies[3].token_ids[: corpus.HELD_REPLY]]


def test_of_several_answers_the_one_that_scores_best_is_picked(
    model: LlamaForCausalLM, weights: Weights, shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picking, "is_fit", lambda text, asked: True)
    monkeypatch.setattr(picking, "LIMIT", 16)
    monkeypatch.setattr(picking, "PACKED", (2, 160))
    torch.manual_seed(4)
    speakers = [picking.Speaker(weights), picking.Speaker(weights, 1.0), picking.Speaker(weights, way=(7, 2))]
    tokenizer, anywhere = ByteTokenizer(), [1, 50, 60]
    monkeypatch.setattr(picking, "ended_in_time", lambda tokenizer, reply, enough: replace(reply, ended=True))
    made = picking.candidates(speakers, prompts(), shape, tokenizer, 0)
    assert {answer.prompt for answer in made} == {0, 1, 2, 3}
    assert len({(answer.prompt, *answer.sample.tokens) for answer in made}) == len(made) > 8
    run = trainer.Trainer(weights, weights, shape, Adapter(weights, 2), run_layer, WORDS).running(weights)
    rated = picking.rated(made, anywhere, run, run, weights["embed"], 0)

    def plain(prompt: list[int], said: list[int]) -> float:
        with torch.no_grad():
            chances = model(torch.tensor([[*prompt, *said]])).logits[0].log_softmax(-1)
        found = [chances[len(prompt) + at - 1, token].item() for at, token in enumerate(said)]
        return sum(found) / len(found)

    for answer in rated:
        prompt, said = picking.prompt_of(answer.sample), answer.sample.tokens[len(prompts()[answer.prompt]) : -1]
        assert prompt == prompts()[answer.prompt]
        assert answer.plain == pytest.approx(plain(prompt, said), abs=1e-3)
        assert answer.anywhere == pytest.approx(plain(anywhere, said), abs=1e-3)
        assert answer.drafted < 0
    taste = picking.Taste(relevance=0.5, drafted=2.0, least=-100.0)
    best = picking.best(rated, taste)
    assert [answer.prompt for answer in best] == [0, 1, 2, 3]
    for answer in best:
        others = [other for other in rated if other.prompt == answer.prompt]
        wanted = [1.5 * other.plain - 0.5 * other.anywhere + 2 * other.drafted for other in others]
        assert answer.score(taste) == pytest.approx(max(wanted))
    least = sorted(answer.plain for answer in rated)[len(rated) // 2]
    likely = picking.best(rated, replace(taste, least=least))
    assert likely and all(answer.plain >= least for answer in likely)


def test_a_few_steps_lower_the_losses_and_the_adapter_comes_back(
    model: LlamaForCausalLM, weights: Weights, shape: Shape, tmp_path: Path
) -> None:
    recipe = train.Recipe(
        rank=4,
        rows=2,
        length=160,
        steps=24,
        seconds=1e6,
        warmup=2,
        learning_rate=0.02,
        phases=2,
        prompts=3,
        own_answers=3,
        workers=0,
    )
    batch = columns_of(next(packing.pack(some_samples()[::-1], 2, 160, random.Random(4))))
    before, _ = trainer.Trainer(weights, weights, shape, Adapter(weights, 4), run_layer, WORDS).accumulate(batch)
    assert before["hold"].item() == pytest.approx(0, abs=1e-5)
    assert before["shun"] > 0
    adapter = train.train(weights, weights, shape, ByteTokenizer(), some_samples(), recipe)
    after, outputs = trainer.Trainer(weights, weights, shape, adapter, run_layer, WORDS).accumulate(batch)
    assert after["round1"] < before["round1"]
    assert after["say"] < before["say"]
    assert len(outputs) == 3

    file = tmp_path / "adapter.safetensors"
    adapter.save(file)
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    merge_adapter(state, file)
    expected = adapter.merged(weights)
    for name in ("q_proj", "down_proj"):
        stacked = stack_weights(state, 2)[name]
        torch.testing.assert_close(stacked, expected[name], atol=5e-3, rtol=5e-2)
        assert not torch.equal(stacked, weights[name])
    assert torch.equal(state["model.norm.weight"], model.state_dict()["model.norm.weight"])


def test_an_adapter_of_a_higher_rank_starts_where_the_former_one_ended(weights: Weights, tmp_path: Path) -> None:
    former = Adapter(weights, 3)
    with torch.no_grad():
        for left in former.left.values():
            left.copy_(torch.randn(left.shape) / 8)
    former.save(tmp_path / "whole.safetensors")
    pairs, rank = read_adapter(tmp_path / "whole.safetensors")
    write_adapter(tmp_path / "former.safetensors", pairs, rank / 2)
    state = {f"model.layers.{index}.mlp.up_proj.weight": weights["up_proj"][index] for index in range(2)}
    later = Adapter(weights, 5)
    later.start_from(tmp_path / "former.safetensors")
    with torch.no_grad():
        made = later.merged(weights)
    for index in range(2):
        change = former.left["up_proj"][index] @ former.right["up_proj"][index] / 2
        expected = state[f"model.layers.{index}.mlp.up_proj.weight"] + change
        torch.testing.assert_close(made["up_proj"][index], expected, atol=5e-3, rtol=5e-2)
    assert later.right["up_proj"].shape[1] == 5
    whole = Adapter(weights, 5)
    whole.start_from(tmp_path / "former.safetensors", unscaled=True)
    for left, other in zip(whole.left.values(), later.left.values(), strict=True):
        torch.testing.assert_close(left, 2 * other)


def test_half_of_the_way_from_the_start_leaves_the_factors_between(weights: Weights) -> None:
    start, later = Adapter(weights, 3), Adapter(weights, 3)
    between = [(one + other) / 2 for one, other in zip(start.parameters(), later.parameters(), strict=True)]
    later.go_back(start, 0.5)
    assert all(torch.allclose(part, mean) for part, mean in zip(later.parameters(), between, strict=True))
    later.go_back(start, 0.0)
    assert all(map(torch.equal, later.parameters(), start.parameters()))


def test_a_wrong_adapter_changes_nothing(model: LlamaForCausalLM, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    file = tmp_path / "adapter.safetensors"
    write_adapter(file, {name: (torch.ones(96, 2), torch.ones(2, 47))}, 2.0)
    state = {key: value.detach().clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"up_proj.*\(96, 47\), the model has \(96, 48\)"):
        merge_adapter(state, file)
    assert torch.equal(state[name], model.state_dict()[name])


def test_the_committed_adapter_fits_smollm2() -> None:
    pairs, alpha = read_adapter(ADAPTER_FILE)
    assert ADAPTER_FILE.stat().st_size <= 32 * 2**20
    assert len(pairs) == 30 * 7
    left, right = pairs["model.layers.29.mlp.gate_proj.weight"]
    assert (left.shape[0], right.shape[1]) == (1536, 576)
    assert alpha > 0
    assert all(bool(part.isfinite().all()) for pair in pairs.values() for part in pair)


def test_the_prepared_model_solves_new_sums_in_fewer_passes_than_tokens(demo_checkpoint: Path) -> None:
    from transformers import AutoTokenizer

    loaded = load_model(open_checkpoint(str(demo_checkpoint)), SoloGroup(torch.device("cpu")), dtype="float32")
    state = {name: value.detach() for name, value in loaded.module.state_dict().items()}
    weights, shape = stack_weights(state, 30), shape_of(loaded.module.config)
    tokenizer = AutoTokenizer.from_pretrained(demo_checkpoint / "global_step_0/huggingface")
    sums = [question for question in test_questions() if question.topic == "sums"][:6]
    prompts = [corpus.opened_for(tokenizer, question.messages, "assistant") for question in sums]
    greedy = reply_all(weights, shape, prompts, max_new_tokens=48)
    refined = reply_all(weights, shape, prompts, add_eos_length=7, refine_iter=AUTO, max_new_tokens=48)
    assert [reply.token_ids for reply in refined] == [reply.token_ids for reply in greedy]
    assert sum(len(reply.token_ids) + 1 for reply in refined) >= 2 * sum(reply.forwards for reply in refined)
    texts = [tokenizer.decode(reply.token_ids) for reply in refined]
    assert sum(map(is_right, sums, texts)) >= 4


def test_the_corpus_is_built_from_the_models_own_answers(
    weights: Weights, shape: Shape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "MAX_REPLY", 16)
    plan = corpus.Plan(skills=6, own_prompts=4, templated=5, chitchat=0, follow_ups=2, rows=4)
    samples = corpus.build(weights, weights, shape, ByteTokenizer(), plan)
    assert sum(sample.kind == SKILL for sample in samples) >= 1
    for sample in samples:
        assert all(0 < start < end <= len(sample.tokens) for start, end in sample.replies)
    corpus.save(samples, tmp_path / "corpus.pt")
    assert corpus.load(tmp_path / "corpus.pt") == samples
    assert corpus.build(weights, weights, shape, ByteTokenizer(), plan) == samples


def test_skills_never_hold_what_the_questions_ask() -> None:
    asked = {question.messages[-1][1] for question in test_questions()}
    held = [value for fact in FACTS.values() for value in fact.held_values.split("|") if not value.isdigit()]
    held += [text for fact in FACTS.values() for text in fact.held_questions.split("|")]
    told = re.compile(r"\b(" + "|".join(map(re.escape, held)) + r")(?!\w)", re.IGNORECASE)
    for talk in skill_conversations(6000, 1):
        for role, text in talk:
            assert text not in asked
            assert not told.search(text)
            if role == "assistant" and " = " in text:
                left, sign, right = text.split(" = ")[0].split()
                assert not is_held_out(int(left), sign, int(right))


def test_every_recall_question_asks_for_another_fact_that_was_told_in_another_wording() -> None:
    questions = [question for question in test_questions() if question.topic == "recall"]
    assert len({question.expected for question in questions}) == len(questions) == 60
    assert len({question.messages[-1][1] for question in questions}) == 60
    for question in questions:
        assert question.expected in question.messages[1][1]
        assert question.expected not in question.messages[-1][1]
    # A third each: asked for at once, after something else, after another fact.
    assert Counter(len(question.messages) for question in questions) == {4: 20, 6: 40}


def test_numbers_to_be_recalled_are_not_among_those_trained() -> None:
    for kind in ("age", "number"):
        assert not set(FACTS[kind].values.split("|")) & set(FACTS[kind].held_values.split("|"))


def test_products_are_worked_out_in_parts() -> None:
    assert solve(47, "*", 36) == (1692, "47 * 36 = 47 * 30 + 47 * 6 = 1410 + 282 = 1692.")
    assert solve(47, "*", 6) == (282, "47 * 6 = 282.")
    assert solve(12, "-", 40) == (-28, "12 - 40 = -28.")


def test_a_sum_is_right_only_by_its_last_number() -> None:
    question = next(question for question in test_questions() if question.topic == "sums")
    assert is_right(question, f"1 + 1 = {question.expected}.")
    assert not is_right(question, f"{question.expected} + 1 = 7")
    assert not is_right(question, "I do not know.")


@pytest.mark.parametrize(
    ("text", "garbage", "degenerate"),
    [
        ("Bees make honey. They live in hives, and they dance.", False, False),
        ("I like it. I like it a lot. I like it a lot. I like it a lot.", False, True),
        ("The k of is a a a of of a a a", True, True),
        ("a fine day,,,,,,,,,,", True, True),
        ("...", True, True),
        ("1. Buy a car. 2. Buy a gym membership. 3. Buy a gym membership. 4. Buy a gym membership.", False, True),
    ],
)
def test_loops_and_garbage_are_found(text: str, garbage: bool, degenerate: bool) -> None:
    assert is_garbage(text) == garbage
    assert is_degenerate(text) == degenerate


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        ("Bees make honey. They live in hives, and they dance.", True),
        ("I like it a lot. We go to the sea. I like it a lot.", False),
        ("No, no, no! No, no!", False),
        ("", False),
    ],
)
def test_targets_say_no_sentence_twice(text: str, sound: bool) -> None:
    assert is_sound(text) == sound


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("Bees make honey. They dance.", ""),
        ("A" * 80 + ". " + "B" * 40 + ". " + "C" * 40 + ".", "A" * 80 + ". " + "B" * 40 + "."),
        (
            'Dr. Who said: "' + "a" * 120 + '. But why?" And so on. More.',
            'Dr. Who said: "' + "a" * 120 + '. But why?"',
        ),
        (
            "Here are some:\n\n1. One.\n2. Two.\n3. Three.\n4. Four.",
            "Here are some:\n\n1. One.\n2. Two.\n3. Three.",
        ),
        ("Here are some:\n\n1. One.\n2. Two.\n3. Three and so", ""),
        ("word " * 60, ""),
    ],
)
def test_answers_end_when_enough_is_said(text: str, short: str) -> None:
    assert shortened(text) == short


def test_excuses_are_distinguished_from_answers() -> None:
    assert is_excuse("I'm sorry for any confusion, but I am a kind assistant.")
    assert is_excuse("As a helpful AI, I do not eat.")
    assert is_excuse("Kites are fun. I'm here to help with whatever you need.")
    assert not is_excuse("I'm sorry to hear that. As a child I had a cat.")


def test_lists_whose_items_begin_alike_are_repetitive() -> None:
    assert is_repetitive("1. Don't use too much flour.\n2. Don't use too much salt.")
    assert not is_repetitive("1. Use good flour.\n2. Use good salt.\n3. Wait.")


def test_topics_answered_by_hand_are_no_open_prompts() -> None:
    prompts = templated_prompts(9000, 2)
    assert "What is chess?" in prompts
    by_hand = [wording.format("chess") for wordings, _ in ABOUT for wording in wordings.split("|")]
    assert "Give me advice on chess." in by_hand and not set(by_hand) & set(prompts)


def test_an_everyday_message_has_one_answer() -> None:
    groups = (*EVERYDAY, *SMALL_TALK)
    said = [wording.lower() for wordings, _ in groups for wording in dict.fromkeys(wordings.lower().split("|"))]
    assert len(said) == len(set(said)) > 300


def test_an_answers_end_is_said_and_its_text_held() -> None:
    sample = Sample(tokens=[1, 11, 12, 13, 14, 15, STOP_ID, 1, 16, 17, 18, STOP_ID], replies=[(8, 12)], kind=OPEN)
    laid = packing.lay_out(sample, random.Random(1))
    plain = laid[: len(sample.tokens)]
    role, target = (plain[:, packing.COLUMNS.index(name)].tolist() for name in ("role", "target"))
    assert role == [packing.NO_LOSS] * 7 + [packing.HOLD] * 3 + [packing.SAY, packing.NO_LOSS]
    assert target[10] == STOP_ID
    blocks = laid[len(sample.tokens) :, packing.COLUMNS.index("block")].tolist()
    assert len(set(blocks)) >= 2


def test_slips_are_made_in_half_of_the_free_answers_only_and_never_in_prompts() -> None:
    tokens = list(range(20, 120))
    slipped = 0
    for seed in range(40):
        for kind in (FREE, OPEN):
            laid = packing.lay_out(Sample(tokens=tokens, replies=[(40, 100)], kind=kind), random.Random(seed))
            said = laid[:100, 0].tolist()
            assert said[:40] == tokens[:40]
            assert all(one in (place + 20, said[place - 1]) for place, one in enumerate(said))
            assert kind == FREE or said == tokens
            slipped += said != tokens
    assert 10 <= slipped <= 30


def test_the_divergence_counts_most_what_the_base_would_never_say() -> None:
    embed = torch.eye(3) * 4
    base, near, far = (
        torch.tensor([[1.0, 0.9, -3]]),
        torch.tensor([[0.9, 1.0, -3]]),
        torch.tensor([[1.0, 0.0, 0.9]]),
    )
    assert trainer.divergence(base, base, embed).item() == pytest.approx(0, abs=1e-6)
    assert trainer.divergence(far, base, embed) > 20 * trainer.divergence(near, base, embed)
    said, told = ((hidden @ embed.T).log_softmax(-1) for hidden in (far, base))
    both = (told.exp() * (told - said)).sum() + (said.exp() * (said - told)).sum()
    assert trainer.divergence(far, base, embed).item() == pytest.approx(both.item() / 2, rel=1e-4)


def test_an_answer_that_only_hands_the_question_back_is_an_echo() -> None:
    asked = "I am stoked but also pretty nervous, haha."
    assert is_echo("I am stoked, but also a little nervous.", asked)
    assert not is_echo("That is normal! Take a deep breath, and tell me what you are nervous about.", asked)


def test_the_evaluation_measures_every_setting_and_topic(weights: Weights, shape: Shape) -> None:
    questions: list[Any] = test_questions()[::40]
    rows, texts = evaluate(weights, shape, ByteTokenizer(), questions, ((0, 1), (7, AUTO)))
    topics = {question.topic for question in questions} | {"all"}
    assert {(row["N"], row["R"], row["topic"]) for row in rows} == {
        (length, rounds, topic) for length, rounds in ((0, 1), (7, "auto")) for topic in topics
    }
    assert texts[0] == texts[1]
    assert all(row["same"] == row["questions"] for row in rows)
    assert table(rows).count("\n") == len(rows) + 1
