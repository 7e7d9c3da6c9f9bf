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
