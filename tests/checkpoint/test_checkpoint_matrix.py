"""Every kind of checkpoint, saved by 1 to 4 ranks, read by 1 to 4, in every cut: bit-equal. Prints the matrix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import CASES, can_make
from safetensors.torch import load_file

from dist.checkpoint import read
from dist.checkpoint.boxes import Box, local_box
from dist.checkpoint.names import Wanted, match_names
from dist.checkpoint.open import Checkpoint, open_checkpoint
from dist.checkpoint.read import TensorReader

COUNTS = (1, 2, 3, 4)
HYBRID = [layout for layout in CASES if layout.endswith("hsdp")]
LAYOUTS = [layout for layout in CASES if layout not in [*HYBRID, "large"]]
MATRIX = [(layout, world_size) for layout in LAYOUTS for world_size in COUNTS] + [(layout, 4) for layout in HYBRID]


@pytest.fixture(scope="module")
def results(request) -> dict[tuple[str, int], dict[int, bool]]:
    """What was found, printed when all is done."""
    found: dict[tuple[str, int], dict[int, bool]] = {}
    yield found
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{'saved as':<16}{'by W':>6}   " + "".join(f"{f'R={count}':>6}" for count in COUNTS))
        for (layout, world_size), row in found.items():
            marks = "".join(f"{'pass' if row.get(count) else 'FAIL':>6}" for count in COUNTS)
            print(f"{layout:<16}{world_size:>6}   {marks}")


@pytest.mark.long
@pytest.mark.parametrize(("layout", "world_size"), MATRIX)
def test_any_number_of_ranks_reads_what_any_number_saved(tiny_checkpoint, results, layout, world_size):
    if not can_make(layout):
        pytest.skip("the packages installed here cannot write it")
    root = tiny_checkpoint(layout, world_size)
    checkpoint, expected = open_checkpoint(root), weights(root, layout)
    row = results.setdefault((layout, world_size), {})
    for count in COUNTS:
        row[count] = False
        assert differing(checkpoint, expected, count) == []
        row[count] = True


@pytest.mark.parametrize("part_bytes", [1, 100, 1 << 20])
def test_parts_of_a_box_make_up_the_box(tiny_checkpoint, monkeypatch, part_bytes):
    """As several threads read it onto a GPU."""
    monkeypatch.setattr(read, "PART_BYTES", part_bytes)
    checkpoint = open_checkpoint(tiny_checkpoint("fsdp2", 3))
    with TensorReader() as reader:
        for tensor in checkpoint.tensors.values():
            box = local_box(tensor.shape, [(0, 2, 1)]) if tensor.shape else Box((), ())
            dtype = getattr(torch, tensor.dtype)
            whole, parts = torch.full(box.sizes, 7, dtype=dtype), torch.full(box.sizes, 7, dtype=dtype)
            reader.read_into(tensor, box, whole)
            found = list(read._parts((tensor, box, parts)))
            for job in found:
                reader.read_into(*job)
            assert torch.equal(whole, parts)
            assert part_bytes != 1 or not box.sizes or len(found) == max(1, box.sizes[0])


def weights(root: Path, layout: str) -> dict[str, torch.Tensor]:
    if layout.endswith("_lora"):
        from test_checkpoint_adapters import expected

        return expected(root)
    return load_file(root / "reference" / "model.safetensors")


def differing(checkpoint: Checkpoint, expected: dict[str, torch.Tensor], count: int) -> list[str]:
    """Names and dimensions whose shares, read by `count` ranks, do not make up what was saved."""
    shapes = {name: tuple(weight.shape) for name, weight in expected.items()}
    ties = {"lm_head.weight": "model.embed_tokens.weight"} if "lm_head.weight" not in shapes else {}
    wanted = Wanted(shapes=shapes, tied=ties, file=Path("config.json"))
    sources = match_names(checkpoint.tensors, wanted).sources
    wrong = []
    with TensorReader() as reader:
        for name, weight in expected.items():
            for dim in range(weight.ndim):
                for rank in range(count):
                    box = local_box(weight.shape, [(dim, count, rank)])
                    share = torch.full(box.sizes, 7, dtype=weight.dtype)
                    reader.read_into(sources[name], box, share)
                    if not torch.equal(share, weight.narrow(dim, box.offsets[dim], box.sizes[dim])):
                        wrong.append(f"{name}, dimension {dim}, rank {rank} of {count}")
    return wrong
