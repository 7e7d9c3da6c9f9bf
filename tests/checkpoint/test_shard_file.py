"""One shard file: every pickle family is read bit-equal, and nothing in a file runs."""

from __future__ import annotations

import io
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from dist.checkpoint.boxes import Box, local_box
from dist.checkpoint.read import TensorReader
from dist.checkpoint.shard_file import read_shard_file
from dist.checkpoint.shards import read_shards
from dist.checkpoint.torch_archive import Archive
from dist.checkpoint.verify import check_sums
from dist.errors import CheckpointError

DATA = Path(__file__).parents[1] / "data"
FAMILIES = {"torch-2.4": "2.4", "torch-2.8": "2.5-2.9", "torch-2.12": "2.10-2.12"}
FIXTURES = sorted(path for version in FAMILIES for path in (DATA / version).iterdir())


def load(reader: TensorReader, source, box: Box, dtype: torch.dtype) -> torch.Tensor:
    target = torch.full(box.sizes, 7, dtype=dtype)
    reader.read_into(source, box, target)
    return target


@pytest.mark.parametrize("folder", FIXTURES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_files_of_older_torch_are_read_bit_equal_by_any_number_of_ranks(folder):
    reference = torch.load(folder / "ref.pt", weights_only=True)
    shards = read_shards(folder / "global_step_1" / "actor")
    assert shards.tensors.keys() == reference.keys()
    with TensorReader() as reader:
        for name, expected in reference.items():
            source = shards.tensors[name]
            assert source.shape == tuple(expected.shape)
            for parts in (1, 2, 3, 4):
                for dim in range(expected.ndim):
                    for part in range(parts):
                        box = local_box(source.shape, [(dim, parts, part)])
                        share = expected.narrow(dim, box.offsets[dim], box.sizes[dim])
                        assert torch.equal(load(reader, source, box, expected.dtype), share), (name, parts, part)
            half = load(reader, source, Box.whole(source.shape), torch.bfloat16)
            assert torch.equal(half, expected.to(torch.bfloat16))


@pytest.mark.parametrize("version", FAMILIES)
def test_the_torch_family_and_the_mesh_are_reported(version):
    sharded = read_shards(DATA / version / "fsdp1_w2" / "global_step_1" / "actor")
    assert (sharded.torch_family, sharded.layout) == (FAMILIES[version], "FSDP1")
    hybrid = read_shards(DATA / version / "fsdp1_hsdp_w4" / "global_step_1" / "actor")
    assert (hybrid.torch_family, hybrid.layout) == (FAMILIES[version], "FSDP1, HSDP 2 x 2")
    without = read_shards(DATA / version / "fsdp1_nomesh_w2" / "global_step_1" / "actor")
    assert (without.torch_family, without.layout) == (None, "FSDP1 without mesh")


def test_replicas_are_read_from_one_file_each():
    shards = read_shards(DATA / "torch-2.12" / "fsdp1_hsdp_w4" / "global_step_1" / "actor")
    for source in shards.tensors.values():
        assert sum(piece.box.elements for piece in source.pieces) == source.elements


def test_no_byte_is_read_twice(tmp_path):
    torch.save({"a": torch.arange(1000.0).reshape(10, 100)}, tmp_path / "model_world_size_1_rank_0.pt")
    source = read_shards(tmp_path).tensors["a"]
    with TensorReader() as reader:
        load(reader, source, Box((2, 0), (3, 100)), torch.float32)
        assert reader.bytes_read == 3 * 100 * 4
        load(reader, source, Box((0, 0), (10, 100)), torch.bfloat16)
        assert reader.bytes_read == (3 + 10) * 100 * 4


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8]
)
def test_every_dtype_comes_back(tmp_path, dtype):
    tensor = (torch.arange(30) % 2).reshape(5, 6).to(dtype)
    torch.save({"a": tensor, "turned": tensor.T, "scalar": tensor[1, 1], "none": tensor[:0]}, tmp_path / "x.pt")
    index = read_shard_file(tmp_path / "x.pt", "Shard 0 of 1")
    with TensorReader() as reader:
        for name, expected in {"a": tensor, "turned": tensor.T, "scalar": tensor[1, 1], "none": tensor[:0]}.items():
            source = index.tensors[name]
            assert torch.equal(load(reader, source, Box.whole(source.shape), dtype), expected)


