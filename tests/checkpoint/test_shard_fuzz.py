"""Random damage to shard files ends in a clear error or in the right weights, never in anything else."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dist.checkpoint.boxes import Box
from dist.checkpoint.open import open_checkpoint
from dist.checkpoint.read import TensorReader
from dist.checkpoint.verify import verify
from dist.errors import CheckpointError

TRIALS = 167


def cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 1, 1, 8])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def flip_in_directory(data: bytearray, chance: random.Random) -> None:
    """The end of the file is the zip directory, where a flip does the most."""
    data[-chance.randrange(1, min(4000, len(data)))] ^= 1 << chance.randrange(8)


def swap(data: bytearray, chance: random.Random) -> None:
    length = chance.choice([1, 64, 4096])
    a, b = (chance.randrange(len(data) - length) for _ in range(2))
    data[a : a + length], data[b : b + length] = data[b : b + length], data[a : a + length]


def blank(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    data[start : start + 4096] = bytes(len(data[start : start + 4096]))


def append(data: bytearray, chance: random.Random) -> None:
    data.extend(chance.randbytes(chance.choice([1, 100, 70_000])))


DAMAGES = [cut, flip, flip, flip_in_directory, flip_in_directory, swap, blank, append]


def damage(folder: Path, pristine: Path, chance: random.Random) -> None:
    """Damage one shard, or exchange shards or parts of shards between ranks and layouts."""
    paths = sorted(folder.glob("model_*.pt"))
    victim = chance.choice(paths)
    if chance.random() < 0.1:
        other = chance.choice(paths)
        shutil.copy(pristine / other.name, victim)
        return
    data = bytearray(victim.read_bytes())
    chance.choice(DAMAGES)(data, chance)
    victim.write_bytes(data)


@pytest.mark.slow
@pytest.mark.drawn
@pytest.mark.parametrize("layout", ["fsdp1", "fsdp1_nomesh", "fsdp2"])
def test_damage_is_an_error_or_does_no_harm(tiny_checkpoint, tmp_path, layout):
    root = tiny_checkpoint(layout, 2)
    expected = load_file(root / "reference" / "model.safetensors")
    pristine = open_checkpoint(root).path
    refused = 0
    for seed in range(TRIALS):
        folder = tmp_path / str(seed)
        shutil.copytree(pristine, folder)
        damage(folder, pristine, random.Random(f"{layout} {seed}"))
        refused += not loads_right(folder, expected, seed)
        shutil.rmtree(folder)
    assert TRIALS // 3 < refused < TRIALS


def loads_right(folder: Path, expected: dict[str, torch.Tensor], seed: int) -> bool:
    """True if all weights are right, False if the folder is refused; anything else fails."""
    try:
        checkpoint = open_checkpoint(folder)
        verify(checkpoint)
        with TensorReader() as reader:
            for name, weight in expected.items():
                source = checkpoint.tensors[name]
                target = torch.empty(weight.shape)
                reader.read_into(source, Box.whole(source.shape), target)
                assert torch.equal(target, weight), f"wrong weights in {name}, seed {seed}"
    except CheckpointError as error:
        assert str(folder) in str(error), f"seed {seed}: {error}"
        return False
    return True
