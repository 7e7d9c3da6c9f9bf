"""How far replies to one prompt agree with the greedy one. Knows no model and no screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dist.protocol import Reply

GREEDY = "greedy, N = 0"
EMPTY = "[empty reply]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A reply that was made. `agreeing` of `judged` places hold the greedy reply's token; None: it was not made.

    `differs` is the first token, from 0, that is another than the greedy reply's, and `mark` where it begins in
    the text; None if there is none.
    """

    label: str
    reply: Reply
    text: str
    agreeing: int | None = None
    judged: int = 0
    differs: int | None = None
    mark: int | None = None


def judged(replies: Mapping[str, Reply], text: Callable[[Sequence[int]], str]) -> Iterator[Compared]:
    """The replies with their texts and how far they agree with the greedy one, if that is among them."""
    greedy = replies.get(GREEDY)
    for label, reply in replies.items():
        agreeing, of = (None, 0) if greedy is None else agreement(reply, greedy)
        differs = None if greedy is None else first_difference(reply, greedy)
        yield Compared(
            label=label,
            reply=reply,
            text=text(reply.token_ids) or EMPTY,
            agreeing=agreeing,
            judged=of,
            differs=differs,
            mark=None if differs is None else len(text(reply.token_ids[:differs])),
        )


def agreement(reply: Reply, greedy: Reply) -> tuple[int, int]:
    """In how many places both hold the same token, of how many; what one of them lacks is no agreement.

    Where the reply was cut at its limit, only the places before the cut count.
    """
    right = greedy.token_ids[: len(reply.token_ids)] if reply.finish == "length" else greedy.token_ids
    equal = sum(one == other for one, other in zip(reply.token_ids, right, strict=False))
    return equal, max(len(reply.token_ids), len(right))


def first_difference(reply: Reply, greedy: Reply) -> int | None:
    """The first place that holds another token than the greedy reply, or ends before or behind it; None: none does.

    A reply that was cut at its limit may end earlier.
    """
    ids, right = reply.token_ids, greedy.token_ids
    for at, (one, other) in enumerate(zip(ids, right, strict=False)):
        if one != other:
            return at
    cut = (reply.finish == "length" and len(ids) < len(right)) or (
        greedy.finish == "length" and len(ids) > len(right)
    )
    return None if len(ids) == len(right) or cut else min(len(ids), len(right))
