"""From config.json to the transformers config of a causal language model, or a refusal by name. Reads no weight.

Of a vision-language model the text part is taken. Knows no rank and no tensor names.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dist.checkpoint.config_keys import config_entries, names_read
from dist.checkpoint.config_names import other_kind, refuse_by_names, unknown_type
from dist.checkpoint.ledger import Entry
from dist.checkpoint.open import DLLM
from dist.errors import CheckpointError

# What the program decides itself, wherever it stands in a config.
NOT_PASSED_ON = (
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "_attn_implementation_autoset",
    "_experts_implementation",
    "quantization_config",
)
# Text parts that transformers has no causal LM for, and the model that computes the same for text alone: there the
# positions of the three axes of multimodal rotary embeddings are equal.
SAME_FOR_TEXT = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}
# What transformers 4 computes with state that outlives a reply.
STATE_IN_MODULES = ("recurrent_gemma",)
MULTIMODAL_ROPE = ("mrope_section", "mrope_interleaved")
DLLM_IS = "qwen2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What config.json describes.

    config   the transformers config of the causal LM to build
    whole    the transformers config of the whole checkpoint, which differs where only the text part is built
    words    the model type, in words where it is another than the checkpoint's
    entries  what each key is used for
    """

    config: Any
    whole: Any
    words: str
    entries: tuple[Entry, ...]

    @property
    def is_text_part(self) -> bool:
        """Whether the checkpoint holds more than the text model."""
        return self.config is not self.whole


def describe(config_dir: Path, raw: Mapping[str, Any], *, trust_remote_code: bool = False) -> Described:
    """The causal LM that `raw`, the config.json in `config_dir`, describes.

    Raises CheckpointError for a model type that the installed transformers does not know, for models that are no
    causal LMs, and for what transformers says of values that do not go together.
    """
    file = config_dir / "config.json"
    refuse_by_names(file, raw)
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    _refuse_remote_code(config_dir, raw, trust_remote_code)
    clean = _cleaned(raw)
    model_type = raw.get("model_type")
    if model_type == DLLM:
        clean, model_type = {**clean, "model_type": DLLM_IS}, DLLM_IS
        clean.pop("auto_map", None)
    remote = (
        trust_remote_code and bool(raw.get("auto_map")) and raw.get("model_type") not in (*CONFIG_MAPPING, DLLM)
    )
    if not remote and model_type not in CONFIG_MAPPING:
        raise unknown_type(file, raw, transformers.__version__)
    try:
        whole = _remote_config(config_dir) if remote else _config(str(model_type), clean)
    except config_errors() as problem:
        raise cannot_build(file, raw, problem) from problem
    if remote:
        return Described(config=whole, whole=whole, words=str(raw.get("model_type")), entries=())
    _refuse_other_kinds(file, raw, whole)
    config = _text_part(file, raw, whole)
    return Described(
        config=config,
        whole=whole,
        words=_words(str(raw.get("model_type")), config, whole),
        entries=tuple(_entries(raw, config, whole)),
    )


def config_errors() -> tuple[type[Exception], ...]:
    """What transformers raises for configs that it does not know or whose values do not go together."""
    from huggingface_hub import errors

    usual = (ValueError, KeyError, TypeError, AttributeError, ImportError, OSError, ZeroDivisionError, IndexError)
    strict: type[Exception] | None = getattr(errors, "StrictDataclassError", None)  # newer versions only
    return usual if strict is None else (*usual, strict)


def cannot_build(file: Path, raw: Mapping[str, Any], problem: Exception) -> CheckpointError:
    """What transformers said when the model could not be built; its model type is one that it knows."""
    import transformers

    lines = [line.strip() for line in (str(problem) or repr(problem)).splitlines() if line.strip()]
    said = lines[0] if len(lines) < 2 else f"{lines[0]} {lines[-1]}"
    return CheckpointError(
        f"transformers {transformers.__version__} cannot build the model of {file}.",
        f"Its model_type is {raw.get('model_type')}. {type(problem).__name__}: {said}",
        "Compare the file with the config.json of the model that was trained.",
    )


def _refuse_remote_code(config_dir: Path, raw: Mapping[str, Any], trusted: bool) -> None:
    """A model whose code lies in its folder runs only if the user says so."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if raw.get("auto_map") and raw.get("model_type") not in (*CONFIG_MAPPING, DLLM) and not trusted:
        raise CheckpointError(
            f"The model in {config_dir} brings its own code.",
            f"Its config.json names {', '.join(sorted(map(str, raw['auto_map'].values())))}.",
            "Read that code; if you trust it, add --trust_remote_code.",
        )


def _cleaned(raw: Any) -> Any:
    """The config without what the program decides itself, dtypes without their `torch.`, infinities as numbers."""
    if isinstance(raw, list):
        return [_cleaned(one) for one in raw]
    if not isinstance(raw, Mapping):
        return raw
    if raw.keys() == {"__float__"}:  # how transformers 5 writes what JSON has no numbers for
        return float(raw["__float__"])
    clean = {key: _cleaned(value) for key, value in raw.items() if key not in NOT_PASSED_ON}
    for key in ("dtype", "torch_dtype"):
        if isinstance(clean.get(key), str):
            clean[key] = clean[key].removeprefix("torch.")
    return clean


def _config(model_type: str, clean: Mapping[str, Any]) -> Any:
    """transformers' config of this model type."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type].from_dict({**clean, **_older_names(clean, transformers.__version__)})


