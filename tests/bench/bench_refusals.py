"""How long each refusal takes, from the start of the program to its exit, for every refused row of the table.

    python tests/bench/bench_refusals.py [WORDS [TREE ...]]

Makes each folder, starts `python -m chat` on it with a prompt, and prints seconds, CPU seconds, exit code and the
first line. With other working trees of the project each row is also started there, one right after the other, and
the seconds of all stand side by side. CPU seconds depend less on what else the machine does.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]


def main(words: str = "", *others: str) -> None:
    from field_cases import ROWS

    trees = [ROOT, *map(Path, others)]
    longest = [0.0] * len(trees)
    with tempfile.TemporaryDirectory() as place:
        for number, case in enumerate(case for case in ROWS if case.refused and words in case.name):
            folder = Path(place) / str(number)
            case.make(folder)
            options = [f"--{name}={value}" for name, value in case.options.items()]
            columns = []
            for column, tree in enumerate(trees):
                seconds, cpu, run = start(tree, folder, options)
                longest[column] = max(longest[column], seconds)
                columns.append(f"{seconds:5.2f} s {cpu:5.2f} CPU s  exit {run.returncode}")
            first = next((line for line in run.stderr.splitlines() if line.strip()), "")
            print(f"{'  |  '.join(columns)}  {case.name}: {first[:90]}", flush=True)
    print(f"longest {', '.join(f'{one:.2f} s' for one in longest)}")


def start(tree: Path, folder: Path, options: list[str]) -> tuple[float, float, subprocess.CompletedProcess[str]]:
    """Seconds and CPU seconds of a start of the program in `tree`, and what became of it."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-m", "chat", "--checkpoint_dir", str(folder), "--prompt", "hi", *options],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, run


if __name__ == "__main__":
    main(*sys.argv[1:])
