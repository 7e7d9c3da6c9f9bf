"""The slash commands that show and change settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from chat.commands.choices import CHOICES, Choice
from chat.commands.row import Command, Value, command, first_word, unquoted
from chat.conversation.state import BY_HAND
from chat.text.thinking import split_thinking
from dist.errors import UsageError, did_you_mean, either
from dist.setting_kinds import NONE, Text
from dist.settings import SETTINGS, Setting, setting_text

if TYPE_CHECKING:
    from chat.conversation.answering import TraceMode
    from chat.conversation.repl import Repl


DEFAULT = "default"
# In front of the name of an argument of the chat template.
TEMPLATE = "template."
DEFAULT_VALUE = (DEFAULT, "back to the program's own value")


def setting_names() -> Iterable[Value]:
    return ((row.name, row.help) for row in SETTINGS.values())


def setting_values(name: str) -> Iterable[Value]:
    row = SETTINGS.get(name)
    return ((example, row.allowed) for example in row.examples) if row is not None else ()


def _marked(values: Iterable[Value], present: str) -> Iterable[Value]:
    """The values, the present one first and marked; it is among them even if it is no example."""
    found = dict(values)
    about = found.pop(present, next(iter(found.values()), ""))
    return ((present, f"now; {about}"), *found.items())


def _present_values(repl: Repl, name: str) -> Iterable[Value]:
    """What a setting can be set to, by completion."""
    if name in CHOICES:
        return _marked(CHOICES[name].values.items(), CHOICES[name].present(repl))
    if name.startswith(TEMPLATE):
        values = (*(("true", ""), ("false", "")), (DEFAULT, "not given (the template's own default)"))
        return _marked(values, dict(argument_rows(repl)).get(name, "not given"))
    if name not in SETTINGS:
        return ()
    return (*_marked(setting_values(name), setting_text(getattr(repl.talk.settings, name))), DEFAULT_VALUE)


def _values_of_set(repl: Repl, words: tuple[str, ...], word: str) -> Iterable[Value]:
    if words:
        return _present_values(repl, words[0]) if len(words) == 1 else ()
    choices = ((row.name, row.help) for row in CHOICES.values())
    arguments = ((name, f"an argument of the chat template, {now}") for name, now in argument_rows(repl))
    return ((f"{name} ", about) for name, about in (*setting_names(), *choices, *arguments))


def known_setting(name: str, more: Sequence[str] = ()) -> str:
    """`name`; raises UsageError if it is no setting's. `more` can be meant too."""
    if name not in SETTINGS:
        names = [*SETTINGS, *more]
        all_names = f"The settings are {', '.join(names)}."
        raise UsageError(f"There is no setting {name}.", did_you_mean(name, names, all_names))
    return name


@command(
    "set",
    "/set NAME VALUE",
    "change a setting from the next block on; VALUE can be default",
    live=True,
    values=_values_of_set,
    example="/set refine_iter auto",
)
def set_(repl: Repl, argument: str) -> None:
    name, _, value = argument.partition(" ")
    if name in CHOICES:
        _choose(repl, CHOICES[name], value.strip())
    elif name.startswith(TEMPLATE):
        _set_argument(repl, name.removeprefix(TEMPLATE), value.strip())
    elif name:
        _change(repl, _known(name), value.strip())
    else:
        settings.run(repl, "")


def _set_argument(repl: Repl, name: str, value: str) -> None:
    """One of the chat template's arguments; a value that is no JSON is a text."""
    arguments = repl.talk.settings.template_arguments
    if value:
        try:
            read = json.loads(value)
        except ValueError:
            read = value
        arguments.pop(name, None)
        given = arguments if value == DEFAULT else {**arguments, name: read}
        repl.talk.change_setting("template_args", json.dumps(given))
    arguments = repl.talk.settings.template_arguments
    now = json.dumps(arguments[name], ensure_ascii=False) if name in arguments else "not given"
    repl.note(f"{TEMPLATE}{name} is {now}{' from the next reply on' if value else ''}.")


def argument_rows(repl: Repl) -> Iterable[Value]:
    """What the chat template reads, with what it is given."""
    given = repl.talk.settings.template_arguments
    names = repl.talk.template.arguments if repl.talk.template is not None else ()
    for name in names:
        yield f"{TEMPLATE}{name}", json.dumps(given[name], ensure_ascii=False) if name in given else "not given"


def _known(name: str) -> str:
    """`name`; raises UsageError if nothing that can be set is called so."""
    return known_setting(name, tuple(CHOICES))


