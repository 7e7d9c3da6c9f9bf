"""What is known of a checkpoint, as plain values to keep and as words to show. Knows no file and no model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dist.model.load import LoadedModel

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def checkpoint_facts(loaded: LoadedModel, ranks: int, seconds: float) -> dict[str, Any]:
    """The facts that sessions and exports keep. `seconds`: how long it took until the model could answer."""
    facts = dataclasses.asdict(loaded.facts)
    return {"checkpoint": str(facts.pop("path")), **facts, "processes": ranks, "ready_seconds": round(seconds, 1)}


def facts_table(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What `/model` shows, as (name, value) rows; a fact that is not known has none."""
    if "checkpoint" in facts:
        yield "checkpoint", facts["checkpoint"]
    if facts.get("step") is not None:
        yield "step", str(facts["step"])
    if "layout" in facts:
        family = facts.get("torch_family")
        yield "layout", f"{facts['layout']}, torch {family}" if family else facts["layout"]
    if facts.get("adapters"):
        yield "adapters", facts["adapters"]
    if "saved_world_size" in facts:
        yield "world size", f"{facts['saved_world_size']} when saved, {facts['processes']} now"
    if "model_type" in facts:
        yield "model", facts["model_type"]
    if "parameters" in facts:
        yield "parameters", f"{facts['parameters']:,} ({short_count(facts['parameters'])})"
    if "dtype" in facts:
        saved = facts.get("saved_dtype", facts["dtype"])
        yield "dtype", facts["dtype"] if saved == facts["dtype"] else f"{facts['dtype']}, saved as {saved}"
    if "parallel" in facts:
        yield "parallel", facts["parallel"]
    if "bytes_per_rank" in facts:
        yield "memory per rank", f"{size(facts['bytes_per_rank'])} of weights"
    if "load_bytes" in facts:
        speed = facts["load_bytes"] / max(facts["load_seconds"], 1e-3)
        yield "read", f"{size(facts['load_bytes'])} per rank in {facts['load_seconds']:.1f} s, {size(speed)}/s"
    if "about" in facts:
        yield "about", facts["about"]
    if "ready_seconds" in facts:
        yield "ready in", f"{facts['ready_seconds']} s"


def reading(what: str, done: int, total: int, seconds: float) -> str:
    """How far reading has come: bytes done, of how many, in how many seconds."""
    return f"{what}: {done / 1e9:.2f} of {total / 1e9:.2f} GB, {done / max(seconds, 1e-3) / 1e9:.2f} GB/s"


def size(count: float) -> str:
    """A number of bytes in the largest unit that leaves at least 1."""
    power = 0
    while count >= 1024 and power < len(UNITS) - 1:
        count /= 1024
        power += 1
    return f"{count:.0f} {UNITS[power]}" if power == 0 else f"{count:.1f} {UNITS[power]}"


def short_count(count: int) -> str:
    """A number of parameters as people say it: 7.6 B, 494.0 M, 12.3 K."""
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return str(count)
