"""The user's config file and where each setting comes from. Knows no command line syntax and no model.

Precedence: command line, config file, the checkpoint's generation_config.json, defaults.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chat.files import config_folder
from dist.errors import ChatError, CheckpointError, UsageError, did_you_mean
from dist.settings import (
    DEFAULT,
    SAMPLING,
    SETTINGS,
    GenerationSettings,
    SettingValue,
    generation_key,
    parse_setting,
)

GENERATION_CONFIG = "generation_config.json"
OF_MODEL = "checkpoint's model type"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """What the config file says: generation settings, and defaults for other options by their names."""

    path: Path
    settings: Mapping[str, SettingValue] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the config file is looked for."""
    return config_folder(environ) / "config.toml"


def read_config(path: Path, readers: Mapping[str, Callable[[object], Any]]) -> ConfigFile:
    """Read and check the config file; an empty one if there is none.

    `readers` turns the value of each key that is no generation setting into an option's value and raises
    ValueError saying what is allowed. Raises UsageError naming the file, the key and what is allowed.
    """
    try:
        text = path.read_bytes().decode()
    except (FileNotFoundError, NotADirectoryError):
        return ConfigFile(path=path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The config file {path} cannot be read.", f"{error}.") from None
    settings: dict[str, SettingValue] = {}
    options: dict[str, Any] = {}
    for key, value in _parse_toml(path, text).items():
        if key in SETTINGS:
            settings[key] = _setting(path, key, value)
        elif key in readers:
            try:
                options[key] = readers[key](value)
            except (TypeError, ValueError) as error:
                raise _bad_value(path, key, value, str(error)) from None
        else:
            raise _unknown_key(path, key, (*SETTINGS, *readers))
    return ConfigFile(path=path, settings=settings, options=options)


def _parse_toml(path: Path, text: str) -> dict[str, Any]:
    try:
        toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ModuleNotFoundError:
        raise UsageError(
            f"The config file {path} cannot be read.",
            "Python 3.10 has no TOML reader of its own and the package tomli is missing.",
            "Run `pip install tomli`, or move the file away.",
        ) from None
    try:
        table: dict[str, Any] = toml.loads(text)
    except ValueError as error:
        raise UsageError(f"The config file {path} is not TOML.", f"{error}.") from None
    except RecursionError:
        raise UsageError(f"The config file {path} cannot be read.", "It is nested too deeply.") from None
    return table


def _setting(path: Path, key: str, value: object) -> SettingValue:
    try:
        read: SettingValue = parse_setting(key, value)
    except UsageError as error:
        raise _bad_value(path, key, value, error.why) from None
    return read


def _bad_value(path: Path, key: str, value: object, allowed: str) -> UsageError:
    return UsageError(f"In the config file {path}, {key} cannot be {value!r}.", allowed)


def _unknown_key(path: Path, key: str, known: tuple[str, ...]) -> UsageError:
    return UsageError(
        f"The config file {path} has an unknown key: {key}.",
        did_you_mean(key, known),
        f"The keys are {', '.join(sorted(known))}.",
    )


def settle(
    given: Mapping[str, SettingValue],
    config: ConfigFile,
    generation_config: Mapping[str, Any] | None,
    of_model: Mapping[str, SettingValue] | None = None,
) -> tuple[GenerationSettings, dict[str, str]]:
    """The settings in force and, by name, where each came from.

    `given` are those of the command line. A key of the checkpoint counts only if nothing above it names the
    setting, and a sampling key only where the checkpoint's `do_sample` is true. `of_model` are defaults that suit
    the kind of model. Raises ChatError.
    """
    raw = generation_config or {}
    values: dict[str, SettingValue] = {}
    origins: dict[str, str] = {}
    for name, row in SETTINGS.items():
        if name in given:
            values[name], origins[name] = given[name], "command line"
        elif name in config.settings:
            values[name], origins[name] = config.settings[name], f"config file {config.path}"
        elif raw.get(key := generation_key(name)) is not None and (
            name not in SAMPLING or raw.get("do_sample") is True
        ):
            values[name], origins[name] = _from_checkpoint(name, key, raw[key]), f"checkpoint's {GENERATION_CONFIG}"
        elif name in (of_model or {}):
            values[name], origins[name] = (of_model or {})[name], OF_MODEL
        else:
            values[name], origins[name] = row.default, DEFAULT
    return GenerationSettings(**values), origins  # type: ignore[arg-type]


def _from_checkpoint(name: str, key: str, value: object) -> SettingValue:
    try:
        read: SettingValue = parse_setting(name, value)
    except ChatError as error:
        raise CheckpointError(
            f"In the checkpoint's {GENERATION_CONFIG}, {key} cannot be {value!r}.",
            error.why,
            f"Correct the file, or give --{name} on the command line.",
        ) from None
    return read
