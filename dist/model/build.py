"""Builds the transformers model that a config describes, without weights. Knows no rank and no weight file.

Parameters are on the meta device: no memory, no random initialisation. Buffers that are not saved (rotary
frequencies and the like) are computed as in any freshly constructed model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dist.errors import CheckpointError, UsageError

DTYPES = ("float32", "bfloat16", "float16")


def choose_dtype(asked: str, saved: str, config: Mapping[str, Any], device: torch.device) -> torch.dtype:
    """The dtype to hold the weights in: `asked`, or for "auto" float32 on a CPU, else 16 bits.

    On a GPU fp32 weights are taken for master weights: the config's dtype counts, else bfloat16.
    Raises UsageError for a dtype that is none of DTYPES.
    """
    if asked in DTYPES:
        return _dtype(asked)
    if asked != "auto":
        raise UsageError(f"--dtype cannot be {asked}.", f"It takes auto, {', '.join(DTYPES)}.")
    if device.type != "cuda":
        return torch.float32
    described = config.get("dtype") or config.get("torch_dtype")
    for name in (described, saved):
        if name in DTYPES[1:]:
            return _dtype(name)
    return torch.bfloat16


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def build_model(config_dir: Path, raw: Mapping[str, Any], dtype: torch.dtype, *, trust_remote_code: bool) -> Any:
    """The causal LM that `config_dir` describes, in eval mode, its parameters on meta, its buffers on the CPU.

    `raw` is config.json as it is. Raises CheckpointError if transformers cannot build it.
    """
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    _refuse_remote_code(config_dir, raw, trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(
            config_dir,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            **_older_names(raw, transformers.__version__),
        )
        with _parameters_on_meta():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    except _build_errors() as problem:
        said = (str(problem) or repr(problem)).splitlines()[0]
        raise CheckpointError(
            f"transformers {transformers.__version__} cannot build the model of {config_dir / 'config.json'}.",
            f"Its model_type is {raw.get('model_type')}: {said}",
            f"Install a transformers that knows it; {raw.get('transformers_version', 'another')} wrote the config.",
        ) from problem
    if getattr(config.get_text_config(), "attn_logit_softcapping", None):
        # transformers' sdpa attention leaves the cap out without a word.
        model.set_attn_implementation("eager")
    return model.requires_grad_(False).eval()


def _refuse_remote_code(config_dir: Path, raw: Mapping[str, Any], trusted: bool) -> None:
    """A model whose code lies in its folder runs only if the person says so."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if raw.get("auto_map") and raw.get("model_type") not in CONFIG_MAPPING and not trusted:
        raise CheckpointError(
            f"The model in {config_dir} brings its own code.",
            f"Its config.json names {', '.join(sorted(map(str, raw['auto_map'].values())))}.",
            "Read that code; if you trust it, add --trust_remote_code.",
        )


def _build_errors() -> tuple[type[Exception], ...]:
    """What transformers raises for configs that it does not know or whose values do not go together."""
    from huggingface_hub import errors

    usual = (ValueError, KeyError, TypeError, AttributeError, ImportError, OSError)
    strict: type[Exception] | None = getattr(errors, "StrictDataclassError", None)  # newer versions only
    return usual if strict is None else (*usual, strict)


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
    return older


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """While it lasts, every parameter that a module registers lands on meta; buffers stay what they are."""

    def to_meta(module: torch.nn.Module, name: str, parameter: Any) -> Any:
        if parameter is None or parameter.device.type == "meta":
            return None
        return torch.nn.Parameter(parameter.detach().to("meta"), requires_grad=False)

    handle = torch.nn.modules.module.register_module_parameter_registration_hook(to_meta)
    try:
        yield
    finally:
        handle.remove()


def wanted_tensors(module: Any) -> dict[str, torch.Tensor]:
    """What the weights must hold, by name: parameters and saved buffers, each tied group under its first name."""
    names = module.state_dict().keys()
    found: dict[str, torch.Tensor] = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name in names:
            found[name] = tensor
    return found


def tied_names(module: Any) -> dict[str, str]:
    """{further name: first name} of parameters that are one and the same."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            tied[name] = first[id(parameter)]
    return tied


def put_tensor(module: Any, name: str, tensor: torch.Tensor) -> None:
    """Make `tensor` the parameter or buffer called `name`."""
    owner_name, _, own_name = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    if own_name in owner._parameters:
        owner._parameters[own_name] = (
            tensor if isinstance(tensor, torch.nn.Parameter) else torch.nn.Parameter(tensor, requires_grad=False)
        )
    else:
        owner._buffers[own_name] = tensor


def position_limit(config: Any) -> int | None:
    """How many tokens the model's positions reach, or None if the config does not say."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    if limit and original and factor:
        limit = max(limit, int(original * factor))
    return int(limit) if limit else None
