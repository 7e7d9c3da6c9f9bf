"""Builds the transformers model that a config describes, without weights. Knows no rank and no weight file.

Parameters are on the meta device: no memory, no random initialisation. Buffers that are not saved (rotary
frequencies and the like) are computed as in any freshly constructed model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from dist.checkpoint.model_config import Described, cannot_build, config_errors, describe
from dist.errors import UsageError

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
    text = config.get("text_config")
    places = (config, text) if isinstance(text, dict) else (config,)
    described = [str(place.get(key)).removeprefix("torch.") for place in places for key in ("dtype", "torch_dtype")]
    for name in (*described, saved):
        if name in DTYPES[1:]:
            return _dtype(name)
    return torch.bfloat16


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def build_model(config_dir: Path, raw: Mapping[str, Any], dtype: torch.dtype, *, trust_remote_code: bool) -> Any:
    """The causal LM that `raw`, the config.json in `config_dir`, describes; see `build_described`."""
    described = describe(config_dir, raw, trust_remote_code=trust_remote_code)
    return build_described(described, config_dir / "config.json", dtype, trust_remote_code=trust_remote_code)


def build_described(described: Described, file: Path, dtype: torch.dtype, *, trust_remote_code: bool) -> Any:
    """The causal LM that was described, in eval mode, its parameters on meta, its buffers on the CPU.

    `file` is its config.json, for messages. Raises CheckpointError if transformers cannot build it.
    """
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(described.config)
    build_errors: tuple[type[Exception], ...] = (*config_errors(), RuntimeError)

    def build() -> Any:
        with _parameters_on_meta(), _NoDraws():
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)

    try:
        try:
            model = build()
        except RuntimeError:  # some models initialise parameters by way of their data, which meta has none of
            with _no_init_weights():
                model = build()
    except build_errors as problem:
        raise cannot_build(file, {"model_type": described.words}, problem) from problem
    if getattr(config.get_text_config(), "attn_logit_softcapping", None):
        # transformers' sdpa attention leaves the cap out without a word.
        model.set_attn_implementation("eager")
    return model.requires_grad_(False).eval()


def _no_init_weights() -> AbstractContextManager[Any]:
    """transformers' own way to leave weights as they are; buffers are still computed."""
    import importlib

    for name in ("transformers.initialization", "transformers.modeling_utils"):
        with suppress(ImportError, AttributeError):
            way: AbstractContextManager[Any] = importlib.import_module(name).no_init_weights()
            return way
    return nullcontext()


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


class _NoDraws(TorchFunctionMode):
    """While it lasts, no random numbers are drawn for what is on meta: torch would import its compiler for that."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        target = args[0] if args else named.get("tensor")
        if isinstance(target, torch.Tensor) and target.is_meta and _draws(function):
            return target
        return function(*args, **named)


def _draws(function: Any) -> bool:
    known = getattr(function, "__name__", ""), getattr(function, "__module__", "")
    return known[0] == "normal_" or known[1] == torch.nn.init.__name__


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


def untie(module: Any, name: str) -> None:
    """Give the parameter called `name` weights of its own, on meta, where it shared those of another."""
    shared = module.get_parameter(name)
    put_tensor(module, name, torch.nn.Parameter(torch.empty_like(shared, device="meta"), requires_grad=False))
    module.config.tie_word_embeddings = False


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
    return int(limit) if limit and limit > 0 else None
