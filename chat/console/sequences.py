"""What a terminal sends, cut into keys, pastes and noise. Knows no toolkit and no key's meaning.

A key is the text that a plain terminal would send for it. Replies and reports that nobody asked for (focus, mouse,
device attributes, colours, key releases) are dropped, and so is every sequence that is not known.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Container, Generator, Iterator
from dataclasses import dataclass

ESCAPE = "\x1b"
PASTE_BEGINS, PASTE_ENDS = "\x1b[200~", "\x1b[201~"
NEW_LINE = "\n"
STALE_S = 0.5  # a sequence whose rest has not come by then never will
LONGEST = 64  # no key's sequence is longer

STRING_OPENERS = "]P^_"  # OSC, DCS, PM, APC
STRING_END = re.compile("[\x00-\x1f\x9c]")
CSI_BODY = re.compile("[\x20-\x3f]*")
SHIFT, ALT, CTRL, OTHERS = 1, 2, 4, 0b111000  # super, hyper, meta; the locks do not matter
RELEASED = 3

# Keys of the kitty protocol that have no character: the keypad's, as a plain terminal sends them.
KEYPAD = dict(zip(range(57399, 57417), "0123456789./*-+\r=,")) | dict(
    zip(
        range(57417, 57427),
        ["\x1b[D", "\x1b[C", "\x1b[A", "\x1b[B", "\x1b[5~", "\x1b[6~", "\x1b[H", "\x1b[F", "\x1b[2~", "\x1b[3~"],
    )
)


@dataclass(frozen=True, slots=True)
class Key:
    """One key, as a plain terminal sends it."""

    text: str


@dataclass(frozen=True, slots=True)
class Paste:
    """A bracketed paste, as it is."""

    text: str


class SequenceReader:
    """Cuts what is read into keys and pastes; an unfinished sequence waits for its rest.

    `known` holds the escape sequences that are keys.
    """

    def __init__(self, known: Container[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._known = known
        self._clock = clock
        self._waiting = ""
        self._paste: list[str] | None = None
        self._last_fed = 0.0

    def feed(self, data: str) -> Iterator[Key | Paste]:
        """The keys in what was read."""
        now = self._clock()
        if self._waiting and self._paste is None and now - self._last_fed > STALE_S:
            self._waiting = ""
        self._last_fed = now
        if self._paste is not None and data == "\x03":  # a paste without an end
            self._paste, self._waiting = None, ""
        text, self._waiting = self._waiting + data, ""
        at = 0
        while at < len(text):
            if self._paste is not None:
                at = yield from self._take_paste(self._paste, text, at)
            elif text[at] == ESCAPE:
                at = yield from self._take_escape(text, at)
            else:
                if not _is_noise(text[at]):
                    yield Key(text[at])
                at += 1

    def flush(self) -> Iterator[Key | Paste]:
        """Nothing has come for a moment: a lone Escape was the key, a lone opener of a sequence was none."""
        if self._paste is None and len(self._waiting) <= 2:
            if self._waiting == ESCAPE:
                yield Key(ESCAPE)
            self._waiting = ""

    def _take_paste(self, parts: list[str], text: str, at: int) -> Generator[Key | Paste, None, int]:
        end = text.find(PASTE_ENDS, at)
        if end >= 0:
            self._paste = None
            yield Paste("".join([*parts, text[at:end]]))
            return end + len(PASTE_ENDS)
        # The end mark may have come in part.
        torn = text.rfind(ESCAPE, max(at, len(text) - len(PASTE_ENDS) + 1))
        kept = torn if torn >= 0 else len(text)
        parts.append(text[at:kept])
        self._waiting = text[kept:]
        return len(text)

    def _take_escape(self, text: str, at: int) -> Generator[Key | Paste, None, int]:
        """What begins with the Escape at `at`; returns where the text goes on."""
        if at + 1 == len(text):
            self._waiting = text[at:]
            return len(text)
        opener = text[at + 1]
        if opener == "[":
            end = yield from self._take_csi(text, at)
        elif opener == "O":
            end = yield from self._take_ss3(text, at)
        elif opener in STRING_OPENERS:
            end = _string_end(text, at + 2)
        else:
            yield Key(ESCAPE)
            return at + 1
        if end < 0:
            self._waiting = _to_be_continued(text[at:])
            return len(text)
        return end

    def _take_csi(self, text: str, at: int) -> Generator[Key | Paste, None, int]:
        body = CSI_BODY.match(text, at + 2)
        assert body is not None
        end = body.end()
        if end < len(text) and text[end] == "[" and end == at + 2:  # the Linux console's F1 to F5
            end += 1
        if end >= len(text):
            return -1
        if not "@" <= text[end] <= "~":
            return end  # broken off
        sequence = text[at : end + 1]
        if len(sequence) > LONGEST:
            return end + 1
        if sequence == PASTE_BEGINS:
            self._paste = []
        elif sequence == "\x1b[M":  # a mouse report of the oldest kind: three bytes follow
            return min(end + 4, len(text))
        else:
            yield from map(Key, self._keys_of(sequence, body[0], text[end]))
        return end + 1

    def _take_ss3(self, text: str, at: int) -> Generator[Key | Paste, None, int]:
        end = at + 2
        while end < len(text) and text[end].isdigit():
            end += 1
        if end >= len(text):
            return -1
        if not " " <= text[end] <= "~":
            return end
        if text[at : end + 1] in self._known:
            yield Key(text[at : end + 1])
        return end + 1

    def _keys_of(self, sequence: str, body: str, final: str) -> tuple[str, ...]:
        fields = [[int(one) if one else 0 for one in field.split(":")] for field in _fields(body)]
        if final == "u" and fields:
            return _as_plain(fields[0][0], *_modifiers(fields[1:2]))
        if final == "~" and len(fields) == 3 and fields[0][0] == 27:  # modifyOtherKeys
            return _as_plain(fields[2][0], *_modifiers(fields[1:2]))
        if final == "R" and body:  # a report of the cursor's place
            return ()
        if len(fields) == 2 and len(fields[1]) == 2:  # a known key, with what became of it
            if fields[1][1] == RELEASED:
                return ()
            sequence = f"\x1b[{fields[0][0]};{fields[1][0]}{final}"
            sequence = sequence.replace("[1;1", "[") if final != "~" else sequence.replace(";1~", "~")
        return (sequence,) if sequence in self._known else ()


def _is_noise(character: str) -> bool:
    """Ctrl-Space, C1 controls, and bytes that are no text."""
    return character == "\x00" or "\x80" <= character <= "\x9f" or "\ud800" <= character <= "\udfff"


def _fields(body: str) -> list[str]:
    return body.split(";") if body and not body.strip("0123456789;:") else []


def _modifiers(field: list[list[int]]) -> tuple[int, bool]:
    """The modifiers' bits, and whether the key was let go."""
    numbers = field[0] if field else [1]
    return max(0, numbers[0] - 1), len(numbers) > 1 and numbers[1] == RELEASED


