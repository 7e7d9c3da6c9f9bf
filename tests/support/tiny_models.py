"""Tiny random causal LMs of several families, with weights wild enough that replies vary."""

from __future__ import annotations

import functools

import torch
import transformers

VOCABULARY = 61
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
FAMILIES = {
    "qwen2": ("Qwen2Config", {}),
    "llama": ("LlamaConfig", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "mistral with a sliding window": ("MistralConfig", {"sliding_window": 9}),
    # transformers' sdpa attention leaves the cap on the scores out.
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 8, "sliding_window": 9, "query_pre_attn_scalar": 8, "attn_implementation": "eager"},
    ),
    "qwen3 mixture of experts": (
        "Qwen3MoeConfig",
        {
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "decoder_sparse_step": 1,
        },
    ),
}


@functools.cache
def tiny_model(family: str = "qwen2", seed: int = 0):
    """A model of one of FAMILIES in float32, the same for the same seed."""
    name, more = FAMILIES[family]
    config = getattr(transformers, name)(**COMMON, **more)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            # Families differ in what they take from initializer_range; make all of them wild.
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.25)
    return model.float().eval()
