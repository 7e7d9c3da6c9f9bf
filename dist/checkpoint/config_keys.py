"""Which keys of a checkpoint's JSON files decide replies, and why the others do not. Builds nothing."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from dist.checkpoint.ledger import Entry, short

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"

TRAINING = "training only"
NOTE = "a note of who wrote it"
OWN = "the program has its own way"
# config.json: pattern and why it has no effect on replies.
NO_EFFECT = (
    (r"_name_or_path|name_or_path|transformers_version|_commit_hash|architectures", NOTE),
    (r"_?attn_implementation(_internal|_autoset)?|use_cache|use_flash_attn.*|_experts_implementation", OWN),
    (r"initializer_(range|factor)|.*dropout.*|.*pdrop|.*aux_loss_coef.*|router_jitter_noise", TRAINING),
    (r"output_router_logits|output_attentions|output_hidden_states|return_dict|use_return_dict", TRAINING),
    (r"gradient_checkpointing|router_z_loss_coef|z_loss_coefficient|label_smoothing|.*_loss_.*", TRAINING),
    (r"pretraining_tp|torchscript|pruned_heads|chunk_size_feed_forward|tie_encoder_decoder", TRAINING),
    (r"id2label|label2id|num_labels|problem_type|finetuning_task|task_specific_params", "for classifiers"),
    (
        r"pad_token_id|bos_token_id|sep_token_id|decoder_start_token_id|prefix|tokenizer_class",
        "the tokenizer tells",
    ),
    (r"is_decoder|is_encoder_decoder|add_cross_attention|cross_attention_hidden_size", "a decoder is built"),
    (r"auto_map", "its code is not run without --trust_remote_code"),
    (r"quantization_config|compression_config", "the weights are plain numbers"),
)
VISION = (
    r"vision_config|.*(image|vision|video|audio).*|mm_.*|vision_feature_.*|projector_.*|spatial_merge_size"
    r"|multimodal_projector_bias|.*_token_index|boi_token_id|eoi_token_id"
)
# generation_config.json. What is neutral has no effect; the rest of this table decides replies in transformers.
SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "repetition_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "length_penalty": (1,),
    "typical_p": (1,),
    "min_p": (0,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "diversity_penalty": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "guidance_scale": (1,),
}
GENERATION_NOTES = (
    r"transformers_version|_from_model_config|_commit_hash|use_cache|output_.*|return_.*|cache_.*|.*assistant.*"
    r"|prompt_lookup_.*|max_matching_ngram_size|is_assistant|compile_config|disable_compile|max_time|early_stopping"
    r"|low_memory|renormalize_logits|remove_invalid_values|prefill_chunk_size|continuous_batching_config"
    r"|token_healing|target_lookbehind"
)
EMPTY: tuple[Any, ...] = (None, False, "", [], {})
# tokenizer_config.json: what transformers' tokenizers read to turn text into ids and back, and the template.
TOKENIZER_USED = (
    r"(bos|eos|unk|pad|cls|sep|mask)_token|additional_special_tokens|extra_special_tokens|added_tokens_decoder"
    r"|add_bos_token|add_eos_token|add_prefix_space|chat_template|tokenizer_class|legacy|use_default_system_prompt"
    r"|split_special_tokens|sp_model_kwargs|do_lower_case|errors|trim_offsets|fix_mistral_regex"
    r"|from_slow|byte_fallback|model_specific_special_tokens|.*_token"
)
TOKENIZER_UNUSED = (
    (r"model_max_length|max_length|max_len", "max_length and the model's positions decide"),
    (r"padding.*|pad_to_multiple_of|pad_token_type_id|truncation.*|stride", "prompts are neither padded nor cut"),
    (r"clean_up_tokenization_spaces|spaces_between_special_tokens", "replies are shown as decoded"),
    (r"processor_class|image_.*|.*video.*|image_processor.*", "for images"),
    (r"auto_map", "its code is not run without --trust_remote_code"),
    (r"name_or_path|_commit_hash|tokenizer_file|vocab_file|merges_file|is_local|local_files_only|backend", NOTE),
    (r"model_input_names|return_.*|verbose|added_tokens|device_map", "not for ids"),
)


def config_entries(
    raw: Mapping[str, Any], known: Collection[str] | None, reader: str, *, text_part: bool = False
) -> Iterator[Entry]:
    """What each key of config.json is good for.

    `known` are the names that the model's config class takes, None if that is not known; `reader` is its name.
    `text_part`: of a vision-language model only the text part is used.
    """
    for key, value in raw.items():
        why = _first_match(NO_EFFECT, key)
        if why is None and text_part and re.fullmatch(VISION, key):
            why = "only the text part answers"
        if why is not None:
            yield Entry(CONFIG, key, False, why, short(value))
        elif known is None or key in known:
            yield Entry(CONFIG, key, True, f"read by {reader}", short(value))
        else:
            neutral = value in EMPTY
            yield Entry(CONFIG, key, False, f"not known to {reader}", short(value), matters=not neutral)


def generation_entries(raw: Mapping[str, Any], settings: Collection[str]) -> Iterator[Entry]:
    """What each key of generation_config.json is good for; `settings` are the program's own names."""
    samples = raw.get("do_sample") is True
    for key, value in raw.items():
        matters = False
        used, why = False, "no effect"
        if key in ("eos_token_id", "do_sample"):
            used, why = True, "ends replies" if key == "eos_token_id" else "whether sampling settings count"
        elif key in SAMPLING_ONLY and not samples:
            why = "do_sample is not true"
        elif key in settings:
            used, why = value is not None, "a setting"
        elif re.fullmatch(GENERATION_NOTES, key):
            why = "not for replies"
        elif key in ("bos_token_id", "pad_token_id", "decoder_start_token_id"):
            why = "the tokenizer tells"
        elif value not in EMPTY and not _is_neutral(key, value):
            why, matters = "not supported: replies are made without it", True
        yield Entry(GENERATION, key, used, why, short(value), matters)


