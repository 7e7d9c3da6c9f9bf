"""GGUF file -> Hugging Face folder: weights in bfloat16, config, tokenizer. Knows no shards.

Run by `prepare` in a process of its own: `python -m chat.demo.expand GGUF FOLDER`.

bfloat16 because the 4-bit source holds less than that: half the disk and half the bytes to read at each
start, and widening to float32 while reading costs nothing beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from chat.demo.tokenizer import build_tokenizer, read_vocabulary


def read_fields(gguf_file: Path) -> dict[str, Any]:
    """The tokenizer's part of the file's metadata, by GGUF's names."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf_file).fields
    return {name: field.contents() for name, field in fields.items() if name.startswith("tokenizer.ggml.")}


def expand(gguf_file: Path, folder: Path) -> None:
    """Write model, config and tokenizer to `folder`. Raises ValueError for another model's file."""
    import torch
    from transformers import AutoModelForCausalLM

    vocabulary = read_vocabulary(read_fields(gguf_file))
    model = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    # GGUF keeps it in single precision: 9.999999747378752e-06.
    model.config.rms_norm_eps = round(model.config.rms_norm_eps, 10)
    model.to(torch.bfloat16).save_pretrained(folder)
    build_tokenizer(vocabulary).save_pretrained(folder)


if __name__ == "__main__":
    expand(Path(sys.argv[1]), Path(sys.argv[2]))
