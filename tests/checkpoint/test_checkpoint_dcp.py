"""torch's distributed checkpoints, as torch writes them on two ranks."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import rank_environment, torchrun
from safetensors.torch import load_file
from test_shard_fuzz import DAMAGES, TRIALS, loads_right

from dist.checkpoint.__main__ import main
from dist.checkpoint.boxes import Box, local_box
from dist.checkpoint.open import open_checkpoint
from dist.checkpoint.read import TensorReader
from dist.checkpoint.torch_archive import Archive
from dist.checkpoint.verify import verify
from dist.errors import CheckpointError

WRITE = """
import os, sys
import torch, torch.distributed as torch_dist, torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

torch_dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
weights = load_file(sys.argv[1] + "/model.safetensors")
model = {name: distribute_tensor(t, mesh, [Shard(0) if t.ndim > 1 else Replicate()]) for name, t in weights.items()}
optimizer = {"state": {"model.embed_tokens.weight": {"step": torch.tensor(3.0)}}}
state = {"model": model, "optimizer": optimizer, "lr": 3}
dcp.save(state, checkpoint_id=sys.argv[2])
sys.stdout.flush()
os._exit(0)
"""


@pytest.fixture(scope="module")
def written(tiny_checkpoint, tmp_path_factory) -> Path:
    """A folder with config and tokenizer, its weights in a distributed checkpoint as accelerate lays them out."""
    reference = tiny_checkpoint("fsdp1", 2) / "reference"
    folder = tmp_path_factory.mktemp("dcp") / "model"
    shutil.copytree(reference, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    script = folder.parent / "write.py"
    script.write_text(WRITE)
    command = torchrun(2, str(script), str(reference), str(folder / "pytorch_model_fsdp_0"))
    done = subprocess.run(command, env=rank_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "model")


@pytest.mark.parametrize("place", [".", "pytorch_model_fsdp_0"])
def test_a_distributed_checkpoint_is_read_bit_equal(written, tiny_checkpoint, place):
    expected = load_file(tiny_checkpoint("fsdp1", 2) / "reference" / "model.safetensors")
    checkpoint = open_checkpoint(written / place)
    assert (checkpoint.layout, checkpoint.parameters) == ("DCP", 70224)
    assert checkpoint.tensors.keys() == expected.keys()
    with TensorReader() as reader:
        for name, weight in expected.items():
            for parts in (1, 3):
                for part in range(parts):
                    box: Box = local_box(weight.shape, [(0, parts, part)])
                    target = torch.empty(box.sizes)
                    reader.read_into(checkpoint.tensors[name], box, target)
                    assert torch.equal(target, weight.narrow(0, box.offsets[0], box.sizes[0]))


def test_a_missing_file_is_named(folder):
    path = folder / "pytorch_model_fsdp_0" / "__1_0.distcp"
    path.unlink()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert str(caught.value) == (
        f"The distributed checkpoint is incomplete: {path.parent}. {path}: No such file or directory. "
        "Copy the folder again from where training wrote it."
    )


def test_a_file_cut_short_is_named(folder):
    path = folder / "pytorch_model_fsdp_0" / "__0_0.distcp"
    cut = items(folder, path)[-1]
    path.write_bytes(path.read_bytes()[: cut.start + 500])
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert str(caught.value) == (
        f"The distributed checkpoint is damaged: {path}. {cut.holds} is not at byte {cut.start:,} of it, where "
        ".metadata says (File is not a zip file). Copy the folder again from where training wrote it."
    )


def items(folder: Path, path: Path) -> list[Archive]:
    """What the model has in one file, in the order of the file."""
    return [item for item in open_checkpoint(folder).archives if item.path == path]


def test_every_byte_of_the_models_items_is_verified(folder, capsys):
    checkpoint = open_checkpoint(folder)
    total = sum(item.length for item in checkpoint.archives)
    shown: list[tuple[int, int]] = []
    verified = verify(checkpoint, lambda *counts: shown.append(counts))
    rest = sum(path.stat().st_size for path in checkpoint.files) - total
    assert len(checkpoint.files) == 2 < len(checkpoint.archives)
    # The optimizer's counter and the learning rate lie beside the weights.
    assert 0 < rest < 5000
    assert verified.words == (
        f"every byte of the {len(checkpoint.archives)} items of the model in 2 files matches its CRC-32; "
        f"{rest:,} bytes beside them hold no weights of the model and were passed over"
    )
    assert shown == sorted(shown)
    assert shown[-1] == (total, total)
    assert main([str(folder), "--verify"]) == 0
    assert str(verified) in capsys.readouterr().out


def test_a_flipped_byte_in_an_item_is_found_and_named(folder, capsys):
    path = folder / "pytorch_model_fsdp_0" / "__1_0.distcp"
    piece = open_checkpoint(folder).tensors["model.layers.1.mlp.up_proj.weight"].pieces[1]
    assert piece.path == str(path)
    data = bytearray(path.read_bytes())
    data[piece.start + 2 * piece.box.elements] ^= 0xFF
    path.write_bytes(data)
    assert main([str(folder), "--verify"]) == 3
    rows = piece.box.offsets[0]
    assert capsys.readouterr().err == (
        f"File 2 of 2 is damaged: {path}. The bytes of model.model.layers.1.mlp.up_proj.weight from [{rows}, 0] on "
        "do not match their checksums (Bad CRC-32 for file 'archive/data/0'). "
        "Copy the file again from where training wrote it.\n"
    )


def test_damage_in_any_piece_of_any_weight_is_found(folder):
    """The last byte of each, one after the other."""
    checkpoint = open_checkpoint(folder)
    for name, tensor in checkpoint.tensors.items():
        for piece in tensor.pieces:
            path = Path(piece.path)
            pristine = path.read_bytes()
            data = bytearray(pristine)
            data[piece.start + 4 * piece.box.elements - 1] ^= 1
            path.write_bytes(data)
            with pytest.raises(CheckpointError) as caught:
                verify(checkpoint)
            assert f"is damaged: {path}. The bytes of model.{name} " in str(caught.value)
            path.write_bytes(pristine)
    verify(checkpoint)


def test_random_damage_is_an_error_or_does_no_harm(written, tiny_checkpoint, tmp_path):
    expected = load_file(tiny_checkpoint("fsdp1", 2) / "reference" / "model.safetensors")
    refused = 0
    for seed in range(TRIALS):
        folder = shutil.copytree(written, tmp_path / str(seed))
        chance = random.Random(seed)
        victim = chance.choice(sorted(folder.glob("*/*.distcp")))
        data = bytearray(victim.read_bytes())
        chance.choice(DAMAGES)(data, chance)
        victim.write_bytes(data)
        refused += not loads_right(folder, expected, seed)
        shutil.rmtree(folder)
    assert TRIALS // 3 < refused < TRIALS


class Runs:
    def __reduce__(self):
        return os.system, (self.command,)


def test_metadata_that_calls_a_program_does_nothing(folder, tmp_path):
    hostile = Runs()
    hostile.command = f"touch {tmp_path / 'touched'}"
    (folder / "pytorch_model_fsdp_0" / ".metadata").write_bytes(pickle.dumps(hostile))
    with pytest.raises(CheckpointError, match=r"^The distributed checkpoint cannot be read: "):
        open_checkpoint(folder)
    assert not (tmp_path / "touched").exists()


def test_reading_it_needs_no_torch(written):
    code = (
        "import sys; from dist.checkpoint.open import open_checkpoint; "
        "open_checkpoint(sys.argv[1]); print(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(written)]
    done = subprocess.run(command, env=rank_environment(), capture_output=True, text=True, check=True)
    assert "dist.checkpoint.dcp" in done.stdout
    assert "'torch'" not in done.stdout
