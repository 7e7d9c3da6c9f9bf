"""What the choice of ranks, threads and dtype costs on the CPU, and what rank 0's verdict costs after a pass.

Called by bench_cpu.py, which prints all tables. Every way of running is a process (or torchrun) of its own with the
model loaded; they answer in turn, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import paths  # noqa: F401
from ranks import ROOT, rank_environment, results_of_ranks, torchrun

SCRIPT = str(ROOT / "tests/bench/bench_ranks.py")
VERDICTS, VERDICT_TOKENS = 500, 8
# Processes, threads of each, dtype, how threads wait; the first is what run_chat.sh does.
USUAL = "GOMP_SPINCOUNT=1000"
WAYS = [(1, 2, "float32", USUAL), (1, 2, "bfloat16", USUAL), (1, 1, "float32", USUAL), (2, 1, "float32", USUAL)]
WAYS += [(1, 2, "float32", "OMP_WAIT_POLICY=PASSIVE"), (1, 2, "float32", "")]


def measure_verdicts(pass_s: float) -> None:
    """Rows of microseconds for one verdict: packed, sent and unpacked, on real ranks of this host.

    `pass_s` is what a pass takes, in seconds, for comparison.
    """
    print("\n| ranks | by | bytes of a verdict | microseconds, median | 95 of 100 below | of a pass |")
    print("|---|---|---|---|---|---|")
    for size in (2, 4):
        for by, got in results_of_ranks(size, "bench_ranks.py", "--verdicts").items():
            share = f"{got['median'] / (1e4 * pass_s):.1f} % of {1e3 * pass_s:.0f} ms"
            print(
                f"| {size} | {by} | {got['bytes']} | {got['median']:.0f} | {got['p95']:.0f} | {share} |", flush=True
            )


def verdicts_on_this_rank() -> None:
    """Rank 0 prints the figures of the rank that waited longest, by shared memory and by gloo in turn."""
    import torch
    import torch.distributed as torch_dist
    from ranks import open_group

    from dist.group.wire import Verdict
    from dist.settings import GenerationSettings

    torch.set_num_threads(1)
    group = open_group()
    shared = group._control
    group._verdicts = torch_dist.new_group(backend="gloo")
    mine = Verdict.of(None, GenerationSettings(), list(range(VERDICT_TOKENS)), [None])
    times: dict[str, list[float]] = {"shared memory": [], "gloo": []}
    for _ in range(VERDICTS):
        for by, found in times.items():
            group._control = shared if by != "gloo" else None
            # All begin together, as they do after a pass.
            group.smallest(0)
            began = time.perf_counter()
            Verdict.unpacked(group.agree(mine.packed()), 1)
            found.append(time.perf_counter() - began)
    size, report = mine.packed().numel() * mine.packed().element_size(), {}
    for by, found in times.items():
        found = sorted(found[VERDICTS // 10 :])
        # The largest over the ranks.
        median, p95 = (-group.smallest(-int(1e9 * found[int(len(found) * share)])) / 1e3 for share in (0.5, 0.95))
        report[by] = {"bytes": size, "median": median, "p95": p95}
    if group.rank == 0:
        print(json.dumps(report))
    group.close()


def compare_defaults(checkpoint: str, rounds: int, threads: int) -> None:
    """Rows of the ways to run: seconds of a reply of 32 tokens, and against the first way."""
    ways = [(size, min(count, threads), dtype, wait) for size, count, dtype, wait in WAYS]
    children = [start(checkpoint, *way) for way in ways]
    try:
        seconds = [[ask(child) for child in children] for _ in range(rounds + 1)][1:]
    finally:
        for child in children:
            child.stdin.close()
            child.wait()
    print("\n| processes x threads | dtype | threads wait by | s | against the first | range |")
    print("|---|---|---|---|---|---|")
    first = statistics.median(times[0] for times in seconds)
    for place, (size, count, dtype, wait) in enumerate(ways):
        median = statistics.median(times[place] for times in seconds)
        ratios = [times[place] / times[0] for times in seconds]
        print(
            f"| {size} x {count} | {dtype} | {wait or 'what libgomp does unasked'} | {median:.2f} "
            f"| {median / first:.2f} | {min(ratios):.2f} to {max(ratios):.2f} |",
            flush=True,
        )


def start(checkpoint: str, size: int, threads: int, dtype: str, wait: str) -> subprocess.Popen[str]:
    """A process (or torchrun) that has loaded the model and answers when asked."""
    arguments = ("--answers", checkpoint, dtype)
    command = [sys.executable, SCRIPT, *arguments] if size == 1 else torchrun(size, SCRIPT, *arguments)
    environment = rank_environment(OMP_NUM_THREADS=str(threads))
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        environment.pop(name, None)
    environment.update(dict([wait.split("=")] if wait else []))
    child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def ask(child: Any) -> float:
    child.stdin.write("go\n")
    child.stdin.flush()
    return float(child.stdout.readline())


def answers_on_this_rank(checkpoint: str, dtype: str) -> None:
    """Rank 0: for every line of standard input answer once and print the seconds; the others follow."""
    import torch
    from bench_cpu import FIXED, Bench
    from ranks import open_group

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    group = open_group()
    bench = Bench(checkpoint, group, dtype)
    if group.rank:
        bench.engine.follow()
    else:
        settings = FIXED.with_value("max_new_tokens", 32)
        print("ready", flush=True)
        for _ in sys.stdin:
            print(bench.fresh(bench.conversation(), settings), flush=True)
        bench.engine.shutdown()
    if group.size > 1:
        group.close()


if __name__ == "__main__":
    if sys.argv[1] == "--verdicts":
        verdicts_on_this_rank()
    else:
        answers_on_this_rank(*sys.argv[2:])
