"""Which token a row of logits chooses: greedily, or at random by a noise that is a pure function.

The noise depends on (seed, logical position, token id) alone, so sampling is a deterministic map like argmax:
the same whatever the iteration, the block size, the device or the number of ranks (Gumbel-max trick).

Shape suffixes: N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dist.model.head import Head, highest
from dist.settings import SAMPLING, GenerationSettings

_MASK_32 = 0xFFFFFFFF
_MASK_64 = 0xFFFFFFFFFFFFFFFF


def sampling_of(settings: GenerationSettings) -> tuple[float, ...]:
    """What `choose` reads of the settings: rows with the same can be chosen for together."""
    return (*(getattr(settings, name) for name in SAMPLING), settings.seed or 0) if settings.samples else ()


def choose(
    logits_NV: torch.Tensor, positions: Sequence[int], settings: GenerationSettings, head: Head
) -> torch.Tensor:
    """The chosen token of every row, int64 [N], on the logits' device; ties go to the lowest id.

    `logits_NV` are those of `head`'s tokens, `positions` the logical positions of the tokens to choose. A row that
    holds a NaN gives NOT_A_NUMBER. Only top-k and top-p need the whole vocabulary in one place.
    """
    if not settings.samples:
        return head.greedy(logits_NV)
    assert settings.seed is not None
    scores_NV = logits_NV.float() / settings.temperature
    filtered = settings.top_k > 0 or settings.top_p < 1.0
    if filtered:
        scores_NV = keep_likely(head.whole(scores_NV), settings.top_k, settings.top_p)
    noise_NV = gumbel_noise(
        settings.seed,
        positions,
        scores_NV.shape[-1],
        first_token=0 if filtered else head.first_token,
        device=scores_NV.device,
    )
    return highest(scores_NV + noise_NV) if filtered else head.greedy(scores_NV + noise_NV)


def sure_of(logits_NV: torch.Tensor, chosen: Sequence[int], least: float, head: Head) -> list[bool]:
    """Which choices have at least the probability `least`, before temperature and filters. Collective."""
    logits_NV = head.whole(logits_NV).float()
    id_N1 = torch.tensor(chosen, device=logits_NV.device).clamp(min=0).unsqueeze(-1)
    share_N = (logits_NV.gather(-1, id_N1).squeeze(-1) - logits_NV.logsumexp(dim=-1)).exp()
    sure: list[bool] = (share_N >= least).tolist()
    return sure


def keep_likely(scores_NV: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """The scores with all but the `top_k` highest, then all outside the nucleus `top_p`, at -inf.

    The nucleus is the smallest set of most likely tokens whose probability reaches `top_p`.
    """
    if 0 < top_k < scores_NV.shape[-1]:
        least_N1 = scores_NV.topk(top_k, dim=-1).values[:, -1:]
        scores_NV = scores_NV.masked_fill(scores_NV < least_N1, -torch.inf)
    if top_p < 1.0:
        sorted_NV, order_NV = scores_NV.sort(dim=-1, descending=True, stable=True)
        share_NV = sorted_NV.softmax(dim=-1)
        outside_NV = share_NV.cumsum(dim=-1) - share_NV >= top_p
        outside_NV = torch.zeros_like(outside_NV).scatter(-1, order_NV, outside_NV)
        scores_NV = scores_NV.masked_fill(outside_NV, -torch.inf)
    return scores_NV


def gumbel_noise(
    seed: int, positions: Sequence[int], vocabulary: int, *, first_token: int = 0, device: torch.device
) -> torch.Tensor:
    """Standard Gumbel noise, float32 [N, V], for tokens first_token .. first_token + vocabulary - 1."""
    keys = [_mix64(_mix64(seed) ^ position) for position in positions]
    low_N1 = torch.tensor([key & _MASK_32 for key in keys], device=device).unsqueeze(-1)
    high_N1 = torch.tensor([key >> 32 for key in keys], device=device).unsqueeze(-1)
    token_V = torch.arange(first_token, first_token + vocabulary, dtype=torch.int64, device=device)
    hash_NV = _mix32(_mix32(token_V.unsqueeze(0) ^ low_N1) ^ high_N1)
    uniform_NV = (hash_NV.float() + 0.5) * 2.0**-32
    # log1p keeps the resolution where it counts: small values are the winners.
    return -torch.log(-torch.log1p(-uniform_NV))


def _mix32(x: torch.Tensor) -> torch.Tensor:
    """MurmurHash3's 32-bit finaliser on int64 holding 32-bit values (products wrap, the low bits are right)."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK_32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK_32
    return x ^ (x >> 16)


def _mix64(x: int) -> int:
    """SplitMix64's finaliser."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK_64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return x ^ (x >> 31)
