"""torch's distributed checkpoints, as torch writes them on two ranks."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import rank_environment, torchrun
from safetensors.torch import load_file

from dist.checkpoint import open_checkpoint
from dist.checkpoint_read import TensorReader
from dist.errors import CheckpointError
from dist.shard_plan import Box, local_box

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
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match=r"^The distributed checkpoint cannot be read: "):
        open_checkpoint(folder)


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
        "import sys; from dist.checkpoint import open_checkpoint; open_checkpoint(sys.argv[1]); print(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(written)]
    done = subprocess.run(command, env=rank_environment(), capture_output=True, text=True, check=True)
    assert "dist.saved_dcp" in done.stdout
    assert "'torch'" not in done.stdout
