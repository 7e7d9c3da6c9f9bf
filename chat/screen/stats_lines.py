"""The figures of one reply, on a line or in a table. Knows no terminal and no tokens."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from chat.screen.palette import Palette
from chat.text.cells import cells
from dist.counted import counted
from dist.protocol import Reply

ENDS = {"stop": "a stop token", "length": "the limit", "cancelled": "Ctrl-C"}
SOURCES = {"own": "own guesses", "lookup": "look-up", "earlier": "the earlier reply"}
LISTED = 40  # blocks or passes whose figures are listed one by one


def stats_line(reply: Reply, context_used: int, context_limit: int, palette: Palette, width: int = 80) -> str:
    """A blank line, one quiet line (fewer words where it is narrow, then more lines), a blank line.

    `context_used` of `context_limit` tokens are taken by the conversation after this reply.
    """
    context = f"{context_used:,} of {context_limit:,}"
    how = [f"seed {reply.settings.seed}"] if reply.settings.samples else []
    how += _lossy(reply)
    separator = palette.mark(" · ", ", ")
    whole = [*_spelt_out(reply), f"context {context}", *how]
    short = [*_in_short(reply, palette), f"context {context.replace(' of ', '/')}", *how]
    shorter = [*_in_short(reply, palette), *how]  # the bottom line shows the context too
    lines = next((parts for parts in map(separator.join, (whole, short, shorter)) if cells(parts) < width), None)
    wrapped = _wrapped(short, separator, width) if lines is None else [lines]
    return palette.ansi([Text(), *(palette.text(line, "quiet") for line in wrapped), Text()])


def stats_rows(reply: Reply) -> list[tuple[str, str]]:
    """All figures by the names a reader knows."""
    stats = reply.stats
    rows = [
        ("tokens", f"{stats.tokens:,}, ended by {ENDS[reply.finish]}"),
        ("tokens a second", f"{stats.tokens_per_s:.1f}"),
        ("time to the first tokens", f"{stats.ttft_s:.2f} s"),
        ("decoding time", f"{stats.decode_s:.2f} s"),
        ("forward passes", f"{stats.forwards:,}, and {stats.prefill_forwards:,} for the prompt"),
        ("tokens per forward pass", f"{stats.tokens_per_forward:.2f}"),
    ]
    if stats.iterations:
        blocks = len(stats.iterations)
        rows += [
            (
                "refinement iterations",
                f"{sum(stats.iterations):,} over {counted(blocks, 'block')}: {_listed(stats.iterations)}",
            ),
            ("blocks converged", f"{sum(stats.converged)} of {blocks}"),
        ]
    if stats.accepted:
        mean = sum(stats.accepted) / len(stats.accepted)
        rows.append(("tokens accepted a pass", f"{mean:.2f} on average: {_listed(stats.accepted)}"))
        right = ", ".join(f"{SOURCES.get(name, name)} {count:,}" for name, count in stats.drafts.items())
        rows.append(("of these guessed right", right))
    if reply.settings.samples:
        rows.append(("seed", f"{reply.settings.seed}"))
    return [*rows, *(("not exact", words) for words in _lossy(reply))]


def _lossy(reply: Reply) -> list[str]:
    """A warning that a reply need not be the model's own, naming the setting that allows it."""
    least = reply.settings.accept
    return [] if least is None else [f"lossy: accept {least:g}"]


def _listed(numbers: Iterable[int]) -> str:
    shown = list(numbers)
    return " ".join(map(str, shown[:LISTED])) + (" ..." if len(shown) > LISTED else "")


def _wrapped(parts: list[str], separator: str, width: int) -> list[str]:
    lines: list[str] = []
    for part in parts:
        joined = separator.join([lines[-1], part]) if lines else part
        if lines and cells(joined) < width:
            lines[-1] = joined
        else:
            lines.append(part)
    return lines


def _spelt_out(reply: Reply) -> list[str]:
    stats = reply.stats
    return [
        counted(stats.tokens, "token") + (" (the limit)" if reply.finish == "length" else ""),
        f"{stats.tokens_per_s:.1f} tok/s",
        f"first {'tokens' if stats.accepted else 'block'} {stats.ttft_s:.2f} s",
        f"{counted(stats.forwards, 'forward pass', 'forward passes')}, {stats.tokens_per_forward:.1f} tokens each",
        *_refined(reply),
    ]


def _refined(reply: Reply) -> list[str]:
    """How a window or blocks came about; both, after a change in mid-reply."""
    stats = reply.stats
    parts = []
    if stats.accepted:
        accepted = sum(stats.accepted) / len(stats.accepted)
        parts.append(f"auto: {accepted:.2f} tokens accepted a pass")
    if stats.iterations or not parts:
        made, allowed = sum(stats.iterations), _allowed(reply)
        blocks = counted(len(stats.iterations), "block")
        parts += [
            f"{made:,} of {allowed:,} iterations" if allowed else counted(made, "iteration"),
            f"{sum(stats.converged)} of {blocks} converged",
        ]
    return parts


def _in_short(reply: Reply, palette: Palette) -> list[str]:
    stats = reply.stats
    parts = [
        counted(stats.tokens, "token") + (" (the limit)" if reply.finish == "length" else ""),
        f"{stats.tokens_per_s:.1f} tok/s",
        f"first {stats.ttft_s:.2f} s",
        f"{counted(stats.forwards, 'pass', 'passes')} {palette.mark('×', 'x')} {stats.tokens_per_forward:.1f}",
    ]
    if stats.iterations or not stats.accepted:
        parts.append(f"{sum(stats.converged)}/{len(stats.iterations)} converged")
    return parts


def _allowed(reply: Reply) -> int:
    """Iterations that the settings allow; 0 if they are not known to be a limit.

    A change in mid-reply can leave more passes made than the last setting would have allowed.
    """
    each = reply.settings.refine_iter
    allowed = 0 if each == "auto" else int(each) * len(reply.stats.iterations)
    return allowed if sum(reply.stats.iterations) <= allowed else 0