def _change(repl: Repl, name: str, value: str) -> None:
    if not value:
        now = setting_text(getattr(repl.talk.settings, name))
        repl.note(f"{name} is {now}; it takes {SETTINGS[name].allowed}.")
        return
    if value == DEFAULT or (value == NONE and isinstance(SETTINGS[name].kind, Text)):
        repl.talk.reset_setting(name)
    else:
        repl.talk.change_setting(name, unquoted(value) if isinstance(SETTINGS[name].kind, Text) else value)
    when = " from the next block on" if repl.answering.busy else ""
    repl.note(f"{name} is {setting_text(getattr(repl.talk.settings, name))}{when}.")


def _shorthand(row: Setting) -> Command:
    """`/NAME VALUE`, the same as `/set NAME VALUE`."""

    def run(repl: Repl, argument: str) -> None:
        _change(repl, row.name, argument)

    values = first_word(lambda repl, word: _present_values(repl, row.name))
    example = f"/{row.name} {row.examples[0]}"
    return command(row.name, f"/{row.name} VALUE", row.help, live=True, values=values, example=example)(run)


SHORTHANDS = tuple(_shorthand(row) for row in SETTINGS.values() if row.shorthand)


def _choose(repl: Repl, row: Choice, value: str) -> None:
    if value and value not in (*row.values, DEFAULT):
        raise UsageError(f"{row.name} cannot be {value!r}.", f"It takes {either(row.values)}.")
    if value:
        setattr(row.holder(repl), row.name, row.default if value == DEFAULT else value)
    repl.note(f"{row.name} is {row.present(repl)}. {row.values[row.present(repl)]}")


@command(
    "overflow",
    "/overflow drop|refuse",
    "what happens to a conversation that no longer fits (also /set overflow)",
    live=True,
    values=first_word(lambda repl, word: _present_values(repl, "overflow")),
    example="/overflow refuse",
)
def overflow(repl: Repl, argument: str) -> None:
    _choose(repl, CHOICES["overflow"], argument)


@command(
    "think",
    "/think show|hide|last",
    "keep a model's thinking on the screen or fold it; last: what it thought for the last reply",
    live=True,
    values=first_word(lambda repl, word: (*_present_values(repl, "thinking"), ("last", "what it thought last"))),
    example="/think last",
)
def think(repl: Repl, argument: str) -> None:
    if argument != "last":
        _choose(repl, CHOICES["thinking"], argument)
        return
    thought = split_thinking(repl.talk.transcript.last_reply or "")[0]
    if thought.strip():
        repl.page.thought(thought)
    else:
        repl.note("The last reply has no thinking.")


TRACE_MODES: dict[str, tuple[TraceMode, str]] = {
    "off": ("off", "Passes are not written down."),
    "on": ("on", "Every pass is written down: what is exact, what changed."),
    "top": ("top", "Every pass is written down, with the likeliest tokens where it changed something."),
}


def _trace_modes(repl: Repl, word: str) -> Iterable[Value]:
    return ((name, about) for name, (_, about) in TRACE_MODES.items())


@command(
    "trace",
    "/trace on|off|top",
    "write down every pass over a block; top: with the candidates where it changed something",
    live=True,
    values=first_word(_trace_modes),
    example="/trace top",
)
def trace(repl: Repl, argument: str) -> None:
    if argument and argument not in TRACE_MODES:
        raise UsageError(f"/trace cannot be {argument!r}.", "It takes on, off or top.")
    mode, about = TRACE_MODES[argument or repl.answering.trace]
    late = " Candidates come from the next reply on." if mode == "top" and repl.answering.busy else ""
    repl.answering.trace = mode
    repl.note(f"Trace is {mode}. {about}{late}")
    if argument and mode != "off":
        repl.page.trace_legend()


@command("settings", "/settings", "every setting: value, default, where it came from", live=True)
def settings(repl: Repl, argument: str) -> None:
    talk = repl.talk
    used = talk.last_reply.settings if talk.last_reply is not None else None
    rows = []
    for name, row in SETTINGS.items():
        last = setting_text(getattr(used, name)) if used is not None else "-"
        value = setting_text(getattr(talk.settings, name))
        rows.append((name, value, setting_text(row.default), last, talk.origins.get(name, "default")))
    rows += [(name, now, "not given", "-", talk.origins["template_args"]) for name, now in argument_rows(repl)]
    for choice in CHOICES.values():
        value = choice.present(repl)
        rows.append((choice.name, value, choice.default, "-", "default" if value == choice.default else BY_HAND))
    repl.page.table(rows, head=("setting", "value", "default", "last reply", "from"))
    repl.note(f"Replies end at {talk.tokenizer.stop_words()}.")