def _as_plain(code: int, modifiers: int, released: bool) -> tuple[str, ...]:
    """A key of one of the keyboard protocols, as a plain terminal sends it; nothing if it has no such key."""
    if released or modifiers & OTHERS or code > 0x10FFFF or 0xD800 <= code < 0xE000:
        return ()
    key = KEYPAD.get(code) or ("" if 0xE000 <= code <= 0xF8FF else chr(code))
    if key == "\r":
        return (NEW_LINE,) if modifiers & (SHIFT | CTRL | ALT) else ("\r",)
    if key == "\t":
        return ("\x1b[Z",) if modifiers & SHIFT else ("\t",)
    if len(key) != 1 or _is_noise(key):
        return (key,) if len(key) > 1 else ()
    if modifiers & CTRL:
        if key == "\x7f":
            key = "\x17"
        elif "@" <= key.upper() <= "_":
            key = chr(ord(key.upper()) & 0x1F)
        else:
            return ()
    elif modifiers & SHIFT:
        key = key.upper()
    return (ESCAPE, key) if modifiers & ALT and key != ESCAPE else (key,)


def _to_be_continued(text: str) -> str:
    """What has to be kept of an unfinished sequence: a reply may go on without end, and nothing in it counts."""
    if len(text) <= LONGEST:
        return text
    if text[1] == "[":
        return text[:LONGEST] + "0"
    return text[:2] + (ESCAPE if text.endswith(ESCAPE) else "")


def _string_end(text: str, at: int) -> int:
    """Where the text goes on behind a control string whose content begins at `at`; -1 if its end has not come."""
    found = STRING_END.search(text, at)
    if found is None:
        return -1
    end = found.start()
    if text[end] in "\x07\x9c":
        return end + 1
    if text[end] == ESCAPE:
        if end + 1 == len(text):
            return -1
        return end + 2 if text[end + 1] == "\\" else end
    return end  # another control breaks it off, and counts
