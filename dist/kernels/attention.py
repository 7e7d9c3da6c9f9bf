"""Attention over a static KV cache, as one of transformers' attention functions. Knows no decoding.

A forward's tokens are segments of several sequences, end to end. Their keys and values lie in the storage
already; a token sees its own sequence's slots up to its own, whatever the slots behind hold. What belongs where is
given by a table on the device, so that the same kernels serve every length.

Shape suffixes: T tokens of the forward, S segments, H query heads, K key heads, C stored slots, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

NAME = "fixed_storage"


@dataclass(frozen=True, slots=True)
class Segments:
    """Which tokens of a forward belong together.

    `table_S4`, int64 on the device: for each segment the place of its first token in the forward, its length, how
    many tokens of its sequence come before it, and the slot of its sequence's first token. `longest` is the length
    of the longest one. With `most_keys`, which no sequence exceeds, a GPU gives a token the same bits
    whatever else the forward holds. `masks` are what `reference_attention` makes once for all layers.
    """

    table_S4: torch.Tensor
    longest: int
    most_keys: int | None = None
    masks: dict[tuple[int, int, int], torch.Tensor] = field(default_factory=dict, compare=False, repr=False)


@contextmanager
def fixed_storage_attention(module: Any) -> Iterator[None]:
    """While it lasts, the model's layers call `attend`; its forward must be given `segments`."""
    from transformers import AttentionInterface

    # Without a mask function of this name transformers makes no mask at all.
    AttentionInterface.register(NAME, attend)
    config = module.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    segments: Segments,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """[1, H, T, D] over the storage [1, K, C, D]; returns [1, T, H, D].

    Raises NotImplementedError for models whose attention has sinks or heads of different sizes.
    """
    if s_aux is not None or key.shape != value.shape or attention_mask is not None:
        raise NotImplementedError("attention with sinks, with unequal heads or with a mask of its own")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window, cap = sliding_window or _window_of(module), softcap or 0.0
    q, k, v = query[0], key[0], value[0]
    table_S4, longest, most = segments.table_S4, segments.longest, segments.most_keys
    if query.is_cuda and most is not None:
        from dist.kernels.exact_attention import exact_attention

        result_THD = exact_attention(q, k, v, table_S4, longest, most, scale=scale, window=window, softcap=cap)
    elif query.is_cuda:
        from dist.kernels.split_kv import split_kv_attention

        result_THD = split_kv_attention(q, k, v, table_S4, longest, scale=scale, window=window, softcap=cap)
    else:
        result_THD = reference_attention(q, k, v, segments, scale=scale, window=window, softcap=cap)
    return result_THD.unsqueeze(0), None


def _window_of(module: Any) -> int:
    """The window that a layer's config gives it, 0 for none: some models tell it to their masks only."""
    config = module.config
    kinds = getattr(config, "layer_types", None)
    if kinds and kinds[module.layer_idx] != "sliding_attention":
        return 0
    return getattr(config, "sliding_window", None) or 0


def reference_attention(
    query_HTD: torch.Tensor,
    key_KCD: torch.Tensor,
    value_KCD: torch.Tensor,
    segments: Segments,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> torch.Tensor:
    """The same as the kernels' split_kv_attention, in plain torch, segment by segment; returns [T, H, D]."""
    heads, tokens, size = query_HTD.shape
    group = heads // key_KCD.shape[0]
    result_THD = query_HTD.new_empty((tokens, heads, size))
    for first, length, start, slot in segments.table_S4.tolist():
        mask = segments.masks.get((length, start, window))
        if mask is None:
            mask = segments.masks[length, start, window] = _mask(query_HTD, length, start, window, group)
        keys, values = (storage[:, slot : slot + start + length] for storage in (key_KCD, value_KCD))
        query = query_HTD[:, first : first + length]
        attended = _attend_alone(query, keys, values, mask, scale=scale, softcap=softcap)
        result_THD[first : first + length] = attended.transpose(0, 1)
    return result_THD


def _mask(like: torch.Tensor, rows: int, start: int, window: int, group: int) -> torch.Tensor:
    """What the last `rows` tokens of a sequence see, added to the scores of a `group` of heads; [group * L, U]."""
    slot_U = torch.arange(start + rows, device=like.device)
    own_L1 = slot_U[start:].unsqueeze(-1)
    hidden_LU = slot_U > own_L1
    if window:
        hidden_LU |= slot_U <= own_L1 - window
    return like.new_zeros(hidden_LU.shape).masked_fill_(hidden_LU, -torch.inf).repeat(group, 1)


def _attend_alone(
    query_HLD: torch.Tensor,
    key_KUD: torch.Tensor,
    value_KUD: torch.Tensor,
    mask: torch.Tensor,
    *,
    scale: float,
    softcap: float,
) -> torch.Tensor:
    """The last L tokens of a sequence of U; [H, L, D]."""
    heads, rows, size = query_HLD.shape
    key_heads = key_KUD.shape[0]
    folded = query_HLD.reshape(key_heads, -1, size)
    if not softcap:
        # Four dimensions, or torch takes its slowest way.
        query, key, value = (part.unsqueeze(0) for part in (folded, key_KUD, value_KUD))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        return attended.view(heads, rows, size)
    exact = torch.promote_types(query_HLD.dtype, torch.float32)
    scores = softcap * torch.tanh((folded @ key_KUD.transpose(1, 2)).to(exact) * scale / softcap)
    shares = (scores + mask).softmax(dim=-1).to(value_KUD.dtype)
    return (shares @ value_KUD).view(heads, rows, size)
