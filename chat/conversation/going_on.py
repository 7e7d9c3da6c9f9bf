"""What a reply begins with that is not made from its first token on. Pure; knows no model and no screen.

A reply that was stopped, cut or ended by a limit goes on as if it had not been: behind its last token where each
token is exact by itself (`refine_iter auto`, greedy or with the reply's seed), else behind its last whole block. At
fixed R a block that the limit had cut is made again as a whole, since what follows depends on where blocks begin.
In 16 bits near-ties may fall differently. With `accept`, which depends on where passes begin, nothing is promised.
"""

from __future__ import annotations

from dataclasses import dataclass

from chat.sessions.nodes import Made, Node
from chat.text.prompt import fitting_ids
from chat.text.tokenizer import ChatTokenizer
from chat.text.transcript import ASSISTANT, Message
from dist.errors import UsageError
from dist.settings import GenerationSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """The tokens that a reply begins with.

    before     how many tokens the reply had that this one goes on from: what max_new_tokens counts from
    continues  that reply's node, if it is to be as if it had not been stopped
    seed       what it was sampled with
    left_out   the oldest exchanges that its prompt had no room for
    """

    token_ids: tuple[int, ...]
    before: int
    continues: int | None = None
    seed: int | None = None
    left_out: int = 0


def going_on(reply: Node, tokenizer: ChatTokenizer, settings: GenerationSettings, *, same_tokenizer: bool) -> Begun:
    """The beginning of a reply that goes on where `reply` was left. Raises UsageError if that was whole."""
    made = reply.made
    assert made is not None
    if made.finish == "stop":
        raise UsageError(
            "The reply is complete: there is nothing to continue.",
            "It ended by itself, at a stop token or a stop text.",
            "/edit reply changes it and goes on from there.",
        )
    ids = made.token_ids if same_tokenizer else ()
    if not ids:
        ids = tokenizer.encode(reply.text)
    elif _blocks(made) == (settings.refine_iter, settings.add_eos_length):
        ids = ids[: whole_blocks(made)]
    return Begun(
        token_ids=ids,
        before=len(made.token_ids) or len(ids),
        continues=reply.id,
        seed=made.turn.seed,
        left_out=made.turn.left_out,
    )


def edited(reply: Node, text: str, tokenizer: ChatTokenizer, *, same_tokenizer: bool) -> Begun:
    """The beginning of a reply that goes on from an edited text of `reply`, in its tokens where these fit."""
    made = reply.made
    assert made is not None
    ids = fitting_ids(Message(ASSISTANT, text, made.token_ids if same_tokenizer else ()), tokenizer)
    return Begun(token_ids=ids, before=len(ids), seed=made.turn.seed, left_out=made.turn.left_out)


def _blocks(made: Made) -> tuple[object, object]:
    """Passes and length of the blocks at a reply's end."""
    return made.settings.get("refine_iter"), made.settings.get("add_eos_length")


def whole_blocks(made: Made) -> int:
    """How many of a reply's tokens stand in whole blocks, or were made by a window; the rest was cut by a limit."""
    at, end = made.turn.begun, len(made.token_ids)
    while True:
        values = {**made.turn.settings, **{one.name: one.value for one in made.changes if one.at <= at}}
        if values.get("refine_iter") == "auto":
            at = min((one.at for one in made.changes if one.at > at), default=end)
        elif at + values["add_eos_length"] + 1 <= end:
            at += values["add_eos_length"] + 1
        else:
            return at
        if at >= end:
            return end
