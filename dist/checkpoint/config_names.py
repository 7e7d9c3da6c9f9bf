"""What the names in config.json show of a model, and refuse, without transformers. Builds nothing."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist.checkpoint.open import DLLM
from dist.errors import CheckpointError


def refuse_by_names(file: Path, raw: Mapping[str, Any]) -> None:
    """Raise CheckpointError for what the names in config.json show, without importing transformers.

    Models of sound, no model type, and one that transformers' own list of them does not hold.
    """
    name = raw.get("model_type")
    if not name or not _is_listed(str(name)):
        if name == DLLM or raw.get("auto_map"):  # the latter brings its own code
            return
        from importlib import metadata

        raise unknown_type(file, raw, metadata.version("transformers"))
    sub_configs = {key for key, value in raw.items() if isinstance(value, dict) and key.endswith("_config")}
    heard = {"audio_config", "audio_encoder_config", "encoder_config", "codec_config", "acoustic_tokenizer_config"}
    if sub_configs & heard and "vision_config" not in sub_configs:
        raise other_kind(file, raw, "an audio model", f"Its config.json has {sorted(sub_configs & heard)[0]}.")
    if "thinker_config" in sub_configs or "talker_config" in sub_configs:
        raise other_kind(file, raw, "an audio model", "Its config.json has a thinker and a talker.")


def saved_rows(raw: Mapping[str, Any]) -> int | None:
    """How many embeddings the text model has by its config.json; None where that does not tell."""
    text = raw.get("text_config")
    rows = (text if isinstance(text, dict) and "vocab_size" in text else raw).get("vocab_size")
    return rows if isinstance(rows, int) else None


def other_kind(file: Path, raw: Mapping[str, Any], kind: str, why: str) -> CheckpointError:
    """The refusal of a model of another kind than is asked for here."""
    hint = "Give a causal language model, which answers text with text."
    return CheckpointError(f"{raw.get('model_type')} is {kind}: {file.parent}.", why, hint)


def unknown_type(file: Path, raw: Mapping[str, Any], version: str) -> CheckpointError:
    """The refusal of a model type that transformers of this version does not know."""
    model_type = raw.get("model_type")
    if not model_type:
        return CheckpointError(
            f"{file} names no model_type.",
            "Nothing else says which model the weights belong to.",
            "Copy the config.json of the model that was trained.",
        )
    wrote = raw.get("transformers_version")
    return CheckpointError(
        f"transformers {version} does not know the model type {model_type}.",
        f"{file} was written by transformers {wrote}." if wrote else f"{file} names it.",
        "Install a transformers that knows it.",
    )


def _is_listed(model_type: str) -> bool:
    """Whether the installed transformers names this model type where it lists them; True if that cannot be seen."""
    package = importlib.util.find_spec("transformers")
    folder = Path(package.origin or "").parent if package else Path()
    lists = [path.read_text(encoding="utf-8") for path in (folder / "models" / "auto").glob("*.py")]
    return any(f'"{model_type}"' in one for one in lists) or not any('"qwen2"' in one for one in lists)
