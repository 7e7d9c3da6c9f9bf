"""Where one visible character ends and the next begins: accents, flags and families count as one. Knows no screen.

A small part of Unicode's rules (UAX 29): what is typed and seen in a line, not every script's finer points.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

JOINER = "\u200d"
WINDOW = 64  # no visible character is longer; flags in a row are looked at this far back


def previous_boundary(text: str, at: int) -> int:
    """Where the visible character in front of `at` begins."""
    at = min(at, len(text)) - 1
    while at > 0 and _joins(text, at):
        at -= 1
    return max(at, 0)


def next_boundary(text: str, at: int) -> int:
    """Where the visible character at `at` ends."""
    at = max(at, 0) + 1
    while at < len(text) and _joins(text, at):
        at += 1
    return min(at, len(text))


def is_boundary(text: str, at: int) -> bool:
    """Whether `at` lies between two visible characters, or at an end of the text."""
    return at <= 0 or at >= len(text) or not _joins(text, at)


def _joins(text: str, at: int) -> bool:
    """Whether the character at `at`, which is not the first, belongs to the one before it."""
    here, before = text[at], text[at - 1]
    if here < "\u0300" or before == "\n":
        return False
    if _extends(here):
        return True
    if before == JOINER:
        return at > 1 and ord(here) >= 0x2190 and text[at - 2] != "\n"
    if _is_flag_half(here):
        halves = 0
        while halves < min(at, WINDOW) and _is_flag_half(text[at - 1 - halves]):
            halves += 1
        return halves % 2 == 1
    return _is_syllable_tail(here) and _is_syllable(before)


@lru_cache(maxsize=4096)
def _extends(character: str) -> bool:
    """Combining marks, variation selectors, skin tones, tags, the joiner."""
    code = ord(character)
    if character == JOINER or 0x1F3FB <= code <= 0x1F3FF or 0xE0020 <= code <= 0xE007F:
        return True
    return unicodedata.category(character) in ("Mn", "Me", "Mc")


def _is_flag_half(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _is_syllable_tail(character: str) -> bool:
    """Vowels and final consonants of Hangul written as parts."""
    return "\u1160" <= character <= "\u11ff"


def _is_syllable(character: str) -> bool:
    return "\u1100" <= character <= "\u11ff" or "\uac00" <= character <= "\ud7a3"