def _remote_config(config_dir: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(config_dir, trust_remote_code=True, local_files_only=True)


def _older_names(raw: Mapping[str, Any], version: str) -> dict[str, Any]:
    """What a config of transformers 5 says, in the names that version 4 reads.

    Version 4 would pass over them in silence and use its defaults: a model with the wrong rotary base, say.
    """
    if int(version.partition(".")[0]) >= 5:
        return {}
    older: dict[str, Any] = {}
    rope = raw.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        older["rope_theta"] = rope["rope_theta"]
        older["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    if "num_local_experts" in raw and "num_experts" not in raw:
        older["num_experts"] = raw["num_local_experts"]
    if isinstance(raw.get("text_config"), dict):
        older["text_config"] = {**raw["text_config"], **_older_names(raw["text_config"], version)}
    return older


def _refuse_other_kinds(file: Path, raw: Mapping[str, Any], whole: Any) -> None:
    """Raise CheckpointError for encoder-decoder models and encoders, by their model type."""
    import transformers
    from transformers.models.auto import modeling_auto

    refusal = partial(other_kind, file, raw)
    text = whole.get_text_config()
    if getattr(whole, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False):
        raise refusal("an encoder-decoder model", "Its replies are made by a decoder beside an encoder.")
    masked = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if whole.model_type in masked and not getattr(whole, "is_decoder", False):
        builds = masked[whole.model_type]
        raise refusal("an encoder", f"transformers builds {builds} of it, which fills in masked words.")
    if whole.model_type in STATE_IN_MODULES and int(transformers.__version__.partition(".")[0]) < 5:
        why = f"transformers {transformers.__version__} keeps its state in its modules from one reply to the next."
        raise refusal("not usable with this transformers", why)
    if text is whole and whole.model_type not in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise refusal("no causal language model", "transformers has no causal language model of this type.")


def _text_part(file: Path, raw: Mapping[str, Any], whole: Any) -> Any:
    """The config of the text model: the whole one's, or that of its text part."""
    from transformers.models.auto import modeling_auto

    text = whole.get_text_config()
    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if text is whole:
        return whole
    same = SAME_FOR_TEXT.get(text.model_type)
    if same is None and causal.get(text.model_type) is None:
        raise CheckpointError(
            f"The text part of {whole.model_type} cannot be used alone: {file.parent}.",
            f"It is a {text.model_type}, for which transformers has no causal language model.",
            "Give a causal language model, which answers text with text.",
        )
    given = raw["text_config"] if isinstance(raw.get("text_config"), dict) else raw
    tied = text.tie_word_embeddings
    if "tie_word_embeddings" in raw or "tie_word_embeddings" not in given:
        tied = whole.tie_word_embeddings
    if same is None:
        part = copy.deepcopy(text)
        part.tie_word_embeddings = tied
        return part
    plain = {**_without_multimodal_rope(_cleaned(text.to_dict())), "tie_word_embeddings": tied, "model_type": same}
    try:
        return _config(same, plain)
    except config_errors() as problem:
        raise cannot_build(file, raw, problem) from problem


def _without_multimodal_rope(plain: dict[str, Any]) -> dict[str, Any]:
    """The same with rotary embeddings for one axis."""
    changed = dict(plain)
    for key in ("rope_parameters", "rope_scaling"):
        rope = changed.get(key)
        if not isinstance(rope, dict):
            continue
        kept = {name: value for name, value in rope.items() if name not in MULTIMODAL_ROPE}
        for name in ("rope_type", "type"):
            if kept.get(name) == "mrope":
                kept[name] = "default"
        only_default = key == "rope_scaling" and set(kept.values()) <= {"default"}
        changed[key] = None if only_default else kept
    return changed


def _words(name: str, config: Any, whole: Any) -> str:
    if config is not whole:
        return f"{name}, its text part as {config.model_type}"
    return name if config.model_type == name else f"{name}, as {config.model_type}"


def _entries(raw: Mapping[str, Any], config: Any, whole: Any) -> list[Entry]:
    reader = f"transformers' {type(whole).__name__}"
    text_part = config is not whole
    entries = list(config_entries(raw, names_read(whole, config), reader, text_part=text_part))
    if text_part and isinstance(raw.get("text_config"), dict):
        reader = f"transformers' {type(config).__name__}"
        below = config_entries(raw["text_config"], names_read(config, whole.get_text_config()), reader)
        entries += [dataclasses.replace(one, name=f"text_config.{one.name}") for one in below]
    return entries
