"""Draws the curves that tests/hosts/test_soak.py leaves: python tests/bench/plot_soak.py CURVES.json PLOT.svg."""

from __future__ import annotations

import json
import sys
from pathlib import Path

WIDTH, HEIGHT, LEFT, BASE = 720, 240, 60, 200
COLOURS = ("#1f77b4", "#d62728", "#2ca02c")


def line(values: list[int], top: float, colour: str, name: str) -> str:
    step = (WIDTH - LEFT - 20) / max(1, len(values) - 1)
    points = " ".join(
        f"{LEFT + at * step:.1f},{BASE - value / top * (BASE - 20):.1f}" for at, value in enumerate(values)
    )
    return f'<polyline fill="none" stroke="{colour}" points="{points}"><title>{name}</title></polyline>'


def main() -> None:
    curves = json.loads(Path(sys.argv[1]).read_text())
    memory = {rank: [turn[rank]["memory"] // 1024 for turn in curves] for rank in curves[0]}
    top = 1.05 * max(max(values) for values in memory.values())
    drawn = [line(values, top, COLOURS[int(rank) % 3], f"rank {rank}") for rank, values in memory.items()]
    labels = [
        f'<text x="4" y="{BASE - share * (BASE - 20) / top + 4:.0f}">{share} MiB</text>'
        for share in range(0, int(top), 100)
    ]
    foot = f"own memory of each rank, {len(curves)} turns; files, sockets, threads at the end: " + "; ".join(
        f"rank {rank} {turn['files']}, {turn['sockets']}, {turn['threads']}" for rank, turn in curves[-1].items()
    )
    Path(sys.argv[2]).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-size="11" '
        f'font-family="sans-serif"><rect width="100%" height="100%" fill="white"/>{"".join(drawn)}{"".join(labels)}'
        f'<text x="{LEFT}" y="{BASE + 24}">{foot}</text></svg>\n'
    )


if __name__ == "__main__":
    main()
