"""A conversation as the token ids of a prompt that fits. The only place that applies a chat template.

Knows no model and no screen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chat.text.tokenizer import ChatTokenizer
from chat.text.transcript import ASSISTANT, Message, Transcript
from dist.errors import PromptError
from dist.settings import GenerationSettings

ROOM_FOR_REPLY = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedPrompt:
    """A prompt that fits. `left_out` are the oldest exchanges, which it has no room for; `limit` is in tokens."""

    token_ids: tuple[int, ...]
    left_out: tuple[tuple[Message, ...], ...]
    limit: int


def fit(
    transcript: Transcript,
    tokenizer: ChatTokenizer,
    settings: GenerationSettings,
    limit: int | None,
    *,
    use_template: bool,
    refuse: bool = False,
) -> FittedPrompt:
    """The prompt of `transcript`, without its oldest exchanges where they don't fit.

    Prompt and min(max_new_tokens, 64) tokens of reply must fit into max_length and into `limit`, the positions
    that the model has (None: no such limit). Raises PromptError if even the system prompt and the last message
    don't fit, or with `refuse` if anything would have to be left out.
    """
    whole = transcript.for_model()
    top = settings.max_length if limit is None else min(settings.max_length, limit)
    room = min(settings.max_new_tokens, ROOM_FOR_REPLY)

    def without(n: int) -> tuple[int, ...]:
        return prompt_ids(whole.without_oldest(n) if n else whole, tokenizer, use_template)

    ids = without(0)
    low, high = 0, max(0, len(whole.exchanges) - 1)
    if len(ids) + room > top and not refuse and high > 0:
        # The fewest exchanges left out that make it fit: `low` of them are too few, `high` is the most there is.
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if len(without(middle)) + room <= top else (middle, high)
        low, ids = high, without(high)
    if len(ids) + room > top:
        raise _does_not_fit(len(ids), room, top, settings)
    return FittedPrompt(token_ids=ids, left_out=whole.exchanges[:low], limit=top)


def _does_not_fit(length: int, room: int, top: int, settings: GenerationSettings) -> PromptError:
    by_model = top < settings.max_length
    return PromptError(
        "The prompt is too long.",
        f"It has {length:,} tokens; with room for {room} tokens of reply the limit is {top:,} "
        f"({'the positions that the model has' if by_model else 'max_length'}).",
        "Shorten it." if by_model else "Shorten it, or raise max_length.",
    )


def prompt_ids(transcript: Transcript, tokenizer: ChatTokenizer, use_template: bool) -> tuple[int, ...]:
    """The ids that ask for a reply to `transcript`.

    Replies keep the ids they were decoded as where that gives the same text, so that the cache of the turn
    before stays a prefix; tokenising their text anew can come out otherwise. Without a template the messages'
    texts are joined by newlines. Raises PromptError for an empty prompt and for what the template refuses.
    """
    messages = transcript.for_model().messages
    if not messages or not messages[-1].content.strip():
        raise PromptError("The prompt is empty.")
    rendered = _render(messages, tokenizer, use_template)
    whole = tokenizer.encode(rendered, special=not use_template)
    if not rendered.strip() or not whole:
        raise PromptError("The prompt is empty after the chat template.")
    spliced = _splice(messages, rendered, tokenizer, use_template)
    if spliced is None or tokenizer.decode(spliced, False) != tokenizer.decode(whole, False):
        return whole
    return spliced


def _render(messages: Iterable[Message], tokenizer: ChatTokenizer, use_template: bool) -> str:
    if not use_template:
        return "\n".join(message.content for message in messages)
    assert tokenizer.template is not None, "prompts go through a template only where there is one"
    return tokenizer.template.render([(message.role, message.content) for message in messages])


def _splice(
    messages: Sequence[Message], rendered: str, tokenizer: ChatTokenizer, use_template: bool
) -> tuple[int, ...] | None:
    """The ids of `rendered` with the replies' own ids in their places; None where that cannot be.

    The places are found by rendering once more with a mark instead of each reply. If putting the contents back
    does not give `rendered`, the template changes contents or looks at them, and there are no such places.
    """
    kept = {
        at: tokenizer.without_stop(message.token_ids)
        for at, message in enumerate(messages)
        if message.role == ASSISTANT and tokenizer.without_stop(message.token_ids)
    }
    fence = next((mark for mark in map(chr, range(0xE000, 0xF900)) if mark not in rendered), None)
    if not kept or fence is None:
        return None
    marks = {at: f"{fence}{at}{fence}" for at in kept}
    marked = [
        dataclasses.replace(message, content=marks.get(at, message.content)) for at, message in enumerate(messages)
    ]
    try:
        rest = _render(marked, tokenizer, use_template)
    except PromptError:
        return None
    texts: list[str] = []
    for mark in marks.values():
        before, found, rest = rest.partition(mark)
        if not found:
            return None
        texts.append(before)
    contents = [messages[at].content for at in kept]
    if "".join(map("".join, zip(texts, contents, strict=True))) + rest != rendered:
        return None
    ids: list[int] = []
    for text, reply in zip(texts, kept.values(), strict=True):
        ids += (*tokenizer.encode(text, special=not use_template and not ids), *reply)
    return (*ids, *tokenizer.encode(rest))
