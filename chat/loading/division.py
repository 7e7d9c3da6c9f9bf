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
# What configs call the number of experts, which are not cut.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


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
    asked, _, count = parallel.partition(":")
    if asked not in (COPIES, "auto"):
        return undivided(parallel, ranks.size)
    if count and int(count) > ranks.size:
        raise UsageError(
            f"--parallel {parallel} needs {count} ranks.", f"There are {ranks.size}.", "Start more processes."
        )
    need = int(checkpoint.parameters * _bytes_each(dtype, checkpoint, ranks) * WEIGHTS_SHARE)
    fewest = FEWEST_PER_GPU * ranks.size if ranks.device.type == "cuda" else 2
    if replies == 0 or (asked == "auto" and replies < fewest):
        return _one_model(parallel, checkpoint, ranks, need)
    size = int(count) if count else _fewest_ranks(checkpoint, ranks, need)
    if size is None or size == ranks.size:
        # A single copy on all ranks is what there would be anyway.
        return undivided(parallel, ranks.size)
    copies = ranks.size // size
    each = "one rank each" if size == 1 else f"{size} ranks each"
    words = f"{copies} copies, {each}{_left_over(ranks.size - copies * size)}"
    return Division(copies=copies, ranks=size, mode="none" if size == 1 else "tp" if count else "auto", words=words)


def _one_model(parallel: str, checkpoint: Checkpoint, ranks: Ranks, need: int) -> Division:
    """All ranks; of GPUs as many as the model can be cut for, if they hold it: the others would only wait."""
    if ranks.device.type == "cuda" and not _can_be_cut(checkpoint, ranks.size):
        sizes = (size for size in range(ranks.size - 1, 1, -1) if _can_be_cut(checkpoint, size))
        size = next(sizes, None)
        if size is not None and need // size + ROOM_BYTES <= least_free_memory(ranks):
            left = f"{ranks.size}{_left_over(ranks.size - size)}"
            words = f"The model is split over {size} ranks, since its parts cannot be divided among {left}."
            return Division(copies=1, ranks=size, mode="auto", words=words)
    return undivided(parallel, ranks.size)


def _left_over(count: int) -> str:
    return f"; {count} rank{'s have' if count > 1 else ' has'} nothing to do" if count else ""


def _fewest_ranks(checkpoint: Checkpoint, ranks: Ranks, need: int) -> int | None:
    """As few ranks as hold the model, of a number that it can be cut for; None if all are too few."""
    free = least_free_memory(ranks)
    fitting = (size for size in range(1, ranks.size + 1) if need // size + ROOM_BYTES <= free)
    return next((size for size in fitting if size == 1 or _can_be_cut(checkpoint, size)), None)


def _bytes_each(dtype: str, checkpoint: Checkpoint, ranks: Ranks) -> int:
    return choose_dtype(dtype, checkpoint.dtype, checkpoint.config, ranks.device).itemsize


def _can_be_cut(checkpoint: Checkpoint, size: int) -> bool:
    """Whether a model's layers can be shared out to so many ranks, as far as its config tells."""
    text = checkpoint.config.get("text_config")
    config = {**checkpoint.config, **(text if isinstance(text, dict) else {})}
    if any(config.get(name) for name in EXPERTS):
        return False
    heads = int(config.get("num_attention_heads") or 1)
    key_heads = int(config.get("num_key_value_heads") or heads)
    width = int(config.get("intermediate_size") or 0)
    return not (heads % size or width % size or (key_heads % size and size % key_heads))
