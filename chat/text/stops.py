"""Where a stop text ends a reply: at the first place, wherever tokens and passes begin. Knows no model.

Of several texts the one counts that is complete first. Special tokens have no text; they count as tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chat.text.running_text import LONGEST_CHARACTER, TORN
from chat.text.tokenizer import ChatTokenizer
from dist.protocol import EndsAt

# Tokens before those that a text can stand in, so that blanks at the seam are right.
MARGIN = 8


def first_in(text: str, stops: Sequence[str], after: int = 0) -> tuple[int, str] | None:
    """Where the stop text begins that is complete first behind character `after`, and which it is."""
    found = [
        (at + len(stop), at, stop) for stop in stops if (at := text.find(stop, max(0, after - len(stop) + 1))) >= 0
    ]
    return min(found)[1:] if found else None


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a stop text."""
    longest = max(map(len, stops), default=1) - 1
    return next(
        (
            n
            for n in range(min(longest, len(text)), 0, -1)
            if text.endswith(tuple(one[:n] for one in stops if len(one) > n))
        ),
        0,
    )


def stop_finder(tokenizer: Callable[[], ChatTokenizer]) -> EndsAt:
    """What finds stop texts for an engine; `tokenizer` is asked for when there are some."""

    def find(ids: Sequence[int], new: int, stops: tuple[str, ...]) -> int | None:
        return _end(tokenizer(), ids, new, stops)

    return find


def _end(tokenizer: ChatTokenizer, ids: Sequence[int], new: int, stops: Sequence[str]) -> int | None:
    specials = {tokenizer.specials[stop] for stop in stops if stop in tokenizer.specials}
    added = ids[len(ids) - new :]
    at = next((n for n, token in enumerate(added, 1) if token in specials), new + 1)
    reach = LONGEST_CHARACTER * max(map(len, stops)) + MARGIN
    window = ids[max(0, len(ids) - new - reach) :]
    known = len(window) - new
    seen = len(_text(tokenizer, window[:known]).rstrip(TORN))
    if first_in(_text(tokenizer, window), stops, seen) is not None:
        texts = ((n, _text(tokenizer, window[: known + n])) for n in range(1, new + 1))
        at = min(at, next((n for n, text in texts if first_in(text, stops, seen) is not None), at))
    return at if at <= new else None


def ending(tokenizer: ChatTokenizer, ids: Sequence[int], stops: Sequence[str]) -> tuple[str, str] | None:
    """The text of a reply that a stop text ended with its last token, and that text; None for another end."""
    if not ids or not stops or ids[-1] in tokenizer.stop_ids:
        return None
    text = _text(tokenizer, ids)
    found = first_in(text, stops, len(_text(tokenizer, ids[:-1]).rstrip(TORN)))
    if found is not None:
        return text[: found[0]], found[1]
    stop = next((one for one in stops if tokenizer.specials.get(one) == ids[-1]), None)
    return None if stop is None else (text, stop)


def reply_text(tokenizer: ChatTokenizer, ids: Sequence[int], stops: Sequence[str] = ()) -> str:
    """The text of a reply or of a part of one, without what ended it."""
    found = ending(tokenizer, ids, stops)
    return _text(tokenizer, ids) if found is None else found[0]


def _text(tokenizer: ChatTokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode(tokenizer.without_stop(ids))
