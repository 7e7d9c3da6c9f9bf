"""Start real ranks for a test: torchrun, gloo, one thread each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def rank_environment(**more: str) -> dict[str, str]:
    """The environment of a rank in a test: the project importable, one thread, quiet."""
    return {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        **more,
    }


def torchrun(size: int, *arguments: str) -> list[str]:
    """The command that starts `size` ranks of a script or, with `-m`, of a module."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1"),
        *(f"--nproc_per_node={size}", *arguments),
    ]


def results_of_ranks(size: int, script: str, *arguments: str, timeout: float = 120.0):
    """Run tests/<script> on `size` ranks; returns what rank 0 wrote as JSON to stdout."""
    command = torchrun(size, str(ROOT / "tests" / script), *arguments)
    done = subprocess.run(
        command, env=rank_environment(), capture_output=True, text=True, timeout=timeout, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
