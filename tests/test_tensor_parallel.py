"""Tensor parallelism on real gloo ranks: each holds and reads its part, and all answer as one rank does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from checkpoints import VOCABULARY, save_tokenizer
from plain_rule import plain_rule
from ranks import rank_environment
from ranks_tp import GREEDY, PROMPTS, WISHES
from tiny_models import COMMON

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
        {"num_key_value_heads": 3, "head_dim": 8, "sliding_window": 9, "query_pre_attn_scalar": 8},
    ),
}
REFUSED = {("qwen2", 3), ("qwen3", 4), ("mistral with a sliding window", 3), ("gemma2", 2), ("gemma2", 4)}
CASES = [(model, size) for model in MODELS for size in (2, 3, 4) if (model, size) not in REFUSED]


def small_model(kind: str, more: dict):
    config = getattr(transformers, kind)(**COMMON | SHAPE | more)
    torch.manual_seed(0)
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
def on_ranks(models, tmp_path_factory) -> dict:
    """{(model, count of ranks): what came of it}."""
    base = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        model.save_pretrained(base / name)
        save_tokenizer(base / name)
    return by_model(base, "2,3,4", MODELS)


def by_model(base: Path, sizes: str, names) -> dict:
    command = [sys.executable, str(Path(__file__).with_name("ranks_tp.py")), sizes, *(str(base / n) for n in names)]
    done = subprocess.run(command, env=rank_environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads(done.stdout.splitlines()[-1])
    return {(Path(f).name, int(size)): got for size, by in results.items() for f, got in by.items()}


@pytest.mark.parametrize(("model", "size"), CASES)
def test_a_rank_holds_its_part_of_every_weight_bit_for_bit(on_ranks, model, size):
    got = on_ranks[model, size]
    assert got.get("differing") == {}, got
    assert got["parallel"] == f"tp, each layer cut over {size} ranks: as asked"
    assert got["slow"] is None


@pytest.mark.parametrize(("model", "size"), CASES)
def test_ranks_choose_the_tokens_of_one(on_ranks, models, model, size):
    got = on_ranks[model, size]
    for name, wish in WISHES.items():
        assert got[name] == list(plain_rule(models[model], PROMPTS[0], wish, 2, (2,))), name
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
