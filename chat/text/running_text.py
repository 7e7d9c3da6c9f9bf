"""Token ids that come in pieces, decoded as they come. Knows no screen.

The tokenizer is a function from ids to text. Pieces are decoded together with the piece before them, so that blanks
at the seams are right and no piece costs more because the reply is long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

Decode = Callable[[Sequence[int]], str]

TORN = "\ufffd"  # what a decoder gives for half a character
LONGEST_CHARACTER = 4  # in tokens
NEIGHBOURS = 16  # tokens before others with which these have the text that they have after all of them


class RunningText:
    """The text of a reply so far. Half a character is held back until its other half comes.

    `held_back` says how many characters at the end of a text are to wait for what follows them.
    """

    def __init__(self, decode: Decode, held_back: Callable[[str], int] = lambda text: 0) -> None:
        self._decode = decode
        self._held_back = held_back
        self._window: tuple[int, ...] = ()  # the newest ids, those whose text may still change included
        self._seen = 0  # characters of the window's text that were given out
        self._text = ""  # everything that was given out

    @property
    def last_id(self) -> int | None:
        return self._window[-1] if self._window else None

    def extend(self, ids: tuple[int, ...]) -> str:
        """Take the next ids; the text that became certain with them."""
        window = self._window + ids
        text = self._decode(window)
        # A lone \r may be half of a line end.
        certain = len(text.rstrip(TORN + "\r"))
        certain -= self._held_back(text[:certain])
        new = text[self._seen : certain]
        self._text += new
        self._window, self._seen = window, max(self._seen, certain)
        if certain == len(text) and ids:
            tail = self._decode(ids)
            if tail.strip() and text.endswith(tail):
                self._window, self._seen = ids, len(tail)
        return new

    def finish(self, ids: Sequence[int], text: str | None = None) -> str:
        """What is left of the whole reply, whose ids are given once more, and its `text` if it is not theirs."""
        text = self._decode(ids) if text is None else text
        new = text[len(self._text) :]
        self._text = text if text.startswith(self._text) else self._text + new
        return new

    @property
    def text(self) -> str:
        return self._text


def text_with(decode: Decode, ids: Sequence[int], text: str, more: Sequence[int]) -> str:
    """The text of `ids` and `more` in a row, where `text` is that of `ids`, which are not all decoded again."""
    end = ids[-NEIGHBOURS:]
    before, both = decode(end), decode((*end, *more))
    # What is all blank, or ends in half a character, may have another text with what follows.
    if before.strip() and not before.endswith(TORN) and text.endswith(before) and both.startswith(before):
        return text + both[len(before) :]
    return decode((*ids, *more))


class TokenTexts:
    """Texts of single tokens, each in the company of its neighbour: some tokenizers drop a lone token's blank."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._pairs: dict[tuple[int | None, int], str] = {}

    def pieces(self, ids: Sequence[int], before: int | None) -> Iterator[tuple[int, int, str]]:
        """All of `ids` as (where a piece begins, of how many tokens it is, its text), as `at` gives them."""
        at = 0
        while at < len(ids):
            text, size = self.at(ids, at, before)
            yield at, size, text
            at += size

    def at(self, ids: Sequence[int], at: int, before: int | None) -> tuple[str, int]:
        """Text of token `at`, with what follows if it holds part of a character only, and of how many tokens.

        "" for a token that has no text, or none yet. `before` is the token in front of `ids`.
        """
        text = self._after(ids[at - 1] if at else before, ids[at])
        if TORN not in text:
            return text, 1
        for size in range(2, LONGEST_CHARACTER + 1):
            joined = self._decode(ids[at : at + size])
            if TORN not in joined:
                return joined, min(size, len(ids) - at)
        return "", 1

    def _after(self, before: int | None, token: int) -> str:
        key = (before, token)
        text = self._pairs.get(key)
        if text is None:
            lead = "" if before is None else self._decode((before,))
            both = "" if before is None or TORN in lead else self._decode((before, token))
            text = both[len(lead) :] if both and both.startswith(lead) else self._decode((token,))
            self._pairs[key] = text
        return text
