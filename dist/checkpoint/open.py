"""Opens a checkpoint folder: finds its parts, checks them, says what is wrong with them. Imports no torch.

Nothing in the files runs code, and nothing is asked of a hub. Reading the weights is read's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dist.checkpoint.adapters import base_tensors, find_strength, has_adapters, merge_adapters, with_head
from dist.checkpoint.boxes import SavedTensor
from dist.checkpoint.config_keys import generation_entries
from dist.checkpoint.dcp import read_dcp
from dist.checkpoint.folder import TOKENIZER_FILES, Found, Step, find_weights, read_json, side_folders
from dist.checkpoint.inventory import file_entries
from dist.checkpoint.ledger import FILES, Entry, Ledger
from dist.checkpoint.refusals import refuse_critics, refuse_quantized
from dist.checkpoint.shards import parameter_count, read_shards
from dist.checkpoint.torch_archive import Archive
from dist.checkpoint.whole_files import read_adapter, read_safetensors, read_torch_bin
from dist.errors import CheckpointError
from dist.settings import SETTINGS, generation_key

# Later checkpoints of the method's authors: Qwen2 at inference, trained with blocks of 4.
DLLM = "dllm"
DLLM_DEFAULTS = {"add_eos_length": 3, "refine_iter": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint that has been found, indexed and checked; no weight has been read yet.

    path               the folder that holds the weight files
    files              the weight files, those of the adapters' base model too where they are read
    archives           what of these files was written by torch.save
    step, steps        its number in the run and all steps of the run, oldest first; None and () outside a run
    world_size         ranks that saved it, 1 for whole files
    layout             in words, such as "FSDP2" or "safetensors"
    torch_family       the torch versions that write this form, or None if unknown
    dtype              the dtype that most of the weights are saved in
    parameters         number of weights; tied ones count once
    config             config.json as it is
    config_dir         the folder it lies in
    tokenizer_dir      the folder with the tokenizer's files
    generation_config  generation_config.json as it is, {} if there is none
    tensors            everything that was saved, by the model's names; adapters are updates of their weights
    adapters           what adapters there are, in words, or None
    assumed_head       lm_head.weight was not saved; should the config tie it, it is what the embeddings were before
                       adapters changed them
    ledger             what of all this is used, as far as it is known without the model and the tokenizer
    """

    path: Path
    files: tuple[Path, ...]
    archives: tuple[Archive, ...]
    step: int | None
    steps: tuple[Step, ...]
    world_size: int
    layout: str
    torch_family: str | None
    dtype: str
    parameters: int
    config: Mapping[str, Any]
    config_dir: Path
    tokenizer_dir: Path
    generation_config: Mapping[str, Any]
    tensors: Mapping[str, SavedTensor]
    adapters: str | None
    assumed_head: bool
    ledger: Ledger

    @property
    def defaults(self) -> Mapping[str, int]:
        """Settings that suit the kind of model where nothing else names them: how it was trained."""
        return DLLM_DEFAULTS if self.config.get("model_type") == DLLM else {}

    @property
    def placeholder_id(self) -> int | None:
        """The token that fills fresh blocks if it is another than EOS."""
        mask = self.config.get("mask_token_id") if self.config.get("model_type") == DLLM else None
        return mask if isinstance(mask, int) and not isinstance(mask, bool) else None


