"""How many prompts to decode together: by what a pass gains from more of them, and by memory. Knows no prompts.

The memory of a batch is mostly keys and values, rows x tokens x layers x heads, and the logits of a pass.
"""

from __future__ import annotations

from typing import Any

from dist.ragged import storage_slots

# Where more no longer pays, and where a pass, which Ctrl-C waits for, gets long.
MOST_ROWS_CPU, PASS_TOKENS_CPU = 16, 256
MOST_ROWS_GPU, PASS_TOKENS_GPU = 64, 4096


def rows_together(config: Any, element_size: int, tokens: int, block: int, free: int, *, gpu: bool) -> int:
    """How many prompts to decode together, at least 1.

    `tokens` are those of the longest prompt and its reply, `block` those chosen in a pass, `free` is in bytes.
    """
    most, pass_tokens = (MOST_ROWS_GPU, PASS_TOKENS_GPU) if gpu else (MOST_ROWS_CPU, PASS_TOKENS_CPU)
    # Half of what is free: allocators round up, and others want memory too.
    fitting = free // 2 // row_bytes(config, element_size, tokens, block)
    return max(1, min(most, pass_tokens // block, fitting))


def row_bytes(config: Any, element_size: int, tokens: int, block: int) -> int:
    """What one row of a batch takes at most, in bytes."""
    config = config.get_text_config()
    heads, kv_heads, head_size = _heads(config)
    slots = storage_slots(tokens + 1)
    # One layer at a time is copied when it grows, and repeated for every query head when it is read.
    passing = 2 * (kv_heads + heads) * head_size * slots
    # A pass reads up to two blocks: their masks, and what goes through a layer.
    width = 4 * config.hidden_size + 3 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    passing += 2 * block * (2 * slots + width)
    # The logits as they come, side by side, and in float32 with what makes the choice of them.
    logits = block * config.vocab_size * (2 * element_size + 8)
    return int(storage_bytes(config, element_size, slots) + passing * element_size + logits)


def storage_bytes(config: Any, element_size: int, tokens: int) -> int:
    """What the keys and values of so many tokens take, in bytes, where a rank holds all heads."""
    config = config.get_text_config()
    _, kv_heads, head_size = _heads(config)
    return int(2 * config.num_hidden_layers * kv_heads * head_size * tokens * element_size)


def _heads(config: Any) -> tuple[int, int, int]:
    """How many query heads, how many key-value heads, and their size."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return heads, kv_heads, getattr(config, "head_dim", None) or config.hidden_size // heads
