"""What a start imports: the libraries, and not what transformers would bring along unused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ranks import rank_environment

PROGRAM = """
import sys
from dist.model.libraries import import_libraries
import_libraries(spare={spare})
import torch
from tiny_models import tiny_model
with torch.inference_mode():
    tiny_model()(torch.arange(3, 20)[None])
print("sklearn" in sys.modules)
import sklearn
"""
# Builds a model and makes a pass, as a start does; then uses what was left out.
START = """
import sys
from dist.model.libraries import import_libraries
import_libraries()
import torch
from transformers import Qwen2Config
from dist.model.build import build_model, put_tensor
config = Qwen2Config(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                     num_attention_heads=2, num_key_value_heads=1)
from pathlib import Path
module = build_model(Path("."), config.to_dict(), torch.float32, trust_remote_code=False)
for name, parameter in list(module.named_parameters()):
    put_tensor(module, name, torch.zeros(parameter.shape))
with torch.inference_mode():
    module(torch.arange(3, 20)[None])
print(*(name for name in ("torch._dynamo", "sympy", "torch.distributed.tensor") if name in sys.modules))
from transformers.masking_utils import TransformGetItemToIndex
with TransformGetItemToIndex():
    pass
assert torch._dynamo is sys.modules["torch._dynamo"] and torch._dynamo.config
assert torch.distributed.is_available()
from transformers.utils import import_utils
assert getattr(import_utils, "is_torch_distributed_available", lambda: True)()
from torch.distributed.tensor import DTensor
# What was found in less time is what transformers finds by itself.
import importlib.metadata, transformers
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("transformers.utils.as_it_is", import_utils.__file__)
as_it_is = module_from_spec(spec)
spec.loader.exec_module(as_it_is)
folder = transformers.models.__file__
assert import_utils.define_import_structure(folder) == as_it_is.define_import_structure(folder) != {}
assert importlib.metadata.packages_distributions().get("torch")
"""


def brought_along(folder: Path, spare: bool) -> bool:
    """Whether a model's first pass has imported a package that transformers finds; it must be importable later."""
    package, facts = folder / "sklearn", folder / "scikit_learn-1.0.dist-info"
    (package / "metrics").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "metrics" / "__init__.py").write_text("roc_curve = None")
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: scikit-learn\nVersion: 1.0\n")
    (facts / "top_level.txt").write_text("sklearn\n")
    environment = rank_environment()
    environment["PYTHONPATH"] += f":{folder}"
    program = PROGRAM.format(spare=spare)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip() == "True"


def test_what_no_model_needs_is_not_imported_and_stays_importable(tmp_path):
    assert not brought_along(tmp_path, spare=True)


@pytest.mark.long
def test_transformers_would_import_it(tmp_path):
    assert brought_along(tmp_path, spare=False)


def test_a_start_leaves_out_the_compiler_and_training_which_stay_importable():
    done = subprocess.run(
        [sys.executable, "-c", START], env=rank_environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [""]


@pytest.mark.parametrize("name", ["allow_in_graph", "assume_constant_result", "disable"])
def test_marks_for_the_compiler_change_nothing(name):
    from dist.model.libraries import COMPILER, CompilerStandIn

    def marked() -> None: ...

    assert getattr(CompilerStandIn(COMPILER), name)(marked) is marked
    assert CompilerStandIn(COMPILER).disable(reason="slow")(marked) is marked


def test_a_gpu_that_is_not_there_is_not_woken(monkeypatch):
    from dist.model import libraries

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    libraries._open_context()
    libraries.wake_gpu()
