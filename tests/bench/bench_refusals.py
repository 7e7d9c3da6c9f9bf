"""How long each refusal takes, from the start of the program to its exit, for every refused row of the table.

    python tests/bench/bench_refusals.py [WORDS]

Makes each folder, starts `python -m chat` on it with a prompt, and prints seconds, exit code and the first line.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]


def main(words: str = "") -> None:
    from field_cases import ROWS

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    longest = 0.0
    with tempfile.TemporaryDirectory() as place:
        for number, case in enumerate(case for case in ROWS if case.refused and words in case.name):
            folder = Path(place) / str(number)
            case.make(folder)
            options = [f"--{name}={value}" for name, value in case.options.items()]
            start = time.perf_counter()
            run = subprocess.run(
                [sys.executable, "-m", "chat", "--checkpoint_dir", str(folder), "--prompt", "hi", *options],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            seconds = time.perf_counter() - start
            longest = max(longest, seconds)
            first = next((line for line in run.stderr.splitlines() if line.strip()), "")
            print(f"{seconds:5.2f} s  exit {run.returncode}  {case.name}: {first[:90]}", flush=True)
    print(f"longest {longest:.2f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
