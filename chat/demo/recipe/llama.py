"""A Llama forward over stacked weights, for training and batched decoding. Knows no tokenizer, no files' layout.

All layers' weights of a kind are one tensor, so that an adapter is merged in seven matrix products, and
keys are masked by an explicit additive mask, so that any packing can be trained. `test_demo_training`
holds it to transformers' own model.

Shapes: B rows, T tokens, D hidden width, L layers, S cache slots, G query heads a key-value head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LINEARS = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}
NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a forward needs to know of the model beside its weights."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float


# Stacked weights: "embed" [vocabulary, D], "norm" [D], each of NORMS [L, D], each of LINEARS [L, out, in].
Weights = dict[str, Tensor]
# One layer's weights, NORMS then LINEARS, in that order.
LayerWeights = list[Tensor]
LayerFunction = Callable[..., Tensor]


@dataclass(slots=True, kw_only=True)
class KeyValues:
    """Static storage, keys and values [L, B, key-value heads, S, head_dim] each."""

    keys: Tensor
    values: Tensor


def shape_of(config: Any) -> Shape:
    """The shape from a transformers Llama configuration, of version 4 or 5."""
    rope = getattr(config, "rope_parameters", None) or {}
    theta = rope.get("rope_theta") or config.rope_theta
    return Shape(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        norm_eps=config.rms_norm_eps,
        rope_theta=float(theta),
    )


def stack_weights(state: Mapping[str, Tensor], layers: int) -> Weights:
    """Stacked weights from a state dict by transformers' names. The output layer is the tied embedding."""

    def stacked(name: str) -> Tensor:
        return torch.stack([state[f"model.layers.{index}.{name}.weight"] for index in range(layers)])

    weights = {"embed": state["model.embed_tokens.weight"], "norm": state["model.norm.weight"]}
    weights |= {name: stacked(name) for name in NORMS}
    return weights | {name: stacked(f"{part}.{name}") for name, part in LINEARS.items()}


def unstack_layers(weights: Weights) -> list[LayerWeights]:
    """Per layer, its weights as views."""
    return [list(parts) for parts in zip(*(weights[name].unbind(0) for name in (*NORMS, *LINEARS)))]


def rotary(positions_BT: Tensor, shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, 1, T, head_dim]."""
    powers = torch.arange(0, shape.head_dim, 2, device=positions_BT.device).float() / shape.head_dim
    angles = positions_BT[:, None, :, None].float() * shape.rope_theta**-powers
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def run_layer(
    x_BTD: Tensor,
    weights: LayerWeights,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
    shape: Shape,
    store: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """One decoder layer. `mask` [B, 1, G * T, keys] is added to the scores; the rows of one key-value head's
    G query heads stand one after the other. `store` = keys, values [B, key-value heads, S, head_dim] and the
    slots [B, T] to write; the queries then see all S slots, as far as `mask` lets them."""
    norm_in, norm_mid, w_q, w_k, w_v, w_o, w_gate, w_up, w_down = weights
    rows, length, _ = x_BTD.shape

    def split(x: Tensor, heads: int) -> Tensor:
        return x.view(rows, length, heads, shape.head_dim).transpose(1, 2)

    x = _norm(x_BTD, norm_in, shape.norm_eps)
    queries = _rotate(split(functional.linear(x, w_q), shape.heads), cos, sin)
    keys = _rotate(split(functional.linear(x, w_k), shape.kv_heads), cos, sin)
    values = split(functional.linear(x, w_v), shape.kv_heads)
    if store is not None:
        places = store[2][:, None, :, None].expand_as(keys)
        store[0].scatter_(2, places, keys)
        store[1].scatter_(2, places, values)
        keys, values = store[0], store[1]
    queries = queries.reshape(rows, shape.kv_heads, -1, shape.head_dim)
    mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    mixed = mixed.reshape(rows, shape.heads, length, shape.head_dim).transpose(1, 2).reshape(rows, length, -1)
    x_BTD = x_BTD + functional.linear(mixed, w_o)
    x = _norm(x_BTD, norm_mid, shape.norm_eps)
    inner = functional.silu(functional.linear(x, w_gate)) * functional.linear(x, w_up)
    return x_BTD + functional.linear(inner, w_down)


def additive_mask(allowed: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
    """[B, T, keys] booleans -> the mask that `run_layer` adds, [B, 1, G * T, keys]."""
    groups = shape.heads // shape.kv_heads
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    mask.masked_fill_(~allowed, torch.finfo(dtype).min)
    return mask.repeat(1, groups, 1)[:, None]


def hidden_states(
    weights: Weights,
    layers: list[LayerWeights],
    shape: Shape,
    tokens_BT: Tensor,
    positions_BT: Tensor,
    allowed: Tensor,
    *,
    store: KeyValues | None = None,
    slots: Tensor | None = None,
    layer_function: LayerFunction = run_layer,
) -> Tensor:
    """Normed last hidden states [B, T, D]; `allowed` [B, T, keys] says which keys each query may see."""
    x = functional.embedding(tokens_BT, weights["embed"])
    cos, sin = rotary(positions_BT, shape, x.dtype)
    mask = additive_mask(allowed, shape, x.dtype)
    for index, layer in enumerate(layers):
        place = None if store is None else (store.keys[index], store.values[index], slots)
        x = layer_function(x, layer, cos, sin, mask, shape, place)
    return _norm(x, weights["norm"], shape.norm_eps)


def load_base(folder: str, device: str, dtype: torch.dtype) -> tuple[Weights, Shape]:
    """Stacked weights and shape of a Hugging Face folder with one `model.safetensors`."""
    from pathlib import Path

    from safetensors.torch import load_file
    from transformers import AutoConfig

    shape = shape_of(AutoConfig.from_pretrained(folder))
    state = {name: value.to(device, dtype) for name, value in load_file(Path(folder) / "model.safetensors").items()}
    return stack_weights(state, shape.layers), shape