def test_a_large_tensor_is_cast_within_the_scratch(tmp_path):
    tensor = torch.arange(3_000_000, dtype=torch.float32).reshape(1500, 2000)
    torch.save({"a": tensor}, tmp_path / "x.pt")
    source = read_shard_file(tmp_path / "x.pt", "Shard 0 of 1").tensors["a"]
    with TensorReader() as reader:
        assert torch.equal(load(reader, source, Box.whole((1500, 2000)), torch.bfloat16), tensor.bfloat16())
        columns = load(reader, source, Box((0, 700), (1500, 900)), torch.float32)
    assert torch.equal(columns, tensor[:, 700:1600])


def with_pickle(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/byteorder", "little")
    return path


class Runs:
    """Pickles to a call of os.system; a hostile file."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("wrap", [lambda it: it, lambda it: OrderedDict(a=it), lambda it: {"a": [it]}])
def test_a_pickle_that_calls_a_program_does_nothing(tmp_path, wrap):
    touched = tmp_path / "touched"
    path = with_pickle(tmp_path / "x.pt", pickle.dumps(wrap(Runs(f"touch {touched}"))))
    with pytest.raises(CheckpointError):
        read_shard_file(path, "Shard 0 of 1")
    assert not touched.exists()


@pytest.mark.parametrize(
    "source",
    [
        b'cbuiltins\neval\n(S\'open("%s", "w")\'\ntR.',
        b"cbuiltins\ngetattr\n(cos\nS'system'\ntR(S'touch %s'\ntR.",
        b"(S'touch %s'\nios\nsystem\n.",
        b"ctorch._utils\n_rebuild_from_type_v2\n(cos\nsystem\nN(S'touch %s'\ntNtR.",
    ],
)
def test_handwritten_pickles_do_nothing(tmp_path, source):
    touched = tmp_path / "touched"
    path = with_pickle(tmp_path / "x.pt", source % str(touched).encode())
    with pytest.raises(CheckpointError):
        read_shard_file(path, "Shard 0 of 1")
    assert not touched.exists()


def test_a_file_that_lies_about_its_storage_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(4)}, buffer)
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(tmp_path / "x.pt", "w") as changed:
        for entry in archive.infolist():
            data = archive.read(entry)
            changed.writestr(entry.filename, data[:8] if entry.filename.endswith("data/0") else data)
    message = (
        "Its index is not one that torch.save writes for model weights (a needs 16 bytes of an entry that has 8)."
    )
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_shard_file(tmp_path / "x.pt", "Shard 0 of 1")


def test_a_flipped_bit_in_the_weights_is_found_by_its_checksum(tmp_path):
    path = tmp_path / "model_world_size_1_rank_0.pt"
    torch.save({"a": torch.zeros(1000)}, path)
    blocks: list[bytes] = []
    assert check_sums(Archive(path), "Shard 0 of 1", blocks.append)
    assert 4000 < sum(map(len, blocks)) < path.stat().st_size
    start = read_shard_file(path, "Shard 0 of 1").tensors["a"].pieces[0].start
    data = bytearray(path.read_bytes())
    data[start + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        check_sums(Archive(path), "Shard 0 of 1")
    assert str(caught.value) == (
        f"Shard 0 of 1 is damaged: {path}. Its bytes do not match their checksums (Bad CRC-32 for file "
        f"'{path.stem}/data/0'). Copy the file again from where training wrote it."
    )


def test_describing_a_checkpoint_needs_no_torch():
    folder = DATA / "torch-2.12" / "fsdp1_w2" / "global_step_1" / "actor"
    code = (
        "import sys, pathlib; from dist.checkpoint.shards import read_shards; import dist.checkpoint.open;"
        f"print(len(read_shards(pathlib.Path({str(folder)!r})).tensors), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=DATA.parent.parent, check=True
    )
    assert done.stdout.split() == ["14", "False"]
