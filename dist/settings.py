"""Generation settings: one table of names, kinds and defaults. Knows no command line and no screen.

Options, config file, `/set` with its completion and help, dataclass and wire all read `SETTINGS`. To add a setting:
a row here, a field of `GenerationSettings`, and the code that obeys it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from dist.errors import UsageError
from dist.setting_kinds import EMPTY_OBJECT, MAX_WORD, JsonObject, Kind, OneOf, Real, Text, Texts, Whole, Word

Auto = Literal["auto"]
SettingValue = int | float | str | tuple[str, ...] | None

# Where a value came from that nothing names.
DEFAULT = "default"
MAX_SEED = MAX_WORD
# What counts tokens.
MAX_COUNT = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table: what a setting may be, what it is by default, and a line of help.

    `shorthand`: in a conversation `/NAME VALUE` sets it. `sampling`: it decides among which tokens is drawn; a
    checkpoint's value counts only where its do_sample is true.
    """

    name: str
    default: SettingValue
    kind: Kind
    help: str
    examples: tuple[str, ...]
    shorthand: bool = True
    sampling: bool = False

    @property
    def allowed(self) -> str:
        """What may be given, in words."""
        return self.kind.allowed


SETTINGS: dict[str, Setting] = {
    row.name: row
    for row in (
        Setting(
            name="add_eos_length",
            default=127,
            kind=Whole(0, 4095),
            help="placeholders appended to the prefix; a block is one token longer",
            examples=("0", "3", "7", "15", "31", "127"),
        ),
        Setting(
            name="refine_iter",
            default=2,
            kind=Whole(1, 4096, Word(text="auto", value="auto", meaning="until nothing changes")),
            help="passes over each block",
            examples=("auto", "1", "2", "3", "4", "8"),
        ),
        Setting(
            name="max_new_tokens",
            default=512,
            kind=Whole(1, MAX_COUNT),
            help="most tokens in one reply",
            examples=("64", "128", "256", "512", "1024"),
        ),
        Setting(
            name="max_length",
            default=8192,
            kind=Whole(2, MAX_COUNT),
            help="most tokens of prompt and reply together",
            examples=("2048", "4096", "8192"),
        ),
        Setting(
            name="temperature",
            default=0.0,
            kind=Real(0.0, 10.0, notes={0.0: "greedy"}),
            help="0 decodes greedily; above 0 samples",
            examples=("0", "0.3", "0.7", "1"),
            sampling=True,
        ),
        Setting(
            name="top_k",
            default=0,
            kind=Whole(0, MAX_COUNT, notes={0: "off"}),
            help="sample among the k most likely tokens only",
            examples=("0", "20", "50"),
            sampling=True,
        ),
        Setting(
            name="top_p",
            default=1.0,
            kind=Real(0.0, 1.0, above=True, notes={1.0: "off"}),
            help="sample among the most likely tokens that hold this share of the probability",
            examples=("0.8", "0.9", "0.95", "1"),
            sampling=True,
        ),
        Setting(
            name="seed",
            default=None,
            kind=Whole(0, MAX_SEED, Word(text="none", value=None, meaning="a new one is drawn for every reply")),
            help="makes a sampled reply repeatable",
            examples=("none", "0", "1"),
        ),
        Setting(
            name="decoder",
            default="cached",
            kind=OneOf(("cached", "plain")),
            help="cached uses a KV cache; plain recomputes everything (the reference)",
            examples=("cached", "plain"),
        ),
        Setting(
            name="drafts",
            default="all",
            kind=OneOf(("all", "own")),
            help="what auto tries as the next tokens: all also looks them up in the conversation and in an earlier "
            "reply, own takes what the last pass chose; the text is the same",
            examples=("all", "own"),
        ),
        Setting(
            name="accept",
            default=None,
            kind=Real(0.0, 1.0, above=True, word=Word(text="none", value=None, meaning="auto stays exact")),
            help="lossy: auto also keeps tokens that are not exact yet if they have at least this probability; "
            "a block keeps only these and exact ones; drafts is own",
            examples=("none", "0.7", "0.9"),
        ),
        Setting(
            name="stop",
            default=(),
            kind=Texts(),
            help="texts or special tokens that end a reply where they first appear; not part of the reply",
            examples=('"\\n\\n"', '"User:"', "none"),
            shorthand=False,
        ),
        Setting(
            name="prefill",
            default="",
            kind=Text(),
            help="what every reply begins with; its tokens count as the reply's own",
            examples=("Sure:",),
            shorthand=False,
        ),
        Setting(
            name="logprobs",
            default=None,
            kind=Whole(0, 100, Word(text="none", value=None, meaning="they are left out")),
            help="results hold each token's log-probability and this many of the likeliest tokens; "
            "/why shows as many",
            examples=("none", "0", "5"),
            shorthand=False,
        ),
        Setting(
            name="template_args",
            default=EMPTY_OBJECT,
            kind=JsonObject(),
            help="arguments of the chat template; /set template.NAME VALUE sets one of them",
            examples=('{"enable_thinking": false}', "none"),
            shorthand=False,
        ),
    )
}


