"""Tiny checkpoints, as (layout, world size), in the batches in which they are made."""

from __future__ import annotations

from checkpoints import CASES, can_make

USUAL = [(layout, world_size) for layout in ("fsdp1", "fsdp2", "fsdp1_nomesh") for world_size in (1, 2, 3)]
USUAL += [("fsdp1_tied", 2), ("fsdp2_tied", 3)]
RARE = [("fsdp1_no_shard", 2), ("fsdp2_shard1", 2), ("fsdp1_moe", 2), ("fsdp1_hsdp", 4), ("fsdp2_hsdp", 4)]
ADAPTED = [("fsdp1_lora", 2), ("fsdp2_lora", 3)]
REST = [
    (layout, world_size)
    for layout in CASES
    for world_size in (1, 2, 3, 4)
    if not layout.endswith(("hsdp", "large")) and can_make(layout)
]
