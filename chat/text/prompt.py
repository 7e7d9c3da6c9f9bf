"""A conversation as the token ids of a prompt that fits. The only place that applies a chat template.

Knows no model and no screen.
"""

from __future__ import annotations

import dataclasses
import hashlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chat.text.running_text import TORN
from chat.text.tokenizer import ChatTokenizer
from chat.text.transcript import ASSISTANT, Message, Transcript
from dist.errors import PromptError
from dist.settings import MAX_COUNT, GenerationSettings

ROOM_FOR_REPLY = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedPrompt:
    """A prompt that fits. `left_out` are the oldest exchanges, which it has no room for; `limit` is in tokens.

    `begun` are the tokens that the reply begins with.
    """

    token_ids: tuple[int, ...]
    begun: tuple[int, ...] = ()
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
    max_length_from: str = "",
    goes_on: Sequence[int] | None = None,
) -> FittedPrompt:
    """The prompt of `transcript`, without its oldest exchanges where they don't fit.

    Prompt and min(max_new_tokens, 64) tokens of reply must fit into max_length and into `limit`, the positions
    that the model has (None: no such limit). Raises PromptError if even the system prompt and the last message
    don't fit, or with `refuse` if anything would have to be left out; `max_length_from` says where that comes from.
    The reply begins with the tokens in `goes_on`, which need room for one more, by default with the prefill.
    """
    whole = transcript.for_model()
    top = settings.max_length if limit is None else min(settings.max_length, limit)
    begun = tuple(goes_on) if goes_on is not None else prefill_ids(settings, tokenizer)
    room = len(begun) + (min(settings.max_new_tokens - len(begun), ROOM_FOR_REPLY) if goes_on is None else 1)
    tried: dict[int, tuple[int, ...]] = {}

    def without(n: int) -> tuple[int, ...]:
        if n not in tried:
            tried[n] = prompt_ids(
                whole.without_oldest(n) if n else whole, tokenizer, use_template, settings.template_arguments
            )
        return tried[n]

    most = 0 if refuse else max(0, len(whole.exchanges) - 1)
    out = _fewest_left_out(whole, tokenizer, top - room, most, lambda n: len(without(n)))
    if len(without(out)) + room > top:
        raise _does_not_fit(len(without(out)), room, top, settings, max_length_from)
    highest = max(without(out))
    if tokenizer.rows is not None and highest >= tokenizer.rows:
        token = tokenizer.decode([highest], False)
        raise PromptError(
            f"The model has no embedding for {token}.", "It does not stand for text.", "Leave it out."
        )
    return FittedPrompt(token_ids=without(out), begun=begun, left_out=whole.exchanges[:out], limit=top)


def prefill_ids(settings: GenerationSettings, tokenizer: ChatTokenizer) -> tuple[int, ...]:
    """What every reply begins with. Raises PromptError if it leaves no room for more."""
    ids = tokenizer.encode(settings.prefill) if settings.prefill else ()
    if len(ids) >= settings.max_new_tokens:
        raise PromptError(
            "The prefill leaves no room for a reply.",
            f"It has {len(ids):,} tokens, and a reply may have {settings.max_new_tokens:,} (max_new_tokens).",
            "Shorten it, or raise max_new_tokens.",
        )
    return ids


