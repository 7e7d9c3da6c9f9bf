"""The slash commands that show and change settings."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from chat.commands.row import Command, Value, command, first_word
from chat.conversation.state import BY_HAND
from dist.errors import UsageError
from dist.settings import SETTINGS, Setting

if TYPE_CHECKING:
    from chat.conversation.answering import TraceMode
    from chat.conversation.repl import Repl
    from chat.conversation.state import Overflow


def setting_names() -> Iterable[Value]:
    return ((row.name, row.help) for row in SETTINGS.values())


def setting_values(name: str) -> Iterable[Value]:
    row = SETTINGS.get(name)
    return ((example, row.allowed) for example in row.examples) if row is not None else ()


def _values_of_set(repl: Repl, words: tuple[str, ...], word: str) -> Iterable[Value]:
    if len(words) > 1:
        return ()
    if words[:1] == (overflow.name,):
        return _overflows(repl, word)
    return setting_values(words[0]) if words else (*setting_names(), (overflow.name, overflow.help))


def known_setting(name: str) -> str:
    """`name`; raises UsageError if it is no setting's."""
    if name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, n=1)
        raise UsageError(
            f"There is no setting {name}.",
            f"Did you mean {near[0]}?" if near else f"The settings are {', '.join(SETTINGS)}.",
        )
    return name


@command("set", "/set NAME VALUE", "change a setting from the next block on", live=True, values=_values_of_set)
def set_(repl: Repl, argument: str) -> None:
    name, _, value = argument.partition(" ")
    if name == overflow.name:
        overflow.run(repl, value.strip())
    elif name:
        _change(repl, known_setting(name), value.strip())
    else:
        settings.run(repl, "")


def _change(repl: Repl, name: str, value: str) -> None:
    if not value:
        now = shown(getattr(repl.talk.settings, name))
        repl.note(f"{name} is {now}; it takes {SETTINGS[name].allowed}.")
        return
    repl.talk.change_setting(name, value)
    when = " from the next block on" if repl.answering.busy else ""
    repl.note(f"{name} is {shown(getattr(repl.talk.settings, name))}{when}.")


def shown(value: object) -> str:
    return "none" if value is None else str(value)


def _shorthand(row: Setting) -> Command:
    """`/NAME VALUE`, the same as `/set NAME VALUE`."""

    def run(repl: Repl, argument: str) -> None:
        _change(repl, row.name, argument)

    values = first_word(lambda repl, word: setting_values(row.name))
    return command(row.name, f"/{row.name} VALUE", row.help, live=True, values=values)(run)


SHORTHANDS = tuple(map(_shorthand, SETTINGS.values()))


OVERFLOWS: dict[str, tuple[Overflow, str]] = {
    "drop": ("drop", "What no longer fits is left out of the prompt, the oldest exchanges first."),
    "refuse": ("refuse", "A message that no longer fits with all that was said is refused."),
}


def _overflows(repl: Repl, word: str) -> Iterable[Value]:
    return ((name, about) for name, (_, about) in OVERFLOWS.items())


@command(
    "overflow",
    "/overflow drop|refuse",
    "what happens to a conversation that no longer fits (also /set overflow)",
    live=True,
    values=first_word(_overflows),
)
def overflow(repl: Repl, argument: str) -> None:
    if argument and argument not in OVERFLOWS:
        raise UsageError(f"overflow cannot be {argument!r}.", "It takes drop or refuse.")
    choice, about = OVERFLOWS[argument or repl.talk.overflow]
    repl.talk.overflow = choice
    repl.note(f"overflow is {choice}. {about}")


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
)
def trace(repl: Repl, argument: str) -> None:
    if argument and argument not in TRACE_MODES:
        raise UsageError(f"/trace cannot be {argument!r}.", "It takes on, off or top.")
    mode, about = TRACE_MODES[argument or repl.answering.trace]
    late = " Candidates come from the next reply on." if mode == "top" and repl.answering.busy else ""
    repl.answering.trace = mode
    repl.note(f"Trace is {mode}. {about}{late}")


@command("settings", "/settings", "every setting: value, default, where it came from", live=True)
def settings(repl: Repl, argument: str) -> None:
    talk = repl.talk
    used = talk.last_reply.settings if talk.last_reply is not None else None
    rows = []
    for name, row in SETTINGS.items():
        last = shown(getattr(used, name)) if used is not None else "-"
        value = shown(getattr(talk.settings, name))
        rows.append((name, value, shown(row.default), last, talk.origins.get(name, "default")))
    rows.append((overflow.name, talk.overflow, "drop", "-", "default" if talk.overflow == "drop" else BY_HAND))
    repl.page.table(rows, head=("setting", "value", "default", "last reply", "from"))
