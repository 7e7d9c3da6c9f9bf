"""Comparisons of replies as figures, and these as Markdown tables. Knows no model.

A figure's margins are None where there are none.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from matching import Comparison

WHOLE_LEGEND = """
Whole replies, each way by its own drafts. Tokens are compared at the places of B's replies; "up to the first other"
counts them up to and including the first that differs. A draft is what stands after a pass: the margin is B's at
the first place of the first pass after which both ways' drafts differ (a later pass may put it right);
"everywhere" is all places of all passes of B.
"""
SINGLE_LEGEND = """
Single passes: B reads the input of each pass of C, and their choices are compared at the places that C chose then.
"Others" are places at which they differ.
"""
WHOLE = ("N, R", "replies", "the same", "places", "same token", "up to the first other", "of these the same")
WHOLE += ("replies with another draft", "margin at its first place: median", "largest", "everywhere: median")
SINGLE = ("N, R", "passes", "places", "same token", "others", "C has B's second choice", "float32 has B's", "C's")
SINGLE += ("margin at the others: median", "largest", "in float32: median", "largest", "B's everywhere: median")


def figures(cell: str, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """One setting's figures; it is named `cell`."""
    firsts = [one.first for one in comparisons if one.first is not None]
    others = [difference for one in comparisons for difference in one.pass_differences]
    judged = [verdict for one in comparisons for verdict in one.judged]
    same = sum(one.theirs == one.ours for one in comparisons)
    until = sum(one.until for one in comparisons)
    places = sum(len(one.pass_margins) for one in comparisons)
    return {
        "N, R": cell,
        "replies": len(comparisons),
        "replies_same": same,
        "places": sum(len(one.theirs) for one in comparisons),
        "places_same": sum(a == b for one in comparisons for a, b in zip(one.theirs, one.ours)),
        "until": until,
        "until_same": until - (len(comparisons) - same),
        "drafts_differ": len(firsts),
        "first_margins": spread(one.margin for one in firsts),
        "margins": spread(margin for one in comparisons for margin in one.margins),
        "passes": sum(one.passes for one in comparisons),
        "pass_places": places,
        "pass_same": places - len(others),
        "others_runner_up": sum(one.ours == one.runner_up for one in others),
        "judged_theirs": sum(token == one.theirs for one, (token, _) in zip(others, judged)),
        "judged_ours": sum(token == one.ours for one, (token, _) in zip(others, judged)),
        "judged_margins": spread(margin for _, margin in judged),
        "pass_others_margins": spread(one.margin for one in others),
        "pass_margins": spread(margin for one in comparisons for margin in one.pass_margins),
    }


def spread(margins: Iterable[float]) -> dict[str, float] | None:
    """Their median and the largest."""
    known = sorted(margins)
    return {"median": statistics.median(known), "largest": known[-1]} if known else None


def share(part: int, whole: int) -> str:
    """In percent, never rounded up: 100 % means all."""
    return "100 %" if part == whole else f"{math.floor(1e4 * part / whole) / 100:.2f} %"


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Whole replies, then single passes, as Markdown."""
    whole, single = [], []
    for row in rows:
        first, others, judged = (
            [f"{v:.3g}" for v in (row[k] or {}).values()] or ["", ""]
            for k in ("first_margins", "pass_others_margins", "judged_margins")
        )
        everywhere, of_passes = (f"{row[key]['median']:.3g}" for key in ("margins", "pass_margins"))
        cell, count = row["N, R"], row["replies"]
        cells = [cell, count, row["replies_same"], row["places"], share(row["places_same"], row["places"])]
        cells += [row["until"], share(row["until_same"], row["until"]), row["drafts_differ"], *first, everywhere]
        whole.append(cells)
        cells = [cell, row["passes"], row["pass_places"], share(row["pass_same"], row["pass_places"])]
        cells += [row["pass_places"] - row["pass_same"], row["others_runner_up"]]
        cells += [row["judged_theirs"], row["judged_ours"], *others, *judged, of_passes]
        single.append(cells)
    return f"{table(WHOLE, whole)}\n{WHOLE_LEGEND}\n{table(SINGLE, single)}\n{SINGLE_LEGEND}"


def table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
