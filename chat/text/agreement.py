"""How far replies to one prompt agree with one of them. Knows no model and no screen."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dist.protocol import Reply

GREEDY = "greedy, N = 0"
EMPTY = "[empty reply]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A reply that was made. `agreeing` of `judged` places hold the token of the reply that it is compared with;
    None: there is none to compare with.

    `differs` is the first token, from 0, that is another one, and `mark` where it begins in the text; None if there
    is none. `margin`: by how many logits the token chosen there led the second best, where rounding could decide.
    """

    label: str
    reply: Reply
    text: str
    agreeing: int | None = None
    judged: int = 0
    differs: int | None = None
    mark: int | None = None
    margin: float | None = None


def judged(
    replies: Mapping[str, Reply],
    text: Callable[[Sequence[int], Sequence[str]], str],
    against: str = GREEDY,
    other_prompt: Collection[str] = (),
) -> Iterator[Compared]:
    """The replies with their texts and how far they agree with the one called `against`, if that is among them.

    Those to an `other_prompt` are not compared.
    """
    for label, reply in replies.items():
        right = None if label in other_prompt else replies.get(against)
        agreeing, of = (None, 0) if right is None else agreement(reply, right)
        differs = None if right is None else first_difference(reply, right)
        yield Compared(
            label=label,
            reply=reply,
            text=text(reply.token_ids, reply.settings.stop) or EMPTY,
            agreeing=agreeing,
            judged=of,
            differs=differs,
            mark=None if differs is None else len(text(reply.token_ids[:differs], ())),
        )


def agreement(reply: Reply, other: Reply) -> tuple[int, int]:
    """In how many places both hold the same token, of how many; what one of them lacks is no agreement.

    Where the reply was cut at its limit, only the places before the cut count.
    """
    right = other.token_ids[: len(reply.token_ids)] if reply.finish == "length" else other.token_ids
    equal = sum(one == other for one, other in zip(reply.token_ids, right, strict=False))
    return equal, max(len(reply.token_ids), len(right))


def first_difference(reply: Reply, other: Reply) -> int | None:
    """The first place that holds another token than the other reply, or ends before or behind it; None: none does.

    A reply that was cut at its limit may end earlier.
    """
    ids, right = reply.token_ids, other.token_ids
    for at, (one, its) in enumerate(zip(ids, right, strict=False)):
        if one != its:
            return at
    cut = (reply.finish == "length" and len(ids) < len(right)) or (
        other.finish == "length" and len(ids) > len(right)
    )
    return None if len(ids) == len(right) or cut else min(len(ids), len(right))
