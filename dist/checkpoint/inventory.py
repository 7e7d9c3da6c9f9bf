"""The files of a checkpoint's folders, each used or not and why, by their names alone. Opens none of them.

Knows the names that verl, transformers and peft write; others are named as not known.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from dist.checkpoint.folder import TOKENIZER_FILES
from dist.checkpoint.ledger import FILES, Entry

TOKENIZER_PARTS = (
    *TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model.v3",
    "spiece.model",
)
BESIDE_TOKENIZER_JSON = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model")
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
RECORDS = ("fsdp_config.json", "lora_train_meta.json", "latest_checkpointed_iteration.txt")
# What lies beside weights and is not for replies: pattern and reason, the first that matches counts.
NOT_FOR_REPLIES = (
    (r"optim.*\.pt|optimizer\.(pt|bin)|scheduler\.pt|rng_state.*", "optimizer state, for training"),
    (r"extra_state_.*\.pt|data\.pt|trainer_state\.json|training_args\.bin|.*dataloader.*\.pt", "for training"),
    (r"(pre)?processor_config\.json|video_preprocessor_config\.json|image_processor_config\.json", "for images"),
    (r".*\.(md|txt|png|jpg|svg|pdf)|LICENSE.*|NOTICE.*|\.gitattributes|USE_POLICY.*", "for people"),
    (r".*\.py", "code, which is not run without --trust_remote_code"),
    (r".*\.index\.json", "an index of weights"),
    (r".*\.(safetensors|bin|pt|pth|distcp|gguf|ckpt|h5|msgpack|onnx)", "other weights than those that are read"),
)


def file_entries(
    folders: Collection[Path], weights: Collection[Path], config_dir: Path, tokenizer_dir: Path
) -> Iterator[Entry]:
    """An entry for each file and folder in `folders`; `weights` are the files that the tensors come from."""
    weight_paths = {path.absolute() for path in weights}
    wanted_dirs = {config_dir.absolute(), tokenizer_dir.absolute(), *(path.parent for path in weight_paths)}
    top = min(folders, key=lambda folder: len(folder.parts))
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            name = str(path.relative_to(top)) if path.is_relative_to(top) else str(path)
            if path.is_dir():
                inside = any(
                    wanted == path.absolute() or path.absolute() in wanted.parents for wanted in wanted_dirs
                )
                if not inside:
                    yield _folder(path, name)
                continue
            used, why = _file(path, path.absolute() in weight_paths, config_dir, tokenizer_dir)
            matters = not used and path.suffix in (".safetensors", ".bin") and "training" not in why
            yield Entry(FILES, name, used, why, matters=matters and "other weights" in why)


def _folder(path: Path, name: str) -> Entry:
    if path.name == "lora_adapter":
        return Entry(FILES, f"{name}/", False, "the same adapters as in the shards")
    if (path / "adapter_config.json").is_file():
        return Entry(FILES, f"{name}/", False, "adapters, which are not added to the weights", matters=True)
    if path.name == "additional_chat_templates":
        return Entry(FILES, f"{name}/", True, "chat templates to choose from")
    return Entry(FILES, f"{name}/", False, "another folder")


def _file(path: Path, is_weights: bool, config_dir: Path, tokenizer_dir: Path) -> tuple[bool, str]:
    """(used, why) of one file."""
    if is_weights:
        return True, "weights"
    if path.name in ("config.json", "generation_config.json"):
        return (True, "settings of the model") if path.parent == config_dir else (False, "another folder's counts")
    if path.name in BESIDE_TOKENIZER_JSON and (tokenizer_dir / "tokenizer.json").is_file():
        return False, "tokenizer.json says the same"
    if path.name in (*TOKENIZER_PARTS, *TEMPLATE_FILES):
        return (True, "tokenizer") if path.parent == tokenizer_dir else (False, "another folder's counts")
    if path.name == "adapter_config.json":
        return True, "strength of the adapters"
    if path.name in RECORDS or path.name.endswith(".safetensors.index.json"):
        return True, "the layout of the weights"
    for pattern, why in NOT_FOR_REPLIES:
        if re.fullmatch(pattern, path.name):
            return False, why
    return False, "not known here"
