"""Tensor parallelism on real gloo ranks: each holds and reads its part, and all answer as one rank does."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from checkpoints import VOCABULARY, save_tokenizer
from plain_accept import plain_accept
from plain_rule import plain_rule
from ranks import rank_environment
from ranks_tp import GREEDY, PROMPTS, SURE, VARIANTS
from tiny_models import COMMON, tiny_model

import dist.model.layout
from dist.checkpoint.boxes import first_gap
from dist.errors import CheckpointError
from dist.group.group import SoloGroup
from dist.model.build import wanted_tensors
from dist.model.fill import FillPlan
from dist.model.tensor_parallel import plan_cut

# Neither the intermediate size nor the vocabulary (331, a prime) divides by 3 or 4.
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 50, "num_attention_heads": 12}
MODELS = {
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 2, "tie_word_embeddings": False}),
    "qwen2 tied": ("Qwen2Config", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama with biases": ("LlamaConfig", {"num_key_value_heads": 12, "attention_bias": True, "mlp_bias": True}),
    "qwen3": ("Qwen3Config", {"num_key_value_heads": 6, "head_dim": 8}),
    "mistral with a sliding window": ("MistralConfig", {"num_key_value_heads": 4, "sliding_window": 9}),
    "gemma2": (
        "Gemma2Config",
        # transformers' sdpa attention leaves the cap on the scores out.
        {
            "num_key_value_heads": 3,
            "head_dim": 8,
            "sliding_window": 9,
            "query_pre_attn_scalar": 8,
            "attn_implementation": "eager",
        },
    ),
}
REFUSED = {("qwen2", 3), ("qwen3", 4), ("mistral with a sliding window", 3), ("gemma2", 2), ("gemma2", 4)}
CASES = [(model, size) for model in MODELS for size in (2, 3, 4) if (model, size) not in REFUSED]


def small_model(kind: str, more: dict, seed: int = 0):
    config = getattr(transformers, kind)(**COMMON | SHAPE | more)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or "bias" in name:
                parameter.normal_(0.0, 0.25)
    return model.float().eval()


@pytest.fixture(scope="module")
def models() -> dict:
    return {name: small_model(*kind) for name, kind in MODELS.items()}


@pytest.fixture(scope="module")
def later() -> dict:
    """Other weights of some of the models."""
    return {name: small_model(*MODELS[name], seed=1) for name in ("qwen2 tied", "llama with biases")}


@pytest.fixture(scope="module")
def on_ranks(models, later, tmp_path_factory) -> dict:
    """{(model, count of ranks): what came of it}."""
    base = tmp_path_factory.mktemp("models")
    for name, model in [*models.items(), *((f"{name}, later", model) for name, model in later.items())]:
        model.save_pretrained(base / name)
        save_tokenizer(base / name)
    return results_of("2,3,4", *(base / name for name in MODELS))


def results_of(sizes: str, *folders: Path) -> dict:
    command = [
        sys.executable,
        str(Path(__file__).parents[1] / "support" / "ranks_tp.py"),
        sizes,
        *map(str, folders),
    ]
    done = subprocess.run(command, env=rank_environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads(done.stdout.splitlines()[-1])
    return {(Path(name).name, int(size)): got for size, by in results.items() for name, got in by.items()}


@pytest.mark.parametrize(("model", "size"), CASES)
def test_a_rank_holds_its_part_of_every_weight_bit_for_bit(on_ranks, model, size):
    got = on_ranks[model, size]
    assert got.get("differing") == {}, got
    assert got["parallel"] == f"tp, each layer split over {size} ranks: as asked"
    assert got["slow"] is None


@pytest.mark.parametrize(("model", "size"), CASES)
def test_ranks_choose_the_tokens_of_one(on_ranks, models, model, size):
    got = on_ranks[model, size]
    for name, settings in VARIANTS.items():
        assert got[name] == list(plain_rule(models[model], PROMPTS[0], settings, 2, (2,))), name
    assert got["sure"] == list(plain_accept(models[model], PROMPTS[0], SURE, 2, (2,)))
    ids = got["cached"]
    logits = models[model](torch.tensor([[*PROMPTS[0], *ids[:-1]]])).logits[0, len(PROMPTS[0]) - 1 :]
    assert got["logprobs"] == pytest.approx(logits.log_softmax(dim=-1)[range(len(ids)), ids].tolist(), abs=1e-4)
    assert got["together"]
    assert got["batch"] == [list(plain_rule(models[model], prompt, GREEDY, 2, (2,))) for prompt in PROMPTS]


@pytest.mark.parametrize(("model", "size"), [("qwen2", 2), ("llama with biases", 3), ("qwen2 tied", 4)])
def test_a_trace_shows_the_candidates_of_the_whole_vocabulary(on_ranks, models, model, size):
    ids = torch.tensor([[*PROMPTS[0], 2, 2, 2]])
    with torch.inference_mode():
        shares = models[model](input_ids=ids).logits[0, -4:].softmax(dim=-1)
    top = shares.topk(3, dim=-1)
    for row, (right_ids, right) in zip(on_ranks[model, size]["trace"], zip(top.indices, top.values)):
        assert [token for token, _ in row] == right_ids.tolist()
        assert [share for _, share in row] == pytest.approx(right.tolist(), abs=1e-5)


@pytest.mark.parametrize(("model", "size"), CASES)
def test_a_rank_reads_and_holds_its_share_only(on_ranks, models, model, size):
    got = on_ranks[model, size]
    config = models[model].config
    weights = sum(parameter.numel() * 4 for parameter in models[model].parameters())
    table = VOCABULARY * 48 * 4
    # Where there are fewer key-value heads than ranks, some are read and held more than once.
    rate = max(1, size / config.num_key_value_heads)
    keys = sum(
        p.numel() * 4 for name, p in models[model].named_parameters() if "k_proj" in name or "v_proj" in name
    )
    assert sum(got["read"]) == pytest.approx(weights + keys * (rate - 1), abs=0)
    assert max(got["read"]) < 1.1 * sum(got["read"]) / size
    # The embeddings are held whole, and so are norms.
    assert got["held"] < table + 1.1 * (weights - table + keys * (rate - 1)) / size + 6000


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("model", ["qwen2 tied", "llama with biases"])
def test_other_weights_are_read_in_place_also_where_embeddings_are_tied(on_ranks, later, model, size):
    got = on_ranks[model, size]
    assert got["differing later"] == {}
    assert got["later"] == list(plain_rule(later[model], PROMPTS[0], GREEDY, 2, (2,))) != got["cached"]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_head_over_all_ranks_chooses_and_gathers_as_a_whole_one(on_ranks, size):
    reported = on_ranks["head", size]
    assert len(reported) == 6
    assert not any(reported.values()), reported


@pytest.mark.parametrize(
    ("layout", "saved_by"), [("fsdp1", 3), ("fsdp2", 3), ("fsdp1_nomesh", 2), ("fsdp2_tied", 3)]
)
def test_shards_of_any_number_of_ranks_are_cut_again(tiny_checkpoint, layout, saved_by):
    root = tiny_checkpoint(layout, saved_by)
    got = results_of("2", root)[root.name, 2]
    assert got.get("differing") == {}, got
    saved = sum(path.stat().st_size for path in root.glob("**/model_world_size_*.pt"))
    assert max(got["read"]) < 0.52 * saved


# Which models can be cut, without ranks.


def refusal(model, size: int) -> str:
    with pytest.raises(CheckpointError) as caught:
        plan_cut(model, 0, size)
    return str(caught.value)


def test_heads_that_do_not_divide_are_refused_with_what_would(on_ranks, models):
    said = (
        "--parallel tp cannot spread this model over 4 processes. Its 12 query and 6 key-value heads cannot be "
        "divided evenly among 4. Use --parallel fsdp, or 2, 3, 6 or 12 processes."
    )
    assert refusal(models["qwen3"], 4) == said
    assert [list(on_ranks[case]) for case in REFUSED] == [["error"]] * len(REFUSED)
    assert on_ranks["qwen3", 4]["error"] == said
    assert refusal(models["qwen2 tied"], 5) == (
        "--parallel tp cannot spread this model over 5 processes. Its 12 query and 1 key-value heads cannot be "
        "divided evenly among 5. Use --parallel fsdp, or 2, 3, 4, 6 or 12 processes."
    )


def test_experts_are_refused():
    assert refusal(tiny_model("qwen3 mixture of experts"), 2) == (
        "--parallel tp cannot spread this model over 2 processes. model.layers.0.mlp.experts holds experts, which "
        "are not split here. Use --parallel fsdp."
    )


def test_a_model_without_a_plan_is_refused():
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=61, n_positions=64)
    assert refusal(transformers.AutoModelForCausalLM.from_config(config), 2) == (
        "--parallel tp cannot spread this model over 2 processes. transformers has no tensor-parallel plan for a "
        "GPT2LMHeadModel. Use --parallel fsdp."
    )


def test_query_key_and_value_in_one_linear_are_refused():
    model = small_model("Phi3Config", {"num_key_value_heads": 12, "pad_token_id": 0})
    assert "transformers splits model.layers.0." in refusal(model, 2)


def test_a_norm_over_all_heads_is_refused():
    model = small_model("Qwen3Config", {"num_key_value_heads": 6, "head_dim": 8})
    model.model.layers[1].self_attn.q_norm = torch.nn.RMSNorm(96)
    assert refusal(model, 2) == (
        "--parallel tp cannot spread this model over 2 processes. model.layers.1.self_attn.q_norm.weight of shape "
        "[96] would have to be split too. Use --parallel fsdp."
    )


def test_every_weight_is_held_once_or_by_all():
    """Over all ranks the boxes of a tensor cover it, and only key-value heads are held more than once."""
    model = small_model("Qwen2Config", {"num_key_value_heads": 2, "tie_word_embeddings": False})
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    cuts = [plan_cut(model, rank, 4) for rank in range(4)]
    assert {name.split(".")[-2] for name in cuts[0].boxes} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
    }
    for name in cuts[0].boxes:
        boxes = [cut.boxes[name] for cut in cuts]
        assert first_gap(shapes[name], boxes) is None
        copies = 2 if "k_proj" in name or "v_proj" in name else 1
        assert sum(box.elements for box in boxes) == copies * math.prod(shapes[name])


class Ranks(SoloGroup):
    """One rank of several GPUs, as far as the choice of a layout asks it."""

    def __init__(self, size: int) -> None:
        super().__init__(torch.device("cuda"))
        self.size = size


def test_on_gpus_a_model_that_can_be_cut_is_cut_else_it_says_why(monkeypatch):
    monkeypatch.setattr(dist.model.layout, "free_bytes", lambda device: 8 << 30)
    model = tiny_model()
    plan = FillPlan(module=model, wanted=wanted_tensors(model), sources={}, tied={})

    def words(parallel: str, size: int) -> str:
        return dist.model.layout.choose_layout(parallel, "auto", plan, Ranks(size)).words

    assert words("auto", 2) == "tp, each layer split over 2 ranks: the fastest on GPUs"
    assert words("auto", 3) == (
        "fsdp, all-gathered once and kept: it fits (1.0 GiB of 8.0 GiB free); no tp: Its 4 query and 2 key-value "
        "heads cannot be divided evenly among 3."
    )
    assert words("fsdp", 2) == "fsdp, all-gathered once and kept: it fits (1.0 GiB of 8.0 GiB free)"
    assert words("tp", 1) == "none: one process"
    with pytest.raises(CheckpointError, match="cannot be divided evenly among 3"):
        words("tp", 3)
