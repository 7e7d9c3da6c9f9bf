"""Facts of a checkpoint that was never loaded, for conversations that only show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chat.loading.facts import CheckpointFacts
from dist.checkpoint.ledger import Ledger
from dist.model.load import ModelFacts


def known_facts(*, ledger: Ledger | None = None, processes: int = 1, **model: Any) -> CheckpointFacts:
    """Facts of a tiny Qwen2; `model` are those of the model that differ."""
    usual: dict[str, Any] = {
        "path": Path("tiny"),
        "step": None,
        "saved_world_size": 1,
        "layout": "safetensors",
        "torch_family": None,
        "adapters": None,
        "model_type": "qwen2",
        "parameters": 70_224,
        "saved_dtype": "float32",
        "dtype": "float32",
        "parallel": "none: one process",
        "bytes_per_rank": 280_896,
        "load_seconds": 0.1,
        "load_bytes": 280_896,
    }
    return CheckpointFacts(
        model=ModelFacts(**{**usual, **model}),
        processes=processes,
        ready_seconds=12.3,
        template="chat_template.jinja",
        stop_tokens="<|im_end|> (2: EOS)",
        ledger=ledger or Ledger(),
    )