def tokenizer_entries(raw: Mapping[str, Any]) -> Iterator[Entry]:
    """What each key of tokenizer_config.json is good for."""
    for key, value in raw.items():
        why = _first_match(TOKENIZER_UNUSED, key)
        if why is not None:
            yield Entry(TOKENIZER, key, False, why, short(value))
        elif re.fullmatch(TOKENIZER_USED, key):
            yield Entry(TOKENIZER, key, True, "read by transformers' tokenizer", short(value))
        else:
            yield Entry(TOKENIZER, key, False, "not known here", short(value))


def _first_match(table: tuple[tuple[str, str], ...], key: str) -> str | None:
    return next((why for pattern, why in table if re.fullmatch(pattern, key)), None)


def _is_neutral(key: str, value: Any) -> bool:
    return isinstance(value, (int, float)) and value in NEUTRAL.get(key, ())


class _Names(frozenset[str]):
    """Names of keys; a key also counts as one if the model's own code mentions it."""

    source: str = ""

    def __contains__(self, key: object) -> bool:
        plain = str(key).lstrip("_")
        return frozenset.__contains__(self, key) or f"config.{key}" in self.source or f'"{plain}"' in self.source


def names_read(*configs: Any) -> Collection[str]:
    """The keys that these configs' classes take or that the models' code reads."""
    names = {"model_type", "dtype", "torch_dtype", "rope_theta", "rope_scaling", "rope_parameters", "mask_token_id"}
    names |= {"tie_word_embeddings", "eos_token_id", "partial_rotary_factor", "max_position_embeddings"}
    source = []
    for config in configs:
        kind = type(config)
        fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
        names |= {field.name for field in fields} or set(inspect.signature(kind.__init__).parameters)
        names |= set(getattr(kind, "attribute_map", ()))
        module = kind.__module__.replace(".configuration_", ".modeling_")
        if importlib.util.find_spec(module) is not None:
            source.append(inspect.getsource(importlib.import_module(module)))
        source.append(inspect.getsource(sys.modules[kind.__module__]))
    found = _Names(names)
    found.source = "\n".join(source)
    return found
