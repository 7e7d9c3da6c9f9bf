"""What rank 0 says after a pass, packed for one small broadcast. Knows no model and no group."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dist.protocol import Control
from dist.settings import GenerationSettings

Poll = Callable[[], Control]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What rank 0 says after a pass: its tokens, whether to stop, the settings of the next block."""

    token_ids: list[int]
    settings: GenerationSettings
    cancel: bool

    @classmethod
    def of(cls, poll: Poll | None, settings: GenerationSettings, token_ids: list[int]) -> Verdict:
        control = poll() if poll is not None else Control(settings=settings)
        return cls(token_ids=token_ids, settings=control.settings, cancel=control.cancel)

    def packed(self) -> torch.Tensor:
        """int64 [HEADER + tokens]; floats travel as their bits."""
        s = self.settings
        header = struct.pack(
            "<qqqqqqqdd",
            self.cancel,
            s.add_eos_length,
            -1 if s.refine_iter == "auto" else s.refine_iter,
            s.max_new_tokens,
            s.max_length,
            s.top_k,
            -1 if s.seed is None else s.seed,
            s.temperature,
            s.top_p,
        )
        numbers = [*struct.unpack("<9q", header), s.decoder == "plain", *self.token_ids]
        return torch.tensor(numbers, dtype=torch.int64)

    @classmethod
    def unpacked(cls, packed: torch.Tensor, tokens: int) -> Verdict:
        numbers = packed.tolist()
        header, token_ids = numbers[: len(numbers) - tokens], numbers[len(numbers) - tokens :]
        *bits, plain = header
        cancel, length, rounds, new, total, top_k, seed, temperature, top_p = struct.unpack(
            "<qqqqqqqdd", struct.pack("<9q", *bits)
        )
        settings = GenerationSettings(
            add_eos_length=length,
            refine_iter="auto" if rounds == -1 else rounds,
            max_new_tokens=new,
            max_length=total,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=None if seed == -1 else seed,
            decoder="plain" if plain else "cached",
        )
        return cls(token_ids=token_ids, settings=settings, cancel=bool(cancel))
