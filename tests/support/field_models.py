"""Tiny models and folders for the table of field cases: built in this process, in moments, without verl."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from checkpoints import SIZES, VOCABULARY, save_tokenizer

SMALL = {**SIZES, "hidden_size": 32, "intermediate_size": 40, "max_position_embeddings": 256}
SPECIAL = {"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None}
OLD = int(transformers.__version__.partition(".")[0]) < 5


def mrope(**more: Any) -> dict[str, Any]:
    """Multimodal rotary embeddings, in the keys that the installed transformers reads."""
    sections = {"mrope_section": [1, 1, 2], **more}
    if OLD:
        return {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "default", **sections}}
    return {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", **sections}}


def wild(model: Any, seed: int = 0) -> Any:
    """The same model with weights wild enough that replies vary."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3, generator=generator)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.float().eval()


def text_model(family: str = "Qwen2", **more: Any) -> Any:
    """A tiny causal LM of a family, by the first part of its config class's name."""
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **SPECIAL, "tie_word_embeddings": False, **more})
    return wild(transformers.AutoModelForCausalLM.from_config(config))


def save_model(model: Any, folder: Path) -> Path:
    """As transformers saves it, with a tokenizer beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@functools.cache
def base_folder() -> Path:
    """A Qwen2 in a Hugging Face folder; copy it, never change it."""
    import tempfile

    return save_model(text_model(), Path(tempfile.mkdtemp(prefix="field-")) / "base")


def copy_of_base(folder: Path) -> Path:
    return Path(shutil.copytree(base_folder(), folder))


def change_json(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; a key whose value is ... is taken out."""
    held = json.loads(path.read_text()) if path.is_file() else {}
    held.update(values)
    path.write_text(json.dumps({key: value for key, value in held.items() if value is not ...}))


def save_as_verl_shards(state: dict[str, torch.Tensor], folder: Path, ranks: int = 2) -> None:
    """The state dict in the shape of verl's files: plain tensors, as FSDP1 saves them for ranks that hold all."""
    folder.mkdir(parents=True, exist_ok=True)
    for rank in range(ranks):
        torch.save({name: tensor.clone() for name, tensor in state.items()}, shard(folder, rank, ranks))
    (folder / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 1, "world_size": ranks}))


def shard(folder: Path, rank: int, ranks: int = 2) -> Path:
    return folder / f"model_world_size_{ranks}_rank_{rank}.pt"


def vision_model(family: str) -> Any:
    """A tiny vision-language model of a family, as AutoModelForImageTextToText builds it."""
    config = VISION[family]()
    return wild(transformers.AutoModelForImageTextToText.from_config(config))


def _text(**more: Any) -> dict[str, Any]:
    return {**SMALL, **SPECIAL, "tie_word_embeddings": False, **more}


def _clip_like(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        **more,
    }


def _qwen_vision(**more: Any) -> dict[str, Any]:
    return {
        "depth": 1,
        "embed_dim": 16,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 24,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [0],
        "deepstack_visual_indexes": [],
        **more,
    }


VISION = {
    "qwen2_vl": lambda: transformers.Qwen2VLConfig(
        text_config=_text(**mrope()),
        vision_config=_qwen_vision(),
        tie_word_embeddings=False,
    ),
    "qwen2_5_vl": lambda: transformers.Qwen2_5_VLConfig(
        text_config=_text(**mrope()),
        vision_config=_qwen_vision(),
        tie_word_embeddings=False,
    ),
    "qwen3_vl": lambda: transformers.Qwen3VLConfig(
        text_config=_text(head_dim=8, **mrope(mrope_interleaved=True)),
        vision_config=_qwen_vision(),
        tie_word_embeddings=False,
    ),
    "qwen3_5": lambda: transformers.Qwen3_5Config(
        text_config=_text(
            head_dim=8,
            num_hidden_layers=4,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        ),
        vision_config=_qwen_vision(),
        tie_word_embeddings=False,
    ),
    "gemma3": lambda: transformers.Gemma3Config(
        text_config=_text(head_dim=8, query_pre_attn_scalar=8, sliding_window=16, tie_word_embeddings=True),
        vision_config=_clip_like(),
        mm_tokens_per_image=4,
    ),
    "mistral3": lambda: transformers.Mistral3Config(
        text_config={"model_type": "mistral", **_text(head_dim=8)},
        vision_config={"model_type": "pixtral", **_clip_like(head_dim=8)},
        tie_word_embeddings=False,
    ),
}
# Where older transformers kept the text part of these: (today's beginning of a name, the older one).
OLDER_NAMES = {
    "qwen2_vl": (("model.language_model.", "model."), ("model.visual.", "visual.")),
    "gemma3": (
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ),
    "mistral3": (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ),
}
ROWS = VOCABULARY


@torch.inference_mode()
def greedy(model: Any, ids: tuple[int, ...], count: int = 10) -> list[int]:
    """The next tokens, each from a forward pass over everything before it."""
    reply: list[int] = []
    for _ in range(count):
        logits = model(input_ids=torch.tensor([[*ids, *reply]]), use_cache=False).logits
        reply.append(int(logits[0, -1].argmax()))
    return reply
