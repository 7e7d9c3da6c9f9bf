"""Which ranks hold a model together: all of them, or several copies side by side. Knows no prompts.

Cutting layers makes one reply come sooner. Many prompts are answered sooner by copies, as few ranks to each as hold
the model: a rank that waits for no other one does as much as it can.
"""

from __future__ import annotations

from dist.checkpoint.open import Checkpoint
from dist.errors import UsageError
from dist.group.copies import Division, least_free_memory, tell_division
from dist.group.ranks import Ranks
from dist.model.build import choose_dtype

COPIES = "copies"
# Beside the weights: what a batch's KV cache and a pass take at least.
ROOM_BYTES = 1 << 30
WEIGHTS_SHARE = 1.2
# With fewer prompts to a GPU, all GPUs together are taken to answer one after the other sooner.
FEWEST_PER_GPU = 2


def undivided(parallel: str, ranks: int) -> Division:
    """One model on all ranks."""
    return Division(copies=1, ranks=ranks, mode="auto" if parallel.startswith(COPIES) else parallel)


def divide(parallel: str, dtype: str, checkpoint: Checkpoint, ranks: Ranks, replies: int) -> Division:
    """Rank 0: decide on the division for `replies` replies (0: a conversation), and tell all ranks.

    Raises UsageError if more ranks to a copy are asked for than there are.
    """
    division = _divide(parallel, dtype, checkpoint, ranks, replies)
    tell_division(ranks, division)
    return division


def _divide(parallel: str, dtype: str, checkpoint: Checkpoint, ranks: Ranks, replies: int) -> Division:
    one = undivided(parallel, ranks.size)
    asked, _, count = parallel.partition(":")
    if replies == 0 or asked not in (COPIES, "auto"):
        return one
    if count and int(count) > ranks.size:
        raise UsageError(
            f"--parallel {parallel} needs {count} ranks.", f"There are {ranks.size}.", "Start more processes."
        )
    on_gpus = ranks.device.type == "cuda"
    if asked == "auto" and replies < (FEWEST_PER_GPU * ranks.size if on_gpus else 2):
        return one
    size = int(count) if count else _fewest_ranks(dtype, checkpoint, ranks)
    if size is None or size == ranks.size:
        # A single copy on all ranks is what there would be anyway.
        return one
    copies = ranks.size // size
    each = "one rank each" if size == 1 else f"{size} ranks each"
    left = ranks.size - copies * size
    words = f"{copies} copies, {each}" + (f"; {left} left over" if left else "")
    return Division(copies=copies, ranks=size, mode="none" if size == 1 else "tp", words=words)


def _fewest_ranks(dtype: str, checkpoint: Checkpoint, ranks: Ranks) -> int | None:
    """As few ranks as hold the model, of a number that its heads divide by; None if all are too few."""
    bytes_each = choose_dtype(dtype, checkpoint.dtype, checkpoint.config, ranks.device).itemsize
    need = int(checkpoint.parameters * bytes_each * WEIGHTS_SHARE)
    free = least_free_memory(ranks)
    heads = _heads(checkpoint)
    fitting = (size for size in range(1, ranks.size + 1) if need // size + ROOM_BYTES <= free)
    return next((size for size in fitting if size == 1 or heads % size == 0), None)


def _heads(checkpoint: Checkpoint) -> int:
    text = checkpoint.config.get("text_config")
    places = (checkpoint.config, text if isinstance(text, dict) else {})
    return next((int(one["num_attention_heads"]) for one in places if one.get("num_attention_heads")), 1)
