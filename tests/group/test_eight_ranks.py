"""Eight ranks of one host: shapes like a 7B's and an 8B's in every layout, with the tokens of one rank."""

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
from ranks import SUPPORT, rank_environment
from ranks_eight import PROMPTS, TURNS
from tiny_models import COMMON

# Heads and key-value heads, as Qwen2.5-7B and Llama-3.1-8B have them.
HEADS = {28: 4, 32: 8}
COPIES = {"copies": 8, "copies:2": 4, "copies:4": 2}
LAYOUTS = ("auto", "none", "fsdp", "shares", "tp", *COPIES)
WORDS = {
    "auto": "fsdp",
    "none": "none",
    "fsdp": "fsdp",
    "shares": "fsdp, all-gathered per forward pass",
    "copies": "none",
}


def model_of(heads: int):
    config = transformers.Qwen2Config(
        **COMMON
        | {
            "vocab_size": VOCABULARY,
            "hidden_size": 8 * heads,
            "intermediate_size": 64,
            "num_attention_heads": heads,
            "num_key_value_heads": HEADS[heads],
            "tie_word_embeddings": False,
        }
    )
    torch.manual_seed(heads)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or "bias" in name:
                parameter.normal_(0.0, 0.15)
    return model.float().eval()


@pytest.mark.drawn
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("heads", HEADS)
def test_eight_ranks_choose_the_tokens_of_one(tmp_path: Path, heads: int, layout: str) -> None:
    model = model_of(heads)
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    command = [sys.executable, str(SUPPORT / "ranks_eight.py"), str(tmp_path), layout]
    done = subprocess.run(command, env=rank_environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    reports = list(json.loads(done.stdout.splitlines()[-1]).values())
    assert len(reports) == COPIES.get(layout, 1)
    if (heads, layout) == (28, "tp"):
        assert "over 8 processes" in reports[0]["refused"], reports
        return
    alone = [
        [list(plain_rule(model, prompt, settings, 2, (2,))) for prompt in PROMPTS[:count]]
        for count, settings in TURNS
    ]
    for report in reports:
        assert report["spread"].startswith(WORDS.get(layout, "tp, each layer"))
        assert report["replies"] == alone
