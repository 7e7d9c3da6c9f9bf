"""The command line: argv becomes a frozen LaunchOptions, or one clear refusal. Knows no model and no prompt text.

Parsing, both spellings, "did you mean" and `--help` all read the one table `OPTIONS`.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from chat.start.config_file import ConfigFile, config_path, read_config, settle
from chat.start.help_page import help_text
from chat.start.option_checks import STDIN, check_output_file, check_prompts_file, check_together
from chat.start.option_table import CONFIG_READERS, OPTIONS, Option
from chat.terminal.streams import write_out
from dist.errors import UsageError
from dist.settings import SETTINGS, GenerationSettings, SettingValue

VERSION = "0.1.0"
# torchrun refuses `--n` after `-m chat`, as a shortened option of its own; `-n` it passes on.
SHORT = {"-h": "--help", "-n": "--n"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """Everything that was asked for at the start. Names are those of the command line.

    settings           generation settings that the command line names
    use_chat_template  None: on where the tokenizer has a template
    steps              checkpoints that answer the prompts in turn, as the user named them; (): the one checkpoint
    chat_template      name or file of another template than the checkpoint's default one
    batch_size         None: chosen by the program
    replay             the session, or its file, whose replies are decoded again
    resume             None: a new conversation; "": the latest session; else its name
    editing_mode       the keys of the input line, emacs or vi; only the config file names it
    given              names of the options that the command line holds
    """

    checkpoint_dir: str | None = None
    parallel: str = "auto"
    dtype: str = "auto"
    base_model: str | None = None
    lora_alpha: float | None = None
    exact: bool = False
    trust_remote_code: bool = False
    verify: bool = False
    prompt: str | None = None
    prompts_file: str | None = None
    output_file: str | None = None
    steps: tuple[str, ...] = ()
    use_chat_template: bool | None = None
    chat_template: str | None = None
    system: str | None = None
    n: int = 1
    batch_size: int | None = None
    json: bool = False
    verbose_trace: bool = False
    rank_progress: bool = False
    resume: str | None = None
    replay: str | None = None
    join_timeout: float = 300.0
    answer_timeout: float = 60.0
    debug: bool = False
    editing_mode: str = "emacs"
    settings: Mapping[str, SettingValue] = field(default_factory=dict)
    given: frozenset[str] = frozenset()

    @property
    def has_prompts(self) -> bool:
        """Whether prompts were given, so that the program answers them and ends."""
        return self.prompt is not None or self.prompts_file is not None

    @property
    def reads_stdin(self) -> bool:
        """Whether the prompts come from standard input."""
        return STDIN in (self.prompt, self.prompts_file)


def parse_options(
    argv: Sequence[str],
    *,
    stdin_is_terminal: bool = True,
    text_is_piped: Callable[[], bool] = lambda: False,
    stdout: TextIO | None = None,
) -> LaunchOptions:
    """The options that `argv` (without the program's name) asks for, with what prompts there are settled.

    Touches the disk only to look whether the named files can be read and written. `--help` and `--version`
    print to `stdout` and raise SystemExit(0). Raises UsageError for everything else that cannot be.
    """
    options = asked_options(argv, stdout or sys.stdout)
    if stdin_is_prompts(options, stdin_is_terminal):
        options = dataclasses.replace(options, prompts_file=STDIN)
        if options.resume is not None:
            raise UsageError(
                "--resume opens a conversation, which needs a terminal.",
                "Standard input is not one, so each of its lines is a prompt.",
                "Start the program on a terminal, or leave --resume out.",
            )
    check_together(options)
    if options.has_prompts and not options.reads_stdin and text_is_piped():
        raise UsageError(
            "Prompts were given, and text is piped in: it would not be read.",
            "With - in place of PROMPT the piped text is the prompt; without a prompt each of its lines is one.",
            "Add </dev/null if it is not meant to be read, as in a loop that reads lines.",
        )
    check_prompts_file(options)
    check_output_file(options)
    return options


def asked_options(argv: Sequence[str], stdout: TextIO) -> LaunchOptions:
    """What `argv` says, taken alone: enough for a follower, whose files and streams are not those of rank 0.

    Raises UsageError and SystemExit as `parse_options` does.
    """
    values = _scan(argv)
    for name, text in (("help", help_text), ("version", version_text)):
        if values.pop(name, False):
            write_out(stdout, text() + "\n")
            raise SystemExit(0)
    settings = {name: values.pop(name) for name in tuple(values) if name in SETTINGS}
    return LaunchOptions(**values, settings=settings, given=frozenset((*values, *settings)))


def stdin_is_prompts(options: LaunchOptions, stdin_is_terminal: bool) -> bool:
    """Whether the lines of standard input are the prompts without having been named: nobody sits there to talk."""
    return not stdin_is_terminal and not options.has_prompts and options.replay is None


def _scan(argv: Sequence[str]) -> dict[str, Any]:
    """The values of the options in `argv`, by name. Of one that comes twice the last counts, or all."""
    values: dict[str, Any] = {}
    rest = list(argv)
    if rest[:1] == ["--"]:  # what separates torchrun's options from these
        del rest[0]
    while rest:
        word = rest.pop(0)
        word = SHORT.get(word, word)
        if not word.startswith("--") or word == "--":
            raise UsageError(
                f"Unexpected argument: {word}.",
                "The checkpoint and a prompt come before the options, which begin with --.",
                "Put a prompt of several words in quotes.",
            )
        spelled, equals, attached = word[2:].partition("=")
        row, on = _find(spelled)
        if row.read is None:
            if equals:
                raise UsageError(f"--{row.name} takes no value, but was given {attached!r}.")
            values[row.name] = on
            continue
        if equals:
            text = attached
        elif rest and not _is_option(rest[0]):
            text = rest.pop(0)
        elif row.optional:
            text = ""
        else:
            follows = f"{rest[0]} follows. Write --{row.name}={rest[0]} if that is the value." if rest else ""
            raise UsageError(f"--{row.name} needs a value ({row.metavar}).", follows)
        try:
            value = row.read(text)
            values[row.name] = (*values.get(row.name, ()), *value) if row.repeatable else value
        except ValueError as error:
            raise UsageError(f"--{row.name} cannot be {text!r}.", str(error)) from None
    return values


def _find(spelled: str) -> tuple[Option, bool]:
    """The row that `spelled` (without the leading --) names, and whether it is switched on."""
    name = spelled.replace("-", "_")
    if name in OPTIONS:
        return OPTIONS[name], True
    plain = name.removeprefix("no_")
    if plain != name and plain in OPTIONS and OPTIONS[plain].negated:
        return OPTIONS[plain], False
    longer = [known for known in _spellings() if known.startswith(name)]
    near = longer or difflib.get_close_matches(name, _spellings(), n=1)
    raise UsageError(
        f"Unknown option: --{spelled}.",
        f"Did you mean --{near[0]}?" if near else "",
        "" if near else "--help lists the options.",
    )


def _is_option(word: str) -> bool:
    name = word[2:].partition("=")[0].replace("-", "_")
    return word in SHORT or (word.startswith("--") and name in _spellings())


def _spellings() -> tuple[str, ...]:
    return (*OPTIONS, *(f"no_{row.name}" for row in OPTIONS.values() if row.negated))


def load_config(environ: Mapping[str, str] = os.environ) -> ConfigFile:
    """The user's config file, checked; an empty one if there is none. Raises UsageError."""
    return read_config(config_path(environ), CONFIG_READERS)


def with_config(options: LaunchOptions, config: ConfigFile) -> LaunchOptions:
    """The options, with those of the config file where the command line names none."""
    unnamed = {name: value for name, value in config.options.items() if name not in options.given}
    return dataclasses.replace(options, **unnamed)


def resolve_settings(
    options: LaunchOptions,
    config: ConfigFile,
    generation_config: Mapping[str, Any] | None,
    of_model: Mapping[str, SettingValue] | None = None,
) -> tuple[GenerationSettings, dict[str, str]]:
    """The generation settings in force and, by name, a few words on where each came from. Raises ChatError.

    `of_model` are defaults that suit the kind of model.
    """
    return settle(options.settings, config, generation_config, of_model)


def version_text() -> str:
    """The program's name and version."""
    return f"dllm-chat {VERSION}"
