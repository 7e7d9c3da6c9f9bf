"""Run by test_model.py: on real gloo ranks, load checkpoints in every way and compare with what was saved.

Arguments: comma-separated rank counts, comma-separated ways (resident, sharded, verl, torn), then run roots. Prints
{count: {run root: {way: {...}}}} as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

import torch
from ranks import results_of_forks
from safetensors.torch import load_file

from dist.checkpoint.boxes import SavedTensor
from dist.checkpoint.open import Checkpoint, open_checkpoint
from dist.errors import ChatError
from dist.model.load import load_model


def main() -> None:
    if "verl" in sys.argv[2]:
        import verl.utils.checkpoint.fsdp_checkpoint_manager  # noqa: F401
    print(json.dumps(results_of_forks(map(int, sys.argv[1].split(",")), load_all)))


def load_all(group) -> dict:
    return {root: {way: load(root, way, group) for way in sys.argv[2].split(",")} for root in sys.argv[3:]}


def load(root: str, way: str, group) -> dict:
    options = {"verl": {"parallel": "verl"}, "torn": {}}.get(way, {"keep": way})
    started = time.monotonic()
    try:
        checkpoint = open_checkpoint(root)
        if way == "torn" and group.rank == group.size - 1:
            checkpoint = with_shorter_files(checkpoint)
        loaded = load_model(checkpoint, group, **options)
    except ChatError as error:
        return {"error": str(error), "seconds": time.monotonic() - started}
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        logits = loaded.module(input_ids=ids).logits
        again = loaded.module(input_ids=ids).logits
    difference = differing(root, loaded.module) if way == "resident" else []
    reported = group.gather_errors(", ".join(difference) or None)
    most = -group.smallest(-loaded.facts.load_bytes)
    return {
        "differing": reported,
        "logits": [round(value, 6) for value in logits[0, -1].tolist()],
        "steady": torch.equal(logits, again),
        "most_bytes_read": most,
        "held": loaded.facts.bytes_per_rank,
        "parallel": loaded.facts.parallel,
    }


def with_shorter_files(checkpoint: Checkpoint) -> Checkpoint:
    """As if the files had been cut after they were checked, on this rank alone."""

    def shorter(tensor: SavedTensor) -> SavedTensor:
        return replace(tensor, pieces=tuple(replace(piece, start=1 << 40) for piece in tensor.pieces))

    return replace(checkpoint, tensors={name: shorter(tensor) for name, tensor in checkpoint.tensors.items()})


def differing(root: str, module) -> list[str]:
    """Names of parameters that are not bit-equal to the reference."""
    saved = load_file(f"{root}/reference/model.safetensors")
    state = module.state_dict()
    missing = [name for name in saved if name not in state and ".experts." not in name]
    return missing + [
        name
        for name, tensor in state.items()
        if name in saved and not torch.equal(tensor, saved[name].to(tensor.dtype))
    ]


if __name__ == "__main__":
    main()
