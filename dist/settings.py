"""Generation settings: one table of names, ranges and defaults. Knows no command line and no screen.

The options, the config file, `/set`, its completion and its help all read `SETTINGS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from dist.errors import UsageError

Auto = Literal["auto"]
SettingValue = int | float | str | None


def _whole(low: int, high: int | None = None) -> Callable[[object], int]:
    """A parser for whole numbers from `low` to `high` (no bound if None); raises ValueError."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise ValueError(value)
        number = int(value)  # type: ignore[call-overload]
        if number < low or (high is not None and number > high):
            raise ValueError(value)
        return int(number)

    return parse


def _real(low: float, high: float, *, open_low: bool = False) -> Callable[[object], float]:
    """A parser for numbers from `low` to `high`; raises ValueError."""

    def parse(value: object) -> float:
        if isinstance(value, bool):
            raise ValueError(value)
        number = float(value)  # type: ignore[arg-type]
        if not low <= number <= high or (open_low and number == low):
            raise ValueError(value)
        return number

    return parse


def _or_word(word: str, result: Any, parse: Callable[[object], Any]) -> Callable[[object], Any]:
    """A parser that also takes one word, which stands for `result`."""

    def either(value: object) -> Any:
        if value == result or (isinstance(value, str) and value.strip().lower() == word):
            return result
        return parse(value)

    return either


def _one_of(*words: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in words:
            raise ValueError(value)
        return str(value)

    return parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table: how a value is read, what it may be, and a line of help."""

    name: str
    default: SettingValue
    allowed: str
    help: str
    parse: Callable[[object], Any]
    examples: tuple[str, ...]


MAX_SEED = 2**63 - 1
# What counts tokens; settings travel to the other ranks as 64-bit numbers.
MAX_COUNT = 2**31 - 1

SETTINGS: dict[str, Setting] = {
    row.name: row
    for row in (
        Setting(
            name="add_eos_length",
            default=127,
            allowed="a whole number from 0 to 4095",
            help="placeholders appended to the prefix; a block is one token longer",
            parse=_whole(0, 4095),
            examples=("0", "3", "7", "15", "31", "127"),
        ),
        Setting(
            name="refine_iter",
            default=2,
            allowed="a whole number from 1 to 4096, or auto (until nothing changes)",
            help="passes over each block",
            parse=_or_word("auto", "auto", _whole(1, 4096)),
            examples=("auto", "1", "2", "3", "4", "8"),
        ),
        Setting(
            name="max_new_tokens",
            default=512,
            allowed="a whole number from 1 to 2147483647",
            help="most tokens in one reply",
            parse=_whole(1, MAX_COUNT),
            examples=("64", "128", "256", "512", "1024"),
        ),
        Setting(
            name="max_length",
            default=8192,
            allowed="a whole number from 2 to 2147483647",
            help="most tokens of prompt and reply together",
            parse=_whole(2, MAX_COUNT),
            examples=("2048", "4096", "8192"),
        ),
        Setting(
            name="temperature",
            default=0.0,
            allowed="a number from 0 (greedy) to 10",
            help="0 decodes greedily; above 0 samples",
            parse=_real(0.0, 10.0),
            examples=("0", "0.3", "0.7", "1"),
        ),
        Setting(
            name="top_k",
            default=0,
            allowed="a whole number from 0 (off) to 2147483647",
            help="sample among the k most likely tokens only",
            parse=_whole(0, MAX_COUNT),
            examples=("0", "20", "50"),
        ),
        Setting(
            name="top_p",
            default=1.0,
            allowed="a number above 0, at most 1 (off)",
            help="sample among the most likely tokens that hold this share of the probability",
            parse=_real(0.0, 1.0, open_low=True),
            examples=("0.8", "0.9", "0.95", "1"),
        ),
        Setting(
            name="seed",
            default=None,
            allowed="a whole number from 0, or none (a new one is drawn for every reply)",
            help="makes a sampled reply repeatable",
            parse=_or_word("none", None, _whole(0, MAX_SEED)),
            examples=("none", "0", "1"),
        ),
        Setting(
            name="decoder",
            default="cached",
            allowed="cached or plain",
            help="cached keeps keys and values; plain recomputes everything (the reference)",
            parse=_one_of("cached", "plain"),
            examples=("cached", "plain"),
        ),
    )
}


def parse_setting(name: str, value: object) -> Any:
    """The value of setting `name`, read from text or from a JSON or TOML value.

    Raises UsageError naming the setting, what was given and what is allowed.
    """
    row = SETTINGS[name]
    try:
        return row.parse(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name} cannot be {value!r}.", f"It takes {row.allowed}.") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """What decides a reply besides its prompt. Names and defaults: design of the decoding rule.

    `temperature` 0 is greedy; then `top_k`, `top_p` and `seed` have no effect.
    Raises UsageError for a value outside its range.
    """

    add_eos_length: int = 127
    refine_iter: int | Auto = 2
    max_new_tokens: int = 512
    max_length: int = 8192
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    decoder: str = "cached"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, parse_setting(field.name, getattr(self, field.name)))

    @property
    def samples(self) -> bool:
        """Whether replies are drawn at random rather than greedy."""
        return self.temperature > 0.0

    def with_value(self, name: str, value: object) -> GenerationSettings:
        """The same settings with one of them read anew from `value`; raises UsageError."""
        return dataclasses.replace(self, **{name: parse_setting(name, value)})

    def as_dict(self) -> dict[str, SettingValue]:
        """Plain values by name, ready for JSON."""
        return dataclasses.asdict(self)
