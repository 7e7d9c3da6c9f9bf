"""Text measured in terminal cells: what a character takes, where a line breaks, what is safe to send.

Knows no styles and no terminal.
"""

from __future__ import annotations

import re
from functools import lru_cache

from wcwidth import wcwidth

from chat.text.graphemes import is_boundary, previous_boundary

Span = tuple[int, int]

TAB_STOP = 8  # of a terminal
# Controls, and overrides of the writing direction, which make text read as something else than it is.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str, *, tabs: bool = False) -> str:
    """`text` with control characters and escapes shown (`^[`, `<U+009B>`) instead of sent.

    Tabs are four blanks, unless they are to stay.
    """
    text = text.replace("\r\n", "\n")
    return UNSAFE.sub(_shown, text if tabs else text.replace("\t", "    "))


def escaped(line: str) -> str:
    """A line of JSON that reads the same, with what `visible` would show otherwise written as `\\u` escapes."""
    return UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", line)


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return "^" + chr(code + 0x40)
    if code == 0x7F:
        return "^?"
    if code in (0x2028, 0x2029):
        return "\n"
    if 0xD800 <= code <= 0xDFFF:
        return "\ufffd"
    return f"<U+{code:04X}>"


@lru_cache(maxsize=4096)
def char_cells(character: str) -> int:
    """Columns that one character takes: 0, 1 or 2."""
    return max(0, wcwidth(character))


def cells(text: str) -> int:
    """Columns that `text` takes, character by character (as the live zone is drawn)."""
    return sum(map(char_cells, text))


def _units(text: str) -> list[Span]:
    """`text` cut where a line may break: runs of blanks, words, single wide characters."""
    units: list[Span] = []
    kind = ""
    for at, character in enumerate(text):
        if kind not in ("", " ") and not is_boundary(text, at):
            units[-1] = (units[-1][0], at + 1)
            continue
        new = " " if character == " " else "wide" if char_cells(character) == 2 else "word"
        if units and new == kind and new != "wide":
            units[-1] = (units[-1][0], at + 1)
        else:
            units.append((at, at + 1))
        kind = new
    return units


def wrap_spans(text: str, width: int) -> list[Span]:
    """Where to cut one line of text so that each piece takes at most `width` columns; at least one piece.

    Greedy, so that more text at the end changes the last piece only. Blanks at a cut belong to no piece; a word
    longer than a line is cut anywhere.
    """
    width = max(2, width)
    spans: list[Span] = []
    start, end, used = 0, 0, 0
    for first, last in _units(text):
        size = cells(text[first:last])
        if text[first] == " ":
            if end == 0 and first == 0:  # indentation
                end, used = last, min(size, width // 2)
                start = last - used
            continue
        gap = first - end if end > start else 0
        if used + gap + size <= width:
            start = first if end == start else start
            end, used = last, used + gap + size
            continue
        if end > start:
            spans.append((start, end))
        *full, (start, end) = fold_spans(text[first:last], width, first)
        spans += full
        used = cells(text[start:end])
    spans.append((start, end))
    return spans


def source_spans(text: str, width: int) -> list[Span]:
    """Where to cut one line so that each piece takes at most `width` columns and every character is in one.

    At words where that can be; the blanks at a cut stay at the end of the piece, as far as they fit. A tab goes on
    to the next multiple of eight.
    """
    width = max(TAB_STOP, width)
    spans: list[Span] = []
    start = used = 0
    word = -1  # where the last word of this piece begins, if a cut may come there
    for at, character in enumerate(text):
        if at and (text[at - 1] in " \t" or char_cells(text[at - 1]) == 2) and is_boundary(text, at):
            word = at
        size = TAB_STOP - used % TAB_STOP if character == "\t" else char_cells(character)
        # What is left after a cut at a word may be too wide once more: a tab is wider at a line's beginning.
        while used + size > width and start < at:
            cut = word if word > start and character not in " \t" else at
            if not is_boundary(text, cut):
                cut = previous_boundary(text, cut + 1)
            cut = cut if cut > start else at
            spans.append((start, cut))
            start, used, word = cut, 0, -1
            for earlier in text[cut:at]:
                used += TAB_STOP - used % TAB_STOP if earlier == "\t" else char_cells(earlier)
            size = TAB_STOP - used % TAB_STOP if character == "\t" else char_cells(character)
        used += size
    spans.append((start, len(text)))
    return spans


def fold_spans(text: str, width: int, offset: int = 0) -> list[Span]:
    """Where to cut one line of text at `width` columns, blanks kept; at least one piece."""
    spans: list[Span] = []
    start, used = 0, 0
    for at, character in enumerate(text):
        size = char_cells(character)
        while used + size > width and start < at:  # once more where what is seen as one takes more than a line
            whole = at if is_boundary(text, at) else previous_boundary(text, at + 1)
            cut = whole if whole > start else at
            spans.append((offset + start, offset + cut))
            start, used = cut, cells(text[cut:at])
        used += size
    spans.append((offset + start, offset + len(text)))
    return spans