def open_checkpoint(
    path: str | Path, *, base_model: str | Path | None = None, lora_alpha: float | None = None
) -> Checkpoint:
    """The checkpoint that `path` stands for: a run, a step, a folder of shards, a Hugging Face model, adapters.

    `base_model` is the folder of the model that adapters saved alone belong to; it lends config and tokenizer where
    there are none. `lora_alpha` counts instead of the recorded one. Raises CheckpointError naming the first thing
    that is missing or wrong.
    """
    found = find_weights(Path(path).expanduser())
    base = None if base_model is None else find_weights(Path(base_model).expanduser())
    saved = _with_adapters(found, base, lora_alpha)
    base = saved.base
    places = side_folders(found) + ([] if base is None else side_folders(base))
    config_dir = _config_dir(found, places)
    tokenizer_dir = _tokenizer_dir(found, places)
    config = read_json(config_dir / "config.json")
    refuse_critics(found.folder, config, saved.tensors)
    refuse_quantized(config_dir / "config.json", config, saved.tensors)
    below = () if base is None else (base.folder,)
    generation_config = read_json(config_dir / "generation_config.json")
    folders = dict.fromkeys((found.folder, *saved.adapter_folders, *below, config_dir, tokenizer_dir))
    entries = (
        *(Entry(FILES, name, False, why, matters=True) for name, why in found.passed_over.items()),
        *file_entries(list(folders), saved.files, config_dir, tokenizer_dir),
        *saved.entries,
        *generation_entries(generation_config, frozenset(map(generation_key, SETTINGS))),
    )
    return Checkpoint(
        path=found.folder,
        files=saved.files,
        archives=saved.archives,
        step=found.step,
        steps=found.steps,
        world_size=saved.world_size,
        layout=saved.layout,
        torch_family=saved.torch_family,
        dtype=_main_dtype(saved.tensors),
        parameters=_parameters(config, saved.tensors),
        config=config,
        config_dir=config_dir,
        tokenizer_dir=tokenizer_dir,
        generation_config=generation_config,
        tensors=saved.tensors,
        adapters=saved.adapters,
        assumed_head=saved.assumed_head,
        ledger=Ledger().plus(entries),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Saved:
    """What the weight files in `folder` hold; `adapters` and what follows tell of adapters added to them."""

    folder: Path
    files: tuple[Path, ...]
    archives: tuple[Archive, ...]
    tensors: Mapping[str, SavedTensor]
    layout: str
    world_size: int = 1
    torch_family: str | None = None
    adapters: str | None = None
    assumed_head: bool = False
    base: Found | None = None
    adapter_folders: tuple[Path, ...] = ()
    entries: tuple[Entry, ...] = ()


def _with_adapters(found: Found, base: Found | None, lora_alpha: float | None) -> _Saved:
    """The weights of a folder with the adapters that lie among them, beside them or alone.

    `lora_adapter/` beside plain weights is what verl's merger writes: the weights are those of the base model.
    """
    saved = _read_index(found)
    beside = found.folder / "lora_adapter"
    among = has_adapters(saved.tensors) or found.kind == "adapter"
    alone = among and not any(".layers." in name for name in base_tensors(saved.tensors))
    if not among and not any(beside.glob("adapter_*")):
        return replace(saved, base=base)
    added = saved if among else _read_index(Found(kind="adapter", folder=beside, step=None, steps=()))
    strength, entries = find_strength(found.folder, lora_alpha)
    kept = base_tensors(saved.tensors)
    files, archives = saved.files, saved.archives
    others = [] if among else [added]
    if not among:
        kept = {**kept, **base_tensors(added.tensors)}  # modules that were trained whole
    elif alone or found.kind == "adapter":
        base = base or _recorded_base(found)
        if base.folder.resolve() == found.folder.resolve():
            raise _ambiguous(found.folder)
        others = [_with_adapters(base, None, None)]
        kept = {**others[0].tensors, **kept}
    for other in others:
        files, archives = (*files, *other.files), (*archives, *other.archives)
    where = "" if among else " of lora_adapter/"
    below = others[0].tensors if alone or found.kind == "adapter" else saved.tensors
    whole = with_head(kept, base_tensors(below))
    merged = merge_adapters(whole, added.tensors, strength, added.folder)
    return replace(
        saved,
        files=files,
        archives=archives,
        tensors=merged,
        assumed_head=len(whole) > len(kept),
        adapters=f"LoRA{where}, alpha {strength.alpha:g} ({strength.source}), merged while reading",
        base=base,
        adapter_folders=() if among else (beside,),
        entries=entries,
    )


def _read_index(found: Found) -> _Saved:
    if found.kind == "shards":
        shards = read_shards(found.folder)
        return _Saved(
            folder=found.folder,
            files=shards.files,
            archives=tuple(map(Archive, shards.files)),
            tensors=shards.tensors,
            layout=shards.layout,
            world_size=len(shards.files),
            torch_family=shards.torch_family,
        )
    if found.kind == "dcp":
        whole, layout = read_dcp(found.folder), "DCP"
    elif found.kind == "torch_bin":
        whole, layout = read_torch_bin(found.folder), "pytorch_model.bin"
    elif found.kind == "adapter":
        whole, layout = read_adapter(found.folder), "PEFT adapter"
    else:
        whole, layout = read_safetensors(found.folder), "safetensors"
    return _Saved(
        folder=found.folder, files=whole.files, archives=whole.archives, tensors=whole.tensors, layout=layout
    )


def _recorded_base(found: Found) -> Found:
    """The base model that adapters name, if it is a folder here; raises CheckpointError if not."""
    config = read_json(found.folder / "adapter_config.json") or read_json(
        found.folder / "lora_adapter" / "adapter_config.json"
    )
    name = str(config.get("base_model_name_or_path") or "")
    if name and Path(name).is_dir():
        return find_weights(Path(name))
    raise CheckpointError(
        f"{found.folder} holds adapters only.",
        f"They were trained on {name}, which is not a folder here."
        if name
        else "It does not say what they belong to.",
        "Give the folder of their base model with --base_model.",
    )


def _ambiguous(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{folder} holds a model and adapters for it.",
        "Nothing says whether the adapters are already merged into the model's weights.",
        "Move adapter_config.json and the adapter's weights to a folder of their own. Without them the model "
        "answers; that folder with --base_model is the model with the adapters added.",
    )


def _config_dir(found: Found, places: list[Path]) -> Path:
    folder = found.folder
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise CheckpointError(
        f"There is no config.json for the weights in {folder}.",
        f"It is in neither {folder / 'huggingface'} nor {folder}; verl 0.3 saved it only with hf_model.",
        "Copy the base model's config.json and tokenizer files into that huggingface folder.",
    )


def _tokenizer_dir(found: Found, places: list[Path]) -> Path:
    folder = found.folder
    for place in places:
        if any((place / name).is_file() for name in TOKENIZER_FILES):
            return place
    raise CheckpointError(
        f"There is no tokenizer for the weights in {folder}.",
        f"None of {', '.join(TOKENIZER_FILES)} is in {folder / 'huggingface'} or {folder}.",
        "Copy the base model's tokenizer files into that huggingface folder.",
    )


def _main_dtype(tensors: Mapping[str, SavedTensor]) -> str:
    elements: Counter[str] = Counter()
    for tensor in tensors.values():
        elements[tensor.dtype] += tensor.elements
    return elements.most_common(1)[0][0] if elements else "none"


def _parameters(config: Mapping[str, Any], tensors: Mapping[str, SavedTensor]) -> int:
    tied = config.get("tie_word_embeddings") and any(name.endswith("embed_tokens.weight") for name in tensors)
    return parameter_count({name: t for name, t in tensors.items() if not (tied and name == "lm_head.weight")})
