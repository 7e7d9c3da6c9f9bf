"""Where the time of a start goes: `python tests/bench/measure_start.py CHECKPOINT [--ranks 1 2 4]`.

Starts the program as run_chat.sh does, with one prompt, and prints a table of seconds from the start to the moment
in which the model is ready to answer, phase by phase, without what is counted in another phase. Of several ranks
the slowest one's are shown, so that a column may add up to more than its total. On a GPU the first start compiles
kernels, unless Triton's cache has them.
"""

from __future__ import annotations

import argparse
import builtins
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "DLLM_START_FOLDER"
BEGAN = "DLLM_START_BEGAN"
RANKS = "DLLM_START_RANKS"
# Where a function is looked up, its name there, and the phase that it is.
PHASES = (
    ("chat.text.tokenizer", "load_tokenizer", "tokenizer"),
    ("chat.loading.opening", "open_asked", "checkpoint's facts"),
    ("chat.leader", "open_asked", "checkpoint's facts"),
    ("dist.group.group", "open_group", "process groups"),
    ("dist.model.load", "plan_fill", "building the model"),
    ("dist.model.load", "Filler.fill", "reading weights"),
    ("dist.model.load", "finish_cut", "cutting layers"),
    ("dist.group.group", "open_peer_sums", "shared GPU memory"),
    ("dist.model.load", "fuse", "joining layers"),
    ("dist.decode.engine", "Engine.__init__", "trying the model"),
    ("chat.leader", "warm_up", "warming up"),
)
IMPORTS = ("torch", "transformers")
READY = ("chat.leader", "warm_up")


class Watch:
    """Seconds by phase in this process, without those of phases within them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []
        self._pending = list(PHASES)
        self._importing = False
        self._import = builtins.__import__

    def timed(self, phase: str, run: Any, *args: Any, **named: Any) -> Any:
        self._inner.append(0.0)
        began = time.perf_counter()
        try:
            return run(*args, **named)
        finally:
            took = time.perf_counter() - began
            self.seconds[phase] += took - self._inner.pop()
            if self._inner:
                self._inner[-1] += took

    def imported(self, name: str, *args: Any, **named: Any) -> Any:
        """In place of __import__: the outermost import is timed, and what it brought is watched from then on."""
        if self._importing:
            return self._import(name, *args, **named)
        self._importing = True
        try:
            top = name.partition(".")[0]
            phase = f"import {top}" if top in IMPORTS else "other imports"
            return self.timed(phase, self._import, name, *args, **named)
        finally:
            self._importing = False
            self.watch_what_is_there()

    def watch_what_is_there(self) -> None:
        for module, path, phase in list(self._pending):
            owner: Any = sys.modules.get(module)
            *parents, name = path.split(".")
            for parent in parents:
                owner = getattr(owner, parent, None)
            if owner is not None and hasattr(owner, name):
                self._pending.remove((module, path, phase))
                setattr(owner, name, self.wrapped(phase, getattr(owner, name), (module, path) == READY))

    def wrapped(self, phase: str, function: Any, last: bool) -> Any:
        @functools.wraps(function)
        def run(*args: Any, **named: Any) -> Any:
            result = self.timed(phase, function, *args, **named)
            self.write(ready=last)
            return result

        return run

    def write(self, *, ready: bool) -> None:
        """What is known so far; the last that is written counts."""
        reported = dict(self.seconds) | ({"ready": time.time() - float(os.environ[BEGAN])} if ready else {})
        rank = os.environ.get("RANK", "0")
        Path(os.environ[FOLDER], f"rank{rank}.json").write_text(json.dumps(reported))


def watch_this_process() -> None:
    """If it is a rank, and not what starts ranks."""
    if ("RANK" in os.environ) == (int(os.environ[RANKS]) > 1):
        watch = Watch()
        watch.seconds["before a rank's process"] = time.time() - float(os.environ[BEGAN])
        builtins.__import__ = watch.imported


def start(checkpoint: str, ranks: int) -> dict[str, float]:
    """Seconds by phase of one start, of the rank that took longest."""
    folder = Path(tempfile.mkdtemp())
    here = Path(__file__).parent
    given = os.environ.get("PYTHONPATH", "")
    paths = os.pathsep.join(filter(None, [str(here / "start_watch"), str(here), str(ROOT), given]))
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    environment = os.environ | {
        "PYTHONPATH": paths,
        "PYTHONSAFEPATH": "1",
        FOLDER: str(folder),
        BEGAN: str(time.time()),
        RANKS: str(ranks),
        "XDG_STATE_HOME": str(folder / "state"),
        "DLLM_RUN_DIR": str(folder),
        "OMP_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "chat"]
    if ranks > 1:
        command = [sys.executable, "-m", "chat.start.launch", str(folder / "torchrun.log"), str(ranks)]
    asked = ["--checkpoint_dir", checkpoint, "--prompt", "Hello", "--max_new_tokens", "8"]
    busy = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    done = subprocess.run([*command, *asked], env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode:
        logs = [path.read_text()[-2000:] for path in folder.glob("*.log")]
        raise SystemExit("\n".join([done.stderr, *logs]))
    slowest: dict[str, float] = defaultdict(float)
    for path in folder.glob("rank*.json"):
        for phase, seconds in json.loads(path.read_text()).items():
            slowest[phase] = max(slowest[phase], seconds)
    slowest["processor seconds, all"] = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - busy
    slowest["ended"] = time.time() - float(environment[BEGAN])
    return slowest


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--times", type=int, default=2, help="starts of each, in turn")
    options = parser.parse_args()
    columns, found = [], []
    for time_number in range(options.times):
        for ranks in options.ranks:
            columns.append(f"{ranks} ({time_number + 1})")
            found.append(start(options.checkpoint, ranks))
    phases = list(dict.fromkeys(phase for one in found for phase in one))
    last = ("ready", "ended", "processor seconds, all")
    phases.sort(key=lambda phase: last.index(phase) if phase in last else -1)
    print(f"\n| seconds, on ranks (start) | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
    for phase in phases:
        print(f"| {phase} | {' | '.join(f'{one[phase]:.1f}' if phase in one else '' for one in found)} |")


if __name__ == "__main__":
    main()
