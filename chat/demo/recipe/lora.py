"""The adapter in training: LoRA's factors for all layers of a kind in one tensor. Knows no losses and no data."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from chat.demo.adapter import read_adapter, write_adapter
from chat.demo.recipe.llama import LINEARS, Weights


class Adapter(torch.nn.Module):
    """B [layers, out, rank] and A [layers, rank, in] for each kind of linear layer; B starts at zero."""

    def __init__(self, base: Weights, rank: int) -> None:
        super().__init__()
        self.left = torch.nn.ParameterDict()
        self.right = torch.nn.ParameterDict()
        for name in LINEARS:
            layers, outs, ins = base[name].shape
            device = base[name].device
            right = (torch.rand(layers, rank, ins, device=device) * 2 - 1) / math.sqrt(ins)
            self.left[name] = torch.nn.Parameter(torch.zeros(layers, outs, rank, device=device))
            self.right[name] = torch.nn.Parameter(right)

    @torch.no_grad()
    def start_from(self, file: Path, *, unscaled: bool = False) -> None:
        """Take over an adapter of this rank or a smaller one; the ranks that it lacks add nothing yet. `unscaled`:
        as it was when it had been trained, whatever its lora_alpha is."""
        pairs, alpha = read_adapter(file)
        for name, part in LINEARS.items():
            for index, (left, right) in enumerate(zip(self.left[name], self.right[name])):
                had_left, had_right = pairs[f"model.layers.{index}.{part}.{name}.weight"]
                rank = len(had_right)
                left[:, :rank] = had_left.to(left) * (1.0 if unscaled else alpha / rank)
                right[:rank] = had_right.to(right)

    @torch.no_grad()
    def go_back(self, start: Adapter, keep: float) -> None:
        """Keep so much of the way from `start`: the factors are those between its and these."""
        for part, former in zip(self.parameters(), start.parameters(), strict=True):
            part.lerp_(former, 1 - keep)

    def merged(self, base: Weights) -> Weights:
        """The base's weights with B A added, rounded as the merged checkpoint will be."""
        changed = {
            name: (base[name].float() + self.left[name] @ self.right[name]).to(base[name].dtype) for name in LINEARS
        }
        return base | changed

    def save(self, file: Path) -> None:
        """Write the adapter file; lora_alpha is the rank."""
        pairs = {}
        for name, part in LINEARS.items():
            for index, (left, right) in enumerate(zip(self.left[name], self.right[name])):
                pairs[f"model.layers.{index}.{part}.{name}.weight"] = (left, right)
        write_adapter(file, pairs, float(self.right["q_proj"].shape[1]))
