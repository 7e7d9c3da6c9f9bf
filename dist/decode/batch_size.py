"""How much storage turns need, and how many prompts to decode together: by memory, and by what a pass gains.

The memory of a batch is mostly its KV cache, rows x tokens x layers x heads, and the logits of a pass. Nothing
here asks what is free, or takes any of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dist.protocol import Turn
from dist.settings import GenerationSettings

# Where more no longer pays, and where a pass, which Ctrl-C waits for, gets long.
MOST_ROWS_CPU, PASS_TOKENS_CPU = 16, 256
MOST_ROWS_GPU, PASS_TOKENS_GPU = 64, 2048
FEWEST_SLOTS = 256
ROUND_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """A static KV cache for `rows` sequences of at most `capacity` tokens; one takes `row_bytes` on this rank."""

    rows: int
    capacity: int
    row_bytes: int

    def holds(self, other: Storage) -> bool:
        return self.rows >= other.rows and self.capacity >= other.capacity

    def within(self, free: int) -> Storage:
        """As many rows of it, maybe none, as so many bytes hold."""
        return replace(self, rows=min(self.rows, free // self.row_bytes))


def conversation_storage(module: Any, turn: Turn, positions: int | None) -> Storage:
    """With room for all that a conversation may grow to, one prompt at a time. `positions`: the model's limit."""
    asked = [turn.settings_of(row) for row in range(len(turn.prompts))]
    capacity = max(_limit(settings, positions) + 2 * settings.add_eos_length + 2 for settings in asked)
    capacity = -(-capacity // ROUND_TOKENS) * ROUND_TOKENS
    return Storage(rows=1, capacity=capacity, row_bytes=storage_bytes(module, capacity))


def batch_storage(module: Any, turn: Turn, positions: int | None) -> Storage:
    """With room for a turn's prompts and their replies, as many at once as it asks for."""
    rows, capacity, row_need = min(len(turn.prompts), turn.together or len(turn.prompts)), 0, 0
    for row, prompt in enumerate(turn.prompts):
        settings = turn.settings_of(row)
        longest = min(len(prompt) + settings.max_new_tokens, _limit(settings, positions))
        block = settings.add_eos_length + 1
        capacity = max(capacity, row_slots(longest, block))
        row_need = max(row_need, row_bytes(module, longest, block))
    return Storage(rows=rows, capacity=capacity, row_bytes=row_need)


def _limit(settings: GenerationSettings, positions: int | None) -> int:
    return min(settings.max_length, positions or settings.max_length)


def rows_together(module: Any, tokens: int, block: int, free: int, *, gpu: bool) -> int:
    """How many prompts to decode together, at least 1.

    `tokens` are those of the longest prompt and its reply, `block` those chosen in a pass, `free` is in bytes.
    """
    most, pass_tokens = (MOST_ROWS_GPU, PASS_TOKENS_GPU) if gpu else (MOST_ROWS_CPU, PASS_TOKENS_CPU)
    # Half of what is free: allocators round up, and others want memory too.
    fitting = free // 2 // row_bytes(module, tokens, block)
    return max(1, min(most, pass_tokens // block, fitting))


def row_bytes(module: Any, tokens: int, block: int) -> int:
    """What one row of a batch takes at most on this rank, in bytes."""
    config = module.config.get_text_config()
    element_size = next(module.parameters()).element_size()
    # A pass reads up to two blocks: what goes through a layer.
    width = 4 * config.hidden_size + 3 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    passing = 2 * block * width * element_size
    # The logits as they come, side by side, and in float32 with what makes the choice of them.
    logits = block * config.vocab_size * (2 * element_size + 8)
    return int(storage_bytes(module, row_slots(tokens, block)) + passing + logits)


def row_slots(tokens: int, block: int) -> int:
    """How many slots a row of a batch has for so many tokens and two blocks: equal for batches of like lengths."""
    return max(FEWEST_SLOTS, 1 << (tokens + 2 * block - 1).bit_length())


def storage_bytes(module: Any, tokens: int) -> int:
    """What a KV cache of so many tokens takes on this rank, in bytes."""
    _, kv_heads, head_size = _heads(module)
    layers = module.config.get_text_config().num_hidden_layers
    return int(2 * layers * kv_heads * head_size * tokens * next(module.parameters()).element_size())


def _heads(module: Any) -> tuple[int, int, int]:
    """How many query heads and key-value heads this rank holds, and their size."""
    config = module.config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    for part in module.modules():
        if hasattr(part, "q_proj") and hasattr(part, "k_proj"):
            # Fewer than the config's under tensor parallelism.
            return part.q_proj.out_features // size, part.k_proj.out_features // size, size
    return heads, kv_heads, size
