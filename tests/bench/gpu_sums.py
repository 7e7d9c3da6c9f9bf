"""Sums through memory that GPUs share: `python tests/bench/gpu_sums.py [--ranks N]`. Needs a GPU; no pytest.

With fewer GPUs than ranks all ranks share the first one, which is slow and can't be timed; what is checked is the
same: sums right to the bit on every rank, called one by one and in a CUDA graph that is replayed back to back with
other numbers each time. Prints microseconds of a sum beside NCCL's, and whether a rank that waits for a lost one
can be ended. Ends with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable

import paths  # noqa: F401
import torch
import torch.distributed as torch_dist

ROWS, WIDTHS = (1, 7, 8, 15, 32, 128, 255), (3584, 8192)
DTYPES = (torch.bfloat16, torch.float32, torch.float16)
REPLAYS = 100
TIMED = 50
CHECK_LIMIT_S, LOST_LIMIT_S = 300, 90


class Trial:
    """One rank's part."""

    def __init__(self, group, sums) -> None:
        self.group = group
        self.sums = sums
        self.problems: list[str] = []
        self.cases = [
            (rows, width, dtype)
            for dtype in DTYPES
            for width in WIDTHS
            for rows in ROWS
            if sums.takes(torch.empty((rows, width), dtype=dtype, device=group.device))
        ]

    def say(self, text: str) -> None:
        if self.group.rank == 0:
            print(text, flush=True)

    def check_one_by_one(self) -> None:
        generator = torch.Generator().manual_seed(1)
        for rows, width, dtype in self.cases:
            shares = torch.randn((self.group.size, rows, width), generator=generator).to(dtype)
            right = torch.zeros(rows, width)
            for share in shares:
                right += share.float()
            mine = shares[self.group.rank].to(self.group.device)
            self.sums.sum_in_place(mine)
            wrong = int((mine.cpu() != right.to(dtype)).sum())
            if wrong:
                self.problems.append(f"{rows} x {width} {dtype}: {wrong} elements")

    def check_replays(self) -> None:
        """Small whole numbers, so that every sum is exact; other ones in each replay, made within the graph."""
        device, rank, size = self.group.device, self.group.rank, self.group.size
        step = torch.zeros((), dtype=torch.int64, device=device)
        wrong = torch.zeros(len(self.cases), dtype=torch.int64, device=device)
        last = torch.zeros(self.sums._most_bytes // 4, device=device)
        places = torch.arange(max(rows * width for rows, width, _ in self.cases), device=device)

        def numbers(at: int, whose: int, elements: int) -> torch.Tensor:
            return (3 * places[:elements] + 5 * step + 2 * whose + at) % 7 - 3

        def body() -> None:
            for at, (rows, width, dtype) in enumerate(self.cases):
                elements = rows * width
                mine = numbers(at, rank, elements).to(dtype)
                added = numbers(at, size, elements)
                right = size * sum(numbers(at, whose, elements) for whose in range(size)) + added
                added = added.to(dtype)
                if (at + rank) % 2:
                    # Ranks come late in turn.
                    torch.cuda._sleep(30000)
                # Two with nothing between them.
                self.sums.sum_in_place(mine)
                self.sums.sum_in_place(mine, added)
                wrong[at] += (mine != right.to(dtype)).sum()
            # One more: an odd count, so that replays begin in turn in either half of the inboxes.
            self.sums.sum_in_place(last)
            step.add_(1)

        graph = captured(body)
        for _ in range(REPLAYS):
            graph.replay()
        torch.cuda.synchronize()
        if int(step) < REPLAYS or int(wrong.sum()):
            self.problems.append(f"replayed: {wrong.tolist()} elements in {int(step)} rounds")

    def time_all(self) -> None:
        self.say("\n| rows | width | dtype | KiB | ours, us | NCCL, us |\n|---|---|---|---|---|---|")
        for rows, width, dtype in self.cases:
            if dtype == torch.float16:
                continue
            tensor = torch.zeros((rows, width), dtype=dtype, device=self.group.device)
            ours = microseconds(self.group, self.sums.sum_in_place, tensor)
            theirs = microseconds(self.group, torch_dist.all_reduce, tensor)
            size = tensor.numel() * tensor.element_size() / 1024
            name = str(dtype).removeprefix("torch.")
            self.say(f"| {rows} | {width} | {name} | {size:.0f} | {ours:.2f} | {theirs:.2f} |")


def captured(body: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """A graph of `body`, after one run of it outside."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        body()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        body()
    return graph


def microseconds(group, run: Callable[[torch.Tensor], object], tensor: torch.Tensor) -> float:
    """Of one of many in a graph, the least of some replays; ranks begin together."""

    def many() -> None:
        for _ in range(TIMED):
            run(tensor)

    graph = captured(many)
    spans = []
    for _ in range(5):
        group.smallest(0)
        graph.replay()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        spans.append(start.elapsed_time(end) * 1e3 / TIMED)
    return min(spans)


def one_rank(lose: bool) -> None:
    from dist.group.group import TorchGroup
    from dist.group.peer_sums import NoPeerSums, open_peer_sums
    from dist.group.ranks import Ranks

    shared = torch.cuda.device_count() < int(os.environ["WORLD_SIZE"])
    group = TorchGroup(Ranks(torch.device("cuda", 0 if shared else int(os.environ["LOCAL_RANK"]))).meet())
    started = time.perf_counter()
    try:
        sums = open_peer_sums(group, torch_dist.distributed_c10d._get_default_group(), group._ranks.devices)
    except NoPeerSums as refusal:
        sys.exit(f"no sums through shared memory: {refusal}")
    seconds = time.perf_counter() - started
    if lose:
        lose_a_rank(group, sums)
    trial = Trial(group, sums)
    trial.say(
        f"{group.size} ranks on {1 if shared else group.size} x {torch.cuda.get_device_name()}, torch "
        f"{torch.__version__}: opened in {seconds:.1f} s, up to {sums._most_bytes / 1024:.0f} KiB a sum"
    )
    trial.check_one_by_one()
    trial.check_replays()
    for rank, problem in group.gather_errors("; ".join(trial.problems) or None).items():
        trial.say(f"WRONG on rank {rank}: {problem}")
        trial.problems.append(problem)
    if not trial.problems:
        trial.say(f"{len(trial.cases)} shapes one by one and {REPLAYS} replays: right to the bit on every rank")
    if not shared:
        trial.time_all()
    group.close()
    sys.exit(bool(trial.problems))


def lose_a_rank(group, sums) -> None:
    """The last rank ends without a word while the others wait for it on their GPUs."""
    if group.rank == group.size - 1:
        time.sleep(2)
        os._exit(7)
    sums.sum_in_place(torch.zeros(1024, device=group.device))
    torch.cuda.synchronize()
    print("WRONG: a sum ended without all ranks", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rank", action="store_true", help="one rank's part")
    parser.add_argument("--lose", action="store_true", help="one rank's part of losing one")
    options = parser.parse_args()
    if options.rank:
        one_rank(options.lose)
    else:
        start_ranks(options.ranks)


def ended(command: list[str], environment: dict[str, str], limit_s: float) -> int | None:
    """The exit code, or None if it had to be ended."""
    process = subprocess.Popen(command, env=environment)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        # torchrun ends its ranks then, by force after 30 seconds.
        process.terminate()
        process.wait()
        return None


def start_ranks(ranks: int) -> None:
    from ranks import torchrun

    environment = {**os.environ, "OMP_NUM_THREADS": "2", "NCCL_NVLS_ENABLE": "0"}
    environment |= {"TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}
    if torch.cuda.device_count() < ranks:
        environment["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
    command = torchrun(ranks, __file__, "--rank")
    right = ended(command, environment, CHECK_LIMIT_S) == 0
    started = time.perf_counter()
    if ended([*command, "--lose"], {**environment, "TORCH_CPP_LOG_LEVEL": "ERROR"}, LOST_LIMIT_S) is None:
        right = False
        print(f"WRONG: a rank that waits for a lost one did not end within {LOST_LIMIT_S} s")
    else:
        print(f"a rank that waits for a lost one ended after it: {time.perf_counter() - started:.0f} s in all")
    alive = subprocess.run([sys.executable, "-c", "import torch; print(torch.ones(9, device='cuda').sum().item())"])
    right = right and alive.returncode == 0
    print("all fine" if right else "NOT FINE")
    sys.exit(not right)


if __name__ == "__main__":
    main()
