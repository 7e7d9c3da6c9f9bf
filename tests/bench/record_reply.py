"""An animated SVG of a reply while it is refined: what a real terminal showed, frame by frame, slowed down.

`python tests/bench/record_reply.py OUT.svg [--prompt TEXT] [options of the program]` starts the program on the
embedded model, types the prompt, and writes each line with the times at which it stood there, times `SLOWED`.
"""

from __future__ import annotations

import argparse
import html
import tempfile
import time
from pathlib import Path

import paths
from program import READY_S, environment
from pty_screen import CTRL_D, PtyScreen

COLUMNS, ROWS, SHOWN = 88, 24, 13
CELL_WIDTH, LINE_HEIGHT, FONT_SIZE, MARGIN = 8.4, 19, 14, 14
POLL_S, HOLD_S = 0.01, 4.0
# A small model refines faster than one can follow.
SLOWED = 3
PROMPT = "Write a short poem about rain."
STYLE = """
text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:#24292f;white-space:pre}
rect.s{fill:#ffffff;stroke:#d0d7de}.dim{fill:#6e7781}.red{fill:#cf222e}.green{fill:#116329}.brown{fill:#7d4e00}
.blue{fill:#0550ae}.magenta{fill:#8250df}.cyan{fill:#1b7c83}.b{font-weight:bold}.u{text-decoration:underline}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}rect.s{fill:#0d1117;stroke:#30363d}.dim{fill:#8b949e}
.red{fill:#ff7b72}.green{fill:#7ee787}.brown{fill:#e3b341}.blue{fill:#79c0ff}.magenta{fill:#d2a8ff}
.cyan{fill:#76e3ea}}
"""
Spans = tuple[tuple[int, str, str], ...]


def record(prompt: str, options: list[str]) -> tuple[list[tuple[float, list[Spans]]], float]:
    """(seconds, lines from the prompt on) of each screen that differed from the one before, and when it ended."""
    with tempfile.TemporaryDirectory() as home:
        command = ["bash", str(paths.ROOT / "run_chat.sh"), "1", *options]
        # The embedded model is where it was prepared; sessions and logs are not the user's.
        where = environment(Path(home), XDG_DATA_HOME=str(Path.home() / ".local/share"), OMP_NUM_THREADS="2")
        with PtyScreen(command, columns=COLUMNS, rows=ROWS, env=where, timeout=READY_S) as talk:
            talk.wait_for("Alt-Enter new line")
            frames: list[tuple[float, list[Spans]]] = []
            head = next(row for row, line in enumerate(talk.lines) if line.startswith("›"))
            began = time.monotonic()
            talk.type(prompt)
            talk.send("\r")
            while "/s · first " not in talk.text:
                lines = [tuple((at, text, css(style)) for at, text, style in line) for line in talk.spans[head:]]
                if not frames or lines != frames[-1][1]:
                    frames.append((SLOWED * (time.monotonic() - began), lines))
                time.sleep(POLL_S)
            time.sleep(0.3)
            ended = SLOWED * (time.monotonic() - began)
            frames.append(
                (ended, [tuple((at, text, css(style)) for at, text, style in line) for line in talk.spans[head:]])
            )
            talk.send(CTRL_D)
            talk.wait_end()
    return frames, ended


def css(style) -> str:
    """The classes of a cell's style."""
    colour = {"default": "", "brightblack": "dim", "white": ""}.get(style.fg, style.fg.removeprefix("bright"))
    names = [colour, "b" * style.bold, "u" * style.underscore]
    return " ".join(name for name in names if name)


def svg(frames: list[tuple[float, list[Spans]]], ended: float) -> str:
    """The frames as one picture; without animation it shows the last one."""
    total = ended + HOLD_S
    width, height = COLUMNS * CELL_WIDTH + 2 * MARGIN, SHOWN * LINE_HEIGHT + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        'aria-label="A reply while it is refined">',
        f"<style>{STYLE}</style>",
        f'<rect class="s" x=".5" y=".5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="8"/>',
    ]
    for row in range(SHOWN):
        for start, end, spans in _stretches(frames, row, total):
            if spans:
                parts.append(_line(row, spans, start / total, end / total, total))
    return "\n".join([*parts, "</svg>\n"])


def _stretches(frames: list[tuple[float, list[Spans]]], row: int, total: float) -> list[tuple[float, float, Spans]]:
    """From when to when a row showed what."""
    found: list[tuple[float, float, Spans]] = []
    for index, (at, lines) in enumerate(frames):
        end = frames[index + 1][0] if index + 1 < len(frames) else total
        if found and found[-1][2] == lines[row]:
            found[-1] = found[-1][0], end, lines[row]
        else:
            found.append((at, end, lines[row]))
    return found


def _line(row: int, spans: Spans, start: float, end: float, total: float) -> str:
    y = MARGIN + row * LINE_HEIGHT + FONT_SIZE
    texts = "".join(
        f'<text x="{MARGIN + at * CELL_WIDTH:.1f}" y="{y}" textLength="{len(text) * CELL_WIDTH:.1f}"'
        f"{_class(name)}>{html.escape(text)}</text>"
        for at, text, name in spans
        if text.strip()
    )
    if end >= 1 and start <= 0:
        return f"<g>{texts}</g>"
    times = [0.0, start, end] if end < 1 else [0.0, start]
    values = ["hidden", "visible", "hidden"][: len(times)]
    if start <= 0:
        times, values = times[1:], values[1:]
    still = "visible" if end >= 1 else "hidden"
    return (
        f'<g visibility="{still}"><animate attributeName="visibility" calcMode="discrete" '
        f'dur="{total:.2f}s" repeatCount="indefinite" values="{";".join(values)}" '
        f'keyTimes="{";".join(f"{at:.4f}" for at in times)}"/>{texts}</g>'
    )


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompt", default=PROMPT)
    options, program_options = parser.parse_known_args()
    frames, ended = record(options.prompt, program_options)
    options.out.write_text(svg(frames, ended), encoding="utf-8")
    print(f"{len(frames)} frames, {ended:.1f} s, {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