def most_tokens(settings: GenerationSettings, before: int) -> GenerationSettings:
    """The settings for a reply that goes on after `before` tokens: if max_new_tokens is used up, as many again."""
    share = settings.max_new_tokens
    return dataclasses.replace(settings, max_new_tokens=min(share * (before // share + 1), MAX_COUNT))


def _fewest_left_out(
    transcript: Transcript, tokenizer: ChatTokenizer, room: int, most: int, length: Callable[[int], int]
) -> int:
    """The fewest exchanges to leave out so that `length` of the rest is at most `room`; `most` if none is enough.

    A long conversation is not rendered whole to find out: the tokens of its messages tell where to look.
    """
    if most == 0:
        return 0
    if sum(len(one.token_ids) for one in transcript.messages) <= room and length(0) <= room:
        return 0
    sizes = _sizes(transcript, tokenizer, room)
    guess = min(most, len(transcript.exchanges) - len(sizes))
    over = max(0, length(guess) - sum(sizes)) // max(1, len(sizes))  # what the template adds to an exchange
    taken = 0
    for at, size in enumerate(sizes):
        taken += size + over
        if taken > room:
            guess = min(most, len(transcript.exchanges) - at)
            break
    # From the guess on in ever larger steps, until one number fits and one below it does not.
    step, low, high = 1, guess - 1, guess
    while high < most and length(high) > room:
        low, high = high, min(most, high + step)
        step *= 2
    while low >= 0 and length(low) <= room:
        low, high = max(-1, low - step), low
        step *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if length(middle) <= room else (middle, high)
    return high


def _sizes(transcript: Transcript, tokenizer: ChatTokenizer, room: int) -> list[int]:
    """Tokens of the texts of the newest exchanges, the newest first, as many as can have room."""
    sizes: list[int] = []
    total = 0
    for group in reversed(transcript.exchanges):
        size = sum(len(one.token_ids) or len(tokenizer.encode(one.content)) for one in group)
        total += size
        if sizes and total > room:
            break
        sizes.append(size)
    return sizes


def _does_not_fit(length: int, room: int, top: int, settings: GenerationSettings, source: str) -> PromptError:
    by_model = top < settings.max_length
    by_setting = f"max_length, from the {source}" if source.startswith("checkpoint") else "max_length"
    return PromptError(
        "The prompt is too long.",
        f"It has {length:,} tokens; with room for {room} tokens of reply the limit is {top:,} "
        f"({'the positions that the model has' if by_model else by_setting}).",
        "Shorten it." if by_model else "Shorten it, or raise max_length.",
    )


def prompt_ids(
    transcript: Transcript,
    tokenizer: ChatTokenizer,
    use_template: bool,
    template_args: Mapping[str, Any] | None = None,
) -> tuple[int, ...]:
    """The ids that ask for a reply to `transcript`.

    Replies keep the ids they were decoded as where that gives the same text, so that the cache of the turn
    before stays a prefix; tokenizing their text again can come out otherwise. Without a template the messages'
    texts are joined by newlines. Raises PromptError for an empty prompt and for what the template refuses.
    """
    messages = transcript.for_model().messages
    if not messages or not messages[-1].content.strip():
        raise PromptError("The prompt is empty.")

    def render(some: Sequence[Message]) -> str:
        return _render(some, tokenizer, use_template, template_args or {})

    rendered = render(messages)
    if not rendered.strip():
        raise PromptError("The prompt is empty after the chat template.")
    spliced, text = None, None
    for ids_of in (_ids, fitting_ids):
        spliced = _splice(messages, rendered, render, tokenizer, use_template, ids_of)
        text = None if spliced is None else tokenizer.decode(spliced, False)
        if spliced is None or text == rendered:
            break
    if spliced is not None and text == rendered:
        return spliced
    whole = tokenizer.encode(rendered, special=not use_template)
    if not whole:
        raise PromptError("The prompt is empty after the chat template.")
    # A tokenizer that changes what it reads changes both in the same way.
    return spliced if spliced is not None and text == tokenizer.decode(whole, False) else whole


def _render(
    messages: Iterable[Message], tokenizer: ChatTokenizer, use_template: bool, template_args: Mapping[str, Any]
) -> str:
    if not use_template:
        return "\n".join(message.content for message in messages)
    assert tokenizer.template is not None, "prompts go through a template only where there is one"
    return tokenizer.template.render(
        [(message.role, message.content) for message in messages], arguments=template_args
    )


def _ids(message: Message, tokenizer: ChatTokenizer) -> tuple[int, ...]:
    return tokenizer.without_stop(message.token_ids)


def fitting_ids(message: Message, tokenizer: ChatTokenizer) -> tuple[int, ...]:
    """The ids of a message's text: its own as far as they give it, then those of the rest of it."""
    own = tokenizer.without_stop(message.token_ids)
    low, high = 0, len(own)
    while low < high:
        middle = (low + high + 1) // 2
        fits = message.content.startswith(tokenizer.decode(own[:middle]).rstrip(TORN))
        low, high = (middle, high) if fits else (low, middle - 1)
    while low and not message.content.startswith(tokenizer.decode(own[:low])):
        low -= 1
    rest = message.content[len(tokenizer.decode(own[:low])) :]
    return (*own[:low], *(tokenizer.encode(rest) if rest else ()))


def _splice(
    messages: Sequence[Message],
    rendered: str,
    render: Callable[[Sequence[Message]], str],
    tokenizer: ChatTokenizer,
    use_template: bool,
    ids_of: Callable[[Message, ChatTokenizer], tuple[int, ...]],
) -> tuple[int, ...] | None:
    """The ids of `rendered` with the replies' own ids in their places; None where that cannot be.

    The places are found by rendering once more with a mark instead of each reply. If putting the contents back
    does not give `rendered`, the template changes contents or looks at them, and there are no such places.
    """
    kept = {
        at: ids_of(message, tokenizer)
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
        rest = render(marked)
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


def prompt_digest(token_ids: Sequence[int]) -> str:
    """What tells one prompt from another: the digest of its ids as little-endian 32-bit words."""
    words = array("I", token_ids)
    if words.itemsize != 4 or array("H", [1]).tobytes() != b"\1\0":
        return hashlib.sha256(b"".join(one.to_bytes(4, "little") for one in token_ids)).hexdigest()[:16]
    return hashlib.sha256(words.tobytes()).hexdigest()[:16]
