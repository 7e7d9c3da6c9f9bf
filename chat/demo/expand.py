"""GGUF file -> Hugging Face folder: weights in bfloat16, an adapter merged, config, tokenizer. Knows no shards.

Run by `prepare` in a process of its own: `python -m chat.demo.expand GGUF FOLDER [ADAPTER]`.

bfloat16 because the 4-bit source holds less than that: half the disk and half the bytes to read at each
start, and widening to float32 while reading costs nothing beside it.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

from chat.demo.adapter import merge_adapter
from chat.demo.tokenizer import build_tokenizer, check_tokenizer, read_vocabulary, sample_ids
from chat.terminal.process import die_with_parent

# Ids that the tokenizer just built makes of known texts, for `finish` to hold the reloaded one to.
SAMPLES = "samples.json"


def read_fields(gguf_file: Path) -> dict[str, Any]:
    """The tokenizer's part of the file's metadata, by GGUF's names."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf_file).fields
    return {name: field.contents() for name, field in fields.items() if name.startswith("tokenizer.ggml.")}


def expand(gguf_file: Path, folder: Path, adapter: Path | None = None) -> None:
    """Write model, config and tokenizer to `folder`. Raises ValueError for another model's file or adapter."""
    import torch
    from transformers import AutoModelForCausalLM

    vocabulary = read_vocabulary(read_fields(gguf_file))
    model = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    # GGUF keeps it in single precision: 9.999999747378752e-06.
    model.config.rms_norm_eps = round(model.config.rms_norm_eps, 10)
    model.to(torch.bfloat16)
    if adapter is not None:
        state = model.state_dict()
        merge_adapter(state, adapter)
        model.load_state_dict(state)
    model.save_pretrained(folder)
    tokenizer = build_tokenizer(vocabulary)
    check_tokenizer(tokenizer, sample_ids(tokenizer))
    tokenizer.save_pretrained(folder)
    (folder / SAMPLES).write_text(json.dumps(sample_ids(tokenizer)), encoding="utf-8")


if __name__ == "__main__":
    die_with_parent(signal.SIGKILL)
    expand(*map(Path, sys.argv[1:4]))
