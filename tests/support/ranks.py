"""Start real ranks for a test: torchrun or forks of this process, gloo, one thread each."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

from checkpoints import free_port

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = Path(__file__).resolve().parent


def rank_environment(**more: str) -> dict[str, str]:
    """The environment of a rank in a test: the project importable, one thread, quiet."""
    return {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{SUPPORT}",
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
    """Run tests/support/<script> on `size` ranks; returns what rank 0 wrote as JSON to stdout."""
    command = torchrun(size, str(SUPPORT / script), *arguments)
    done = subprocess.run(
        command, env=rank_environment(), capture_output=True, text=True, timeout=timeout, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def results_of_forks(sizes, work, reach=None) -> dict:
    """{size: what `work(group)` gives on rank 0}, each time on so many forks of this process.

    `reach` makes what is handed to `work`, which closes it, in place of a group of all ranks.

    For scripts whose imports take far longer than the work: they are made once, before the ranks are forked.
    """
    import torch
    import transformers.models.auto.modeling_auto  # noqa: F401

    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    results = {}
    for size in sizes:
        port, answers = free_port(), context.SimpleQueue()
        ranks = [
            context.Process(target=_fork, args=(rank, size, port, answers, work, reach)) for rank in range(size)
        ]
        for process in ranks:
            process.start()
        while answers.empty() and not any(process.exitcode for process in ranks):
            time.sleep(0.01)
        if answers.empty():
            for process in ranks:
                process.kill()
            raise RuntimeError(f"a rank of {size} has failed")
        results[size] = answers.get()
        for process in ranks:
            process.join()
        assert not any(process.exitcode for process in ranks)
    return results


def open_group():
    """The group of the ranks that the environment describes; of this process if it is alone."""
    from dist.group.group import SoloGroup, TorchGroup

    return SoloGroup() if int(os.environ.get("WORLD_SIZE", "1")) == 1 else TorchGroup()


def _fork(rank: int, size: int, port: int, answers, work, reach) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    group = reach() if reach else open_group()
    result = work(group)
    if group.rank == 0:
        answers.put(result)
    if reach is None:
        group.close()