SAMPLING = tuple(row.name for row in SETTINGS.values() if row.sampling)


def generation_key(name: str) -> str:
    """The key of transformers' generation_config.json that means the setting `name`."""
    return {"stop": "stop_strings"}.get(name, name)


def parse_setting(name: str, value: object) -> Any:
    """The value of setting `name`, read from text or from a JSON or TOML value.

    Raises UsageError naming the setting, what was given and what is allowed.
    """
    row = SETTINGS[name]
    try:
        return row.kind.parse(value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{name} cannot be {value!r}.", f"It takes {row.allowed}.") from None


def setting_text(value: SettingValue) -> str:
    """A value as it is shown and could be given."""
    if isinstance(value, tuple):
        return " ".join(json.dumps(one, ensure_ascii=False) for one in value) or "none"
    return "none" if value in (None, "", EMPTY_OBJECT) else str(value)


_DEFAULTS: dict[str, Any] = {name: row.default for name, row in SETTINGS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """What decides a reply besides its prompt: a value for each row of `SETTINGS`.

    `temperature` 0 is greedy; then `top_k`, `top_p` and `seed` have no effect.
    Raises UsageError for a value outside its range.
    """

    add_eos_length: int = _DEFAULTS["add_eos_length"]
    refine_iter: int | Auto = _DEFAULTS["refine_iter"]
    max_new_tokens: int = _DEFAULTS["max_new_tokens"]
    max_length: int = _DEFAULTS["max_length"]
    temperature: float = _DEFAULTS["temperature"]
    top_k: int = _DEFAULTS["top_k"]
    top_p: float = _DEFAULTS["top_p"]
    seed: int | None = _DEFAULTS["seed"]
    decoder: str = _DEFAULTS["decoder"]
    drafts: str = _DEFAULTS["drafts"]
    accept: float | None = _DEFAULTS["accept"]
    stop: tuple[str, ...] = _DEFAULTS["stop"]
    prefill: str = _DEFAULTS["prefill"]
    logprobs: int | None = _DEFAULTS["logprobs"]
    template_args: str = _DEFAULTS["template_args"]

    def __post_init__(self) -> None:
        for name in SETTINGS:
            object.__setattr__(self, name, parse_setting(name, getattr(self, name)))

    @property
    def samples(self) -> bool:
        """Whether replies are drawn at random rather than greedy."""
        return self.temperature > 0.0

    def with_value(self, name: str, value: object) -> GenerationSettings:
        """The same settings but for one, which is read from `value`; raises UsageError."""
        return dataclasses.replace(self, **{name: parse_setting(name, value)})

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name, as JSON would give them back."""
        values = dataclasses.asdict(self) | {"template_args": self.template_arguments}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def template_arguments(self) -> dict[str, Any]:
        """What the chat template is given besides the messages."""
        arguments: dict[str, Any] = json.loads(self.template_args)
        return arguments


@lru_cache(maxsize=16)
def pack_settings(settings: GenerationSettings) -> tuple[int, ...]:
    """The settings as signed 64-bit numbers, one a row of the table."""
    return tuple(row.kind.pack(getattr(settings, row.name)) for row in SETTINGS.values())


def unpack_settings(packed: Sequence[int]) -> GenerationSettings:
    """The settings that `pack_settings` packed."""
    return _unpacked(tuple(packed))


@lru_cache(maxsize=16)
def _unpacked(packed: tuple[int, ...]) -> GenerationSettings:
    values = {name: row.kind.unpack(number) for (name, row), number in zip(SETTINGS.items(), packed)}
    return GenerationSettings(**values)
