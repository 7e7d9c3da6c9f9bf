"""Sums over GPUs that write into each other's memory, by one Triton kernel. Knows no process group and no model.

Every rank sends its values to every other rank in 8-byte words, 4 bytes of the tensor beside the number of the
call: a word tells by itself that it has come, so there is no barrier and nothing rests on the order of words, as in
NCCL's LL protocol. Calls are counted on the device, so that a captured CUDA graph can be replayed. An inbox has two
halves, for odd and for even calls: a rank writes into a half again two calls later, and by then it has had the
other's words of the call between, which that rank sent after it had read the half. All ranks add in float32 in the
order of the ranks, and so they get the same bits.
"""

from __future__ import annotations

import torch
import triton  # comes with torch where there are GPUs
import triton.language as tl

from dist.kernels.overlap import begin, launch_options

PROGRAM_WORDS = 1024  # of 4 bytes, for one program
PROGRAM_BYTES = 4 * PROGRAM_WORDS
WARPS = 8
DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
FOREVER = 0


def programs_together(ranks: int) -> int:
    """How many programs run side by side on a multiprocessor; their registers grow with the ranks.

    All programs of a sum must, since each waits for its fellows on the other ranks.
    """
    return max(1, 8 // ranks)


def inbox_words(ranks: int, capacity: int) -> int:
    """8-byte words that an inbox takes."""
    return 2 * ranks * capacity


def sum_among_peers(
    tensor: torch.Tensor,
    added: torch.Tensor | None = None,
    *,
    inboxes: tuple[int, ...],
    calls: torch.Tensor,
    rank: int,
    capacity: int,
    patience: int = FOREVER,
    compile_only: bool = False,
) -> None:
    """In place: the sum over the ranks, each of which makes the same calls; then this rank's `added` is added.

    `tensor` is contiguous, of a dtype in DTYPES, aligned to 16 bytes and a multiple of them long, at most
    `capacity` 4-byte words, which is a multiple of PROGRAM_WORDS; `added` is like it. `inboxes`: the address of
    each rank's inbox, zeroed before the first call. `calls` [capacity // PROGRAM_WORDS], int32, begins as zeros.
    After `patience` looks for words that have not come, if it is not FOREVER, a program goes on with what there is.
    """
    sixteens = tensor.numel() * tensor.element_size() // 16
    grid = (triton.cdiv(4 * sixteens, PROGRAM_WORDS),)
    arguments = (tensor, added, inboxes, calls, sixteens, patience)
    constants = {
        "DTYPE": DTYPES[tensor.dtype],
        "WIDE": tensor.element_size() == 4,
        "RANK": rank,
        "RANKS": len(inboxes),
        "CAPACITY": capacity,
        "WORDS": PROGRAM_WORDS,
        "num_warps": WARPS,
        **launch_options(tensor),
    }
    if compile_only:
        _sum_among_peers.warmup(*arguments, **constants, grid=grid)
    else:
        _sum_among_peers[grid](*arguments, **constants)


@triton.jit(do_not_specialize=["sixteens", "patience"])
def _sum_among_peers(
    tensor,
    added,
    inboxes,
    calls,
    sixteens,
    patience,
    DTYPE: tl.constexpr,
    WIDE: tl.constexpr,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    CAPACITY: tl.constexpr,
    WORDS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One program's words; in all tensors and inboxes it has the same place."""
    begin(EARLY)
    program = tl.program_id(0)
    call = tl.load(calls + program) + 1
    place = program * WORDS + tl.arange(0, WORDS)
    own = tensor.to(tl.pointer_type(tl.int32)) + place
    # So written that it is seen to be the same for four neighbours, which are then loaded together.
    is_there = place // 4 < sixteens
    mine = tl.load(own, mask=is_there, other=0)
    more = mine
    if added is not None:
        more = tl.load(added.to(tl.pointer_type(tl.int32)) + place, mask=is_there, other=0)
    half = (call & 1) * (RANKS * CAPACITY)
    # Words past the tensor's end are sent too: what lies in a half is of two calls ago, never older.
    letters = (call.to(tl.int64) << 32) | (mine.to(tl.int64) & 0xFFFFFFFF)
    for step in tl.static_range(1, RANKS):
        inbox = tl.multiple_of(inboxes[(RANK + step) % RANKS].to(tl.pointer_type(tl.int64)), 16)
        tl.store(inbox + half + RANK * CAPACITY + place, letters)
    inbox = tl.multiple_of(inboxes[RANK].to(tl.pointer_type(tl.int64)), 16)
    # A word of a 16-bit dtype holds two values.
    low = tl.zeros([WORDS], dtype=tl.float32)
    high = tl.zeros([WORDS], dtype=tl.float32)
    looks = 0
    for rank in tl.static_range(RANKS):
        if rank == RANK:
            word = mine
        else:
            sent = inbox + half + rank * CAPACITY + place
            letters = tl.load(sent, volatile=True)
            late = tl.max(((letters >> 32) != call).to(tl.int32), axis=0)
            while (late > 0) & ((looks < patience) | (patience <= 0)):
                letters = tl.load(sent, volatile=True)
                late = tl.max(((letters >> 32) != call).to(tl.int32), axis=0)
                looks += 1
            word = letters.to(tl.int32)
        if WIDE:
            low += word.to(tl.float32, bitcast=True)
        else:
            low += _value(word, DTYPE)
            high += _value(word >> 16, DTYPE)
    if WIDE:
        if added is not None:
            low += more.to(tl.float32, bitcast=True)
        total = low.to(tl.int32, bitcast=True)
    else:
        if added is not None:
            # The sum is rounded before, as it would be by itself.
            low = low.to(DTYPE).to(tl.float32) + _value(more, DTYPE)
            high = high.to(DTYPE).to(tl.float32) + _value(more >> 16, DTYPE)
        total = low.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        total |= high.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32) << 16
    tl.store(own, total, mask=is_there)
    tl.store(calls + program, call)


@triton.jit
def _value(words, DTYPE: tl.constexpr):
    """The numbers in the lower halves."""
    return words.to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)
