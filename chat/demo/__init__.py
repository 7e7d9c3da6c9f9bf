"""The embedded model: where it lies and whether it is whole. Imports nothing heavy; knows no torch.

`python -m chat.demo` makes the folder, once.
"""

from __future__ import annotations

import json
from pathlib import Path

from chat.files import data_folder

DEFAULT_SYSTEM = "You are a kind, helpful assistant. Answer in plain words."

# What `/model` says of it, from the model card.
ABOUT = (
    "SmolLM2-135M-Instruct with an adapter (LoRA, rank 54) trained for refinement: 2.6 tokens a pass at N = 7 on "
    "held-out questions, the base 1.0; small, so often wrong; see chat/demo/MODEL_CARD.md"
)

# Raised whenever a prepared folder of an older program would no longer do.
DEMO_VERSION = "6"

# Written last, beside the checkpoint's own files: {"files": {relative path: bytes}}.
MANIFEST = "demo.json"


def demo_folder() -> Path:
    """The embedded model's checkpoint folder, prepared or not: a run root as verl lays it out."""
    return data_folder() / f"demo-{DEMO_VERSION}"


def is_ready(folder: Path | None = None) -> bool:
    """Is the embedded model there, every file of it at its full size? Reads one small file."""
    folder = folder or demo_folder()
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return bool(files) and all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
