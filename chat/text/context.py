"""What fills the context: the tokens of each message in the prompt, and where they stand. Knows no model."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from chat.text.prompt import FittedPrompt
from chat.text.tokenizer import ChatTokenizer
from chat.text.transcript import ASSISTANT, Message, Transcript


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one message takes of the context. `end` is how many tokens of the prompt lead up to its end.

    `left_out`: the prompt has no room for it.
    """

    message: Message
    tokens: int
    end: int
    left_out: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The conversation in tokens: `total` of `limit`, of which `template` belong to no message."""

    shares: tuple[Share, ...]
    total: int
    template: int
    limit: int


def context(transcript: Transcript, fitted: FittedPrompt, tokenizer: ChatTokenizer) -> Context:
    """What fills the context after `transcript`, where `fitted` is the prompt that asked for its last message."""
    messages = transcript.for_model().messages
    out = {id(message) for group in fitted.left_out for message in group}
    last = messages[-1] if messages and messages[-1].role == ASSISTANT else None
    ids = (*fitted.token_ids, *(last.token_ids if last is not None else ()))
    words = _words(ids)
    shares: list[Share] = []
    end = 0
    for message in messages:
        own = message.token_ids or tokenizer.encode(message.content)
        left_out = id(message) in out
        if not left_out:
            at = _find(words, own, end)
            end = min(len(ids), (end if at is None else at) + len(own))
        shares.append(Share(message=message, tokens=len(own), end=end, left_out=left_out))
    taken = sum(share.tokens for share in shares if not share.left_out)
    return Context(shares=tuple(shares), total=len(ids), template=max(0, len(ids) - taken), limit=fitted.limit)


def _words(ids: Sequence[int]) -> bytes:
    return array("Q", ids).tobytes()


def _find(words: bytes, part: Sequence[int], start: int) -> int | None:
    """Where `part` stands in the ids that `words` are, from place `start` on; None if nowhere."""
    wanted, at = _words(part), start * 8 - 1
    while (at := words.find(wanted, at + 1)) >= 0:
        if at % 8 == 0:
            return at // 8
    return None
