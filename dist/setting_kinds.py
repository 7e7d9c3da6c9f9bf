"""What a setting may be: how its value is read, which values are allowed, how it travels. Knows no setting by name.

Each kind packs a value into one 64-bit word, so that a change in mid-reply is a few numbers of a fixed count.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from dist.errors import either

MAX_WORD = 2**63 - 1
# Stands for a kind's word (auto, none): no count, and as the bits of a float not a number.
WORD_BITS = -1
NONE, EMPTY_OBJECT = "none", "{}"


class Kind(Protocol):
    """The values that a setting can have."""

    @property
    def allowed(self) -> str:
        """What may be given, in words: `a whole number from 1 to 9`."""
        ...

    def parse(self, value: object) -> Any:
        """The value that text, or a JSON or TOML value, stands for. Raises ValueError or TypeError."""

    def pack(self, value: Any) -> int:
        """A parsed value as a signed 64-bit number."""
        ...

    def unpack(self, packed: int) -> Any:
        """The value that `pack` packed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One word that is allowed beside numbers: what it stands for, and its meaning in a few words."""

    text: str
    value: str | None
    meaning: str

    def means(self, value: object) -> bool:
        return value == self.value or (isinstance(value, str) and value.strip().lower() == self.text)


@dataclass(frozen=True, slots=True)
class Whole:
    """Whole numbers from `low`, at least 0, to `high`. `notes` says what single numbers mean."""

    low: int
    high: int = MAX_WORD
    word: Word | None = None
    notes: Mapping[int, str] = field(default_factory=dict)

    @property
    def allowed(self) -> str:
        upper = "" if self.high == MAX_WORD else f" to {_noted(self.high, self.notes)}"
        return f"a whole number from {_noted(self.low, self.notes)}{upper}{_or(self.word)}"

    def parse(self, value: object) -> int | str | None:
        if self.word is not None and self.word.means(value):
            return self.word.value
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise ValueError(value)
        number = int(value)  # type: ignore[call-overload]
        if not self.low <= number <= self.high:
            raise ValueError(value)
        return int(number)

    def pack(self, value: Any) -> int:
        return WORD_BITS if self.word is not None and value == self.word.value else int(value)

    def unpack(self, packed: int) -> int | str | None:
        return self.word.value if self.word is not None and packed == WORD_BITS else packed


@dataclass(frozen=True, slots=True)
class Real:
    """Numbers from `low`, or with `above` only above it, to `high`. `notes` says what single numbers mean."""

    low: float
    high: float
    above: bool = False
    word: Word | None = None
    notes: Mapping[float, str] = field(default_factory=dict)

    @property
    def allowed(self) -> str:
        low, high = _noted(self.low, self.notes), _noted(self.high, self.notes)
        limits = f"above {low}, at most {high}" if self.above else f"from {low} to {high}"
        return f"a number {limits}{_or(self.word)}"

    def parse(self, value: object) -> float | str | None:
        if self.word is not None and self.word.means(value):
            return self.word.value
        if isinstance(value, bool):
            raise ValueError(value)
        number = float(value)  # type: ignore[arg-type]
        if not self.low <= number <= self.high or (self.above and number == self.low):
            raise ValueError(value)
        return number

    def pack(self, value: Any) -> int:
        if self.word is not None and value == self.word.value:
            return WORD_BITS
        return int(struct.unpack("<q", struct.pack("<d", value))[0])

    def unpack(self, packed: int) -> float | str | None:
        if self.word is not None and packed == WORD_BITS:
            return self.word.value
        return float(struct.unpack("<d", struct.pack("<q", packed))[0])


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few words."""

    words: tuple[str, ...]

    @property
    def allowed(self) -> str:
        return either(self.words)

    def parse(self, value: object) -> str:
        if value not in self.words:
            raise ValueError(value)
        return str(value)

    def pack(self, value: Any) -> int:
        return self.words.index(value)

    def unpack(self, packed: int) -> str:
        return self.words[packed]


@dataclass(frozen=True, slots=True)
class Texts:
    """Any number of texts, none by default. They do not travel: only rank 0 knows text."""

    allowed = 'text, several texts in double quotes ("a" "b"), or none'

    def parse(self, value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            value = () if value == NONE else quoted(value) if value.startswith('"') else (value,)
        if not isinstance(value, (list, tuple)) and value is not None:
            raise TypeError(value)
        texts = tuple(dict.fromkeys(value or ()))
        if not all(isinstance(text, str) and text for text in texts):
            raise ValueError(value)
        return texts

    def pack(self, value: Any) -> int:
        return 0

    def unpack(self, packed: int) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True, slots=True)
class Text:
    """Any text, none by default. It does not travel: only rank 0 knows text."""

    allowed = "text"

    def parse(self, value: object) -> str:
        if value is not None and not isinstance(value, str):
            raise TypeError(value)
        return value or ""

    def pack(self, value: Any) -> int:
        return 0

    def unpack(self, packed: int) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class JsonObject:
    """Names with values, none by default, kept as JSON text in one spelling. They do not travel."""

    allowed = 'a JSON object, {"name": value}'

    def parse(self, value: object) -> str:
        if value in (None, "", NONE):
            value = {}
        values = json.loads(value) if isinstance(value, str) else value
        if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
            raise TypeError(value)
        return json.dumps(values, ensure_ascii=False, sort_keys=True)

    def pack(self, value: Any) -> int:
        return 0

    def unpack(self, packed: int) -> str:
        return EMPTY_OBJECT


# Kinds whose values do not travel with a verdict.
OF_RANK_0 = (Text, Texts, JsonObject)


def quoted(text: str) -> tuple[str, ...]:
    """The texts that stand in double quotes, as JSON writes them, one after the other. Raises ValueError."""
    found: list[str] = []
    while text:
        value, end = json.JSONDecoder().raw_decode(text)
        if not isinstance(value, str):
            raise ValueError(text)
        found.append(value)
        text = text[end:].lstrip(" ,")
    return tuple(found)


def _noted(number: float, notes: Mapping[Any, str]) -> str:
    text = f"{number:g}" if isinstance(number, float) else str(number)
    return f"{text} ({notes[number]})" if number in notes else text


def _or(word: Word | None) -> str:
    return "" if word is None else f", or {word.text} ({word.meaning})"
