"""Run by test_symmetric.py: the kernel of sums through shared memory, interpreted, on processes that share some.

Argument: how many ranks. Prints, as JSON, for each rank how many elements of its sums were wrong, of how many
sums. Not bfloat16: Triton's interpreter cuts it where a GPU rounds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import time

os.environ["TRITON_INTERPRET"] = "1"

import torch

from dist.kernels.peer_sum import PROGRAM_WORDS, inbox_words, sum_among_peers

CAPACITY = 4 * PROGRAM_WORDS
ELEMENTS = (8, 1000, 4096, 8, 3584)
ROUNDS = 4
# Half a minute: an interpreted look takes about a millisecond.
PATIENCE = 20_000


def main() -> None:
    size = int(sys.argv[1])
    context = multiprocessing.get_context("fork")
    inboxes = [torch.zeros(inbox_words(size, CAPACITY), dtype=torch.int64).share_memory_() for _ in range(size)]
    answers = context.SimpleQueue()
    ranks = [context.Process(target=sums, args=(rank, inboxes, answers)) for rank in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        sys.exit("a rank failed")
    got = dict(answers.get() for _ in ranks)
    print(json.dumps([got[rank] for rank in range(size)]))


def sums(rank: int, inboxes: list[torch.Tensor], answers) -> None:
    torch.set_num_threads(1)
    addresses = tuple(inbox.data_ptr() for inbox in inboxes)
    calls = torch.zeros(CAPACITY // PROGRAM_WORDS, dtype=torch.int32)
    generator, late = torch.Generator().manual_seed(0), random.Random(rank)
    fixed = {"rank": rank, "capacity": CAPACITY, "patience": PATIENCE}
    wrong = made = 0
    for _ in range(ROUNDS):
        for elements in ELEMENTS:
            for dtype in (torch.float32, torch.float16):
                shares = torch.randn((len(inboxes), elements), generator=generator).to(dtype)
                right = torch.zeros(elements)
                for share in shares:
                    right += share.float()
                mine = shares[rank].clone()
                time.sleep(late.choice((0, 0.01)))
                added = shares[0] if made % 3 == 0 else None
                sum_among_peers(mine, added, inboxes=addresses, calls=calls, **fixed)
                wrong += int((mine != right.to(dtype) + (0 if added is None else added)).sum())
                made += 1
    answers.put((rank, [wrong, made]))


if __name__ == "__main__":
    main()
