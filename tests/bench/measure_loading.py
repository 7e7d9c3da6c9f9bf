"""Memory and speed of loading, measured on real ranks with a model of 0.9 GB.

    python tests/bench/measure_loading.py [FOLDER]    makes the checkpoint in FOLDER if need be; prints a table

For every way of keeping the weights: what a rank holds, by how much its memory rose above that at the worst
moment, what it read and how fast. Under torchrun (`--rank`) it is one of the ranks.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import paths  # noqa: F401
from checkpoints import make_checkpoints, run_root
from ranks import rank_environment, torchrun

LAYOUT, WORLD_SIZE = "large", 2
WAYS = [(1, "none", "float32"), (1, "none", "bfloat16"), (2, "resident", "float32"), (2, "resident", "bfloat16")]
WAYS += [(2, "sharded", "float32"), (4, "resident", "float32"), (4, "sharded", "float32")]


def measure(base: Path) -> list[dict[str, Any]]:
    """One row for every way; the worst rank's figures. Sizes in bytes."""
    root = run_root(base, LAYOUT, WORLD_SIZE)
    if not root.exists():
        make_checkpoints(base, [(LAYOUT, WORLD_SIZE)])
    rows = []
    for size, keep, dtype in WAYS:
        command = torchrun(size, __file__, "--rank", str(root), keep, dtype)
        done = subprocess.run(command, env=rank_environment(), capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        ranks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        worst = {name: max(rank[name] for rank in ranks) for name in ranks[0]}
        rows.append({"ranks": size, "keep": keep, "dtype": dtype, **worst})
    return rows


def one_rank(root: str, keep: str, dtype: str) -> None:
    """Load the checkpoint on this rank and print what it took."""
    import torch
    from ranks import open_group

    from dist.checkpoint.open import open_checkpoint
    from dist.model.build import build_model
    from dist.model.load import load_model

    torch.set_num_threads(1)
    group = open_group()
    checkpoint = open_checkpoint(root)
    # What transformers imports for this model is not the loader's.
    build_model(checkpoint.config_dir, checkpoint.config, torch.float32, trust_remote_code=False)
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    way = {"parallel": "none"} if keep == "none" else {"keep": keep}
    loaded = load_model(checkpoint, group, dtype=dtype, **way)
    facts = loaded.facts
    above = _memory("VmHWM") - before - facts.bytes_per_rank
    line = {"held": facts.bytes_per_rank, "above": above, "read": facts.load_bytes, "seconds": facts.load_seconds}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
    if group.size > 1:
        group.close()


def _memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| ranks | weights | dtype | held, MiB | more at the peak, MiB | read, MiB | seconds | GB/s of all ranks |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        speed = row["read"] * row["ranks"] / row["seconds"] / 1e9
        held, above, read = (row[name] / 2**20 for name in ("held", "above", "read"))
        lines.append(
            f"| {row['ranks']} | {row['keep']} | {row['dtype']} | {held:.0f} | {above:.0f} | {read:.0f} "
            f"| {row['seconds']:.1f} | {speed:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        one_rank(*sys.argv[2:])
    else:
        with tempfile.TemporaryDirectory() as scratch:
            print(table(measure(Path(sys.argv[1] if sys.argv[1:] else scratch))))
