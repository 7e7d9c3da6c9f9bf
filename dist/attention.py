"""Attention over fixed storage of keys and values, as one of transformers' attention functions. Knows no decoding.

The new tokens' keys and values lie in the storage already, from slot `start` on; a token sees the slots up to its
own, whatever the slots behind hold. `start` lies on the device, so that the same kernels serve every length.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

NAME = "fixed_storage"


@contextmanager
def fixed_storage_attention(module: Any) -> Iterator[None]:
    """While it lasts, the model's layers call `attend`; its forward must be given `block_start`."""
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
    block_start: torch.Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """[1, heads, L, size] over the storage [1, key heads, slots, size]; returns [1, L, heads, size].

    Raises NotImplementedError for models whose attention has sinks or heads of different sizes.
    """
    if s_aux is not None or key.shape != value.shape or attention_mask is not None:
        raise NotImplementedError("attention with sinks, with unequal heads or with a mask of its own")
    attention = reference_attention
    if query.is_cuda:
        from dist.attention_kernels import split_kv_attention as attention
    result_LHD = attention(
        query[0],
        key[0],
        value[0],
        block_start,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window or 0,
        softcap=softcap or 0.0,
    )
    return result_LHD.unsqueeze(0), None


def reference_attention(
    query_HLD: torch.Tensor,
    key_KCD: torch.Tensor,
    value_KCD: torch.Tensor,
    start: torch.Tensor,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> torch.Tensor:
    """The same as the kernels' split_kv_attention, in plain torch; returns [L, H, D]."""
    heads, rows, size = query_HLD.shape
    key_heads = key_KCD.shape[0]
    used = int(start) + rows
    own_L1 = torch.arange(int(start), used, device=query_HLD.device).unsqueeze(-1)
    slot_U = torch.arange(used, device=query_HLD.device)
    seen_LU = slot_U <= own_L1
    if window:
        seen_LU &= slot_U > own_L1 - window
    folded = query_HLD.reshape(key_heads, heads // key_heads * rows, size)
    exact = torch.promote_types(query_HLD.dtype, torch.float32)
    scores = (folded @ key_KCD[:, :used].transpose(1, 2)).to(exact) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.view(heads, rows, used).masked_fill(~seen_LU, -torch.inf)
    shares = scores.softmax(dim=-1).to(value_KCD.dtype).view(key_heads, -1, used)
    return (shares @ value_KCD[:, :used]).view(heads, rows, size).transpose(0, 1)
