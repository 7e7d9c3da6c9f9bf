"""How far replies to one prompt agree with the greedy one. Knows no model and no screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dist.protocol import Reply

GREEDY = "greedy, N = 0"
EMPTY = "[empty reply]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A reply that was made. `agreeing` of `judged` places hold the greedy reply's token; None: it was not made."""

    label: str
    reply: Reply
    text: str
    agreeing: int | None = None
    judged: int = 0


def judged(replies: Mapping[str, Reply], text: Callable[[Sequence[int]], str]) -> Iterator[Compared]:
    """The replies with their texts and how far they agree with the greedy one, if that is among them."""
    greedy = replies.get(GREEDY)
    for label, reply in replies.items():
        agreeing, of = (None, 0) if greedy is None else agreement(reply, greedy)
        yield Compared(label=label, reply=reply, text=text(reply.token_ids) or EMPTY, agreeing=agreeing, judged=of)


def agreement(reply: Reply, greedy: Reply) -> tuple[int, int]:
    """In how many places both hold the same token, of how many; what one of them lacks is no agreement.

    Where the reply was cut at its limit, only the places before the cut count.
    """
    right = greedy.token_ids[: len(reply.token_ids)] if reply.finish == "length" else greedy.token_ids
    equal = sum(one == other for one, other in zip(reply.token_ids, right, strict=False))
    return equal, max(len(reply.token_ids), len(right))
