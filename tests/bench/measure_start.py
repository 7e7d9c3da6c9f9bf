"""Where the time of a start goes: `python tests/bench/measure_start.py CHECKPOINT [--ranks 1 2 4]`.

Starts run_chat.sh with one prompt and prints a table: of each phase the seconds that it took, without what is
counted in another phase, and in brackets the second after the start in which it ended. Of several ranks the slowest
one's are shown, so that a column may add up to more than its total. On a GPU the first start compiles kernels,
unless Triton's cache has them.
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
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "DLLM_START_FOLDER"
BEGAN = "DLLM_START_BEGAN"
RANKS = "DLLM_START_RANKS"
STACKS = "DLLM_START_STACKS"
SAMPLE_S, DEEP = 0.02, 8
# Where a function is looked up, its name there, and the phase that it is.
PHASES = (
    ("chat.leader", "ask", "what is asked for"),
    ("chat.leader", "meet", "meeting"),
    ("dist.group.ranks", "Ranks.meet", "meeting"),
    ("chat.text.tokenizer", "load_tokenizer", "tokenizer"),
    ("chat.loading.opening", "open_asked", "checkpoint's facts"),
    ("chat.leader", "open_asked", "checkpoint's facts"),
    ("dist.group.group", "TorchGroup.__init__", "process groups"),
    ("dist.model.load", "load_model", "the rest of loading"),
    ("dist.model.load", "plan_fill", "building the model"),
    ("dist.model.load", "Filler.fill", "reading weights"),
    ("dist.model.load", "finish_cut", "cutting layers"),
    ("dist.group.group", "TorchGroup.open_sums", "shared GPU memory"),
    ("dist.model.load", "fuse", "joining layers"),
    ("dist.decode.engine", "Engine.__init__", "trying the model"),
    ("chat.leader", "warm_up", "warming up"),
)
IMPORTS = ("torch", "transformers", "triton")
READY = ("chat.leader", "warm_up")


class Watch:
    """Seconds by phase in this process's main thread, without those of phases within them, and when each ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.ended: dict[str, float] = {}
        self._inner: list[float] = []
        self._pending = list(PHASES)
        self._thread = threading.get_ident()
        self._import = builtins.__import__
        self.end("before a rank's process", since_start())

    def end(self, phase: str, took: float) -> None:
        self.seconds[phase] += took
        self.ended[phase] = since_start()

    def timed(self, phase: str, run: Any, *args: Any, **named: Any) -> Any:
        self._inner.append(0.0)
        began = time.perf_counter()
        try:
            return run(*args, **named)
        finally:
            took = time.perf_counter() - began
            self.end(phase, took - self._inner.pop())
            if self._inner:
                self._inner[-1] += took

    def imported(self, name: str, *args: Any, **named: Any) -> Any:
        """In place of __import__: a first import is timed, and what it brought is watched from then on."""
        level = named.get("level", args[3] if len(args) > 3 else 0)
        # A package's imports of its own parts are the package's.
        if level or name in sys.modules or threading.get_ident() != self._thread:
            return self._import(name, *args, **named)
        top = name.partition(".")[0]
        phase = f"import {top}" if top in IMPORTS else "other imports"
        try:
            return self.timed(phase, self._import, name, *args, **named)
        finally:
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
            if last:
                self.end("ready", since_start())
            self.write()
            return result

        return run

    def write(self) -> None:
        """What is known so far; the last that is written counts."""
        found = {phase: (took, self.ended[phase]) for phase, took in self.seconds.items()}
        rank = os.environ.get("RANK", "0")
        Path(os.environ[FOLDER], f"rank{rank}.json").write_text(json.dumps(found))


def since_start() -> float:
    return time.time() - float(os.environ[BEGAN])


def watch_this_process() -> None:
    builtins.__import__ = Watch().imported
    if os.environ.get(STACKS):
        threading.Thread(target=note_stacks, args=(threading.get_ident(),), daemon=True).start()


def note_stacks(thread: int) -> None:
    """What the main thread is doing, every few milliseconds, as lines of a file: when, and the innermost calls."""
    path = Path(os.environ[STACKS], f"{os.environ[RANKS]}-rank{os.environ.get('RANK', '0')}-{os.getpid()}.txt")
    with path.open("w", buffering=1) as out:
        while True:
            time.sleep(SAMPLE_S)
            frame, calls = sys._current_frames().get(thread), []
            while frame is not None and len(calls) < DEEP:
                code = frame.f_code
                if "importlib" not in code.co_filename:
                    calls.append(f"{Path(code.co_filename).stem}.{code.co_name}:{frame.f_lineno}")
                frame = frame.f_back
            out.write(f"{since_start():.3f} {' < '.join(calls)}\n")


Column = dict[str, tuple[float, float]]


def start(checkpoint: str, ranks: int, stacks: str) -> Column:
    """Seconds by phase of one start, of the rank that took longest, and when the last one ended it."""
    folder = Path(tempfile.mkdtemp())
    here = Path(__file__).parent
    given = os.environ.get("PYTHONPATH", "")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(here / "start_watch"), str(here), given])),
        FOLDER: str(folder),
        BEGAN: str(time.time()),
        RANKS: str(ranks),
        "XDG_STATE_HOME": str(folder / "state"),
        STACKS: stacks,
    }
    command = ["bash", str(ROOT / "run_chat.sh"), str(ranks), checkpoint, "Hello", "--max_new_tokens", "8"]
    busy = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    ended = time.time() - float(environment[BEGAN])
    if done.returncode:
        logs = [path.read_text()[-2000:] for path in folder.rglob("*.log")]
        raise SystemExit("\n".join([done.stderr, *logs]))
    slowest: Column = {}
    for path in sorted(folder.glob("rank*.json")):
        for phase, found in json.loads(path.read_text()).items():
            took, until = slowest.get(phase, (0.0, 0.0))
            slowest[phase] = max(took, found[0]), max(until, found[1])
    used = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - busy
    return slowest | {"ended": (ended, ended), "processor seconds, all": (used, ended)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--times", type=int, default=2, help="starts of each, in turn")
    parser.add_argument("--stacks", default="", help="a folder for what each rank did, 50 times a second")
    options = parser.parse_args()
    columns, found = [], []
    for time_number in range(options.times):
        for ranks in options.ranks:
            columns.append(f"{ranks} ({time_number + 1})")
            found.append(start(options.checkpoint, ranks, options.stacks))
    phases = list(dict.fromkeys(phase for one in found for phase in one))
    last = ("ready", "ended", "processor seconds, all")
    phases.sort(key=lambda phase: last.index(phase) if phase in last else -1)
    print(f"\n| seconds (ended), on ranks (start) | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
    for phase in phases:
        print(f"| {phase} | {' | '.join(cell(one, phase, phase in last) for one in found)} |")


def cell(column: Column, phase: str, alone: bool) -> str:
    if phase not in column:
        return ""
    took, until = column[phase]
    return f"{took:.1f}" if alone else f"{took:.1f} ({until:.1f})"


if __name__ == "__main__":
    main()
