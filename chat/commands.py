"""The slash commands, one row each: help, completion, dispatch and "did you mean" all read `COMMANDS`.

A command acts on the conversation through the methods of `repl.Repl`; it touches no other rank by itself.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chat.checkpoints import LATEST_WORD, Steps
from chat.export import FORMATS
from chat.facts import facts_table
from chat.files import expand
from dist.checkpoint_folder import Step
from dist.errors import UsageError
from dist.settings import SETTINGS, Setting

if TYPE_CHECKING:
    from chat.repl import Repl

SHOWN_STEPS = 40

Run = Callable[["Repl", str], None]
# A value that can follow a command, and a few words about it.
Value = tuple[str, str]
# The values that can stand where a word has been begun.
Values = Callable[["Repl", str], Iterable[Value]]


def _nothing(repl: Repl, word: str) -> Iterable[Value]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One slash command. `name` is without the slash; `live` ones run in the middle of a reply."""

    name: str
    usage: str
    help: str
    run: Run
    live: bool
    values: Values


COMMANDS: dict[str, Command] = {}


def command(
    name: str, usage: str, help: str, *, live: bool = False, values: Values = _nothing
) -> Callable[[Run], Run]:
    """Add a row to the table."""

    def register(run: Run) -> Run:
        COMMANDS[name] = Command(name=name, usage=usage, help=help, run=run, live=live, values=values)
        return run

    return register


def dispatch(repl: Repl, line: str, *, live: bool = False) -> None:
    """Run the command line `line`, which begins with a slash. Raises UsageError for what cannot be."""
    name, _, argument = line[1:].partition(" ")
    name = name.strip()
    row = COMMANDS.get(name)
    if row is None:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise UsageError(
            f"Unknown command: /{name}",
            f"Did you mean /{near[0]}?" if near else "",
            "/help lists the commands." if not near else "",
        )
    if live and not row.live:
        raise UsageError(f"/{name} has to wait until the reply is done.", "", "Ctrl-C stops the reply.")
    row.run(repl, argument.strip())


def complete(repl: Repl, before: str) -> Iterator[tuple[str, str, int]]:
    """Completions of the text before the cursor: (text, a line about it, start relative to the cursor)."""
    if not before.startswith("/") or "\n" in before:
        return
    head, space, word = before.rpartition(" ")
    if not space:
        for row in COMMANDS.values():
            if row.name.startswith(before[1:]):
                yield f"/{row.name}", row.help, -len(before)
        return
    words = head[1:].split()
    if words[:1] == ["set"]:
        values = _setting_names(repl, word) if len(words) == 1 else _setting_values(words[1])
    else:
        named = COMMANDS.get(words[0]) if len(words) == 1 else None
        values = named.values(repl, word) if named is not None else ()
    for text, about in values:
        if text.startswith(word):
            yield text, about, -len(word)


def _setting_names(repl: Repl, word: str) -> Iterable[Value]:
    return ((row.name, row.help) for row in SETTINGS.values())


def _setting_values(name: str) -> Iterable[Value]:
    row = SETTINGS.get(name)
    return ((example, row.allowed) for example in row.examples) if row is not None else ()


def _targets(repl: Repl, word: str) -> Iterator[Value]:
    """Folders, and files that an export could replace."""
    return _paths(word, FORMATS)


def _checkpoints(repl: Repl, word: str) -> Iterator[Value]:
    """The steps that can be loaded, the newest first, and folders."""
    try:
        found = repl.steps()
        yield LATEST_WORD, "the step that the run's own file names now"
        yield from ((str(step.number), about) for step, about in _described(found))
    except UsageError:
        pass  # not in a run: folders are all there is
    yield from _paths(word)


def _described(found: Steps) -> Iterator[tuple[Step, str]]:
    """The steps, the newest first, each with a few words."""
    for step in reversed(found.steps):
        parts = [time.strftime("%Y-%m-%d %H:%M", time.localtime(step.saved_at))]
        parts += ["loaded"] if step.number == found.loaded else []
        parts += ["latest"] if step.number == found.latest else []
        yield step, ", ".join(parts)


def _paths(word: str, suffixes: Collection[str] = ()) -> Iterator[Value]:
    """Folders, and files with one of the suffixes."""
    typed = expand(word or "./")
    folder = typed if word.endswith("/") or not word else typed.parent
    lead = word[: word.rfind("/") + 1]
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.is_dir():
            yield f"{lead}{entry.name}/", "folder"
        elif entry.suffix in suffixes:
            yield f"{lead}{entry.name}", "file, to be replaced with !"


def _session_names(repl: Repl, word: str) -> Iterable[Value]:
    return ((info.name, f"{info.exchanges} exchanges: {info.opening[:40]}") for info in repl.sessions())


@command("help", "/help [COMMAND]", "this list, or one command explained", live=True)
def _help(repl: Repl, argument: str) -> None:
    if not argument:
        repl.show_table([(row.usage, row.help) for row in COMMANDS.values()])
        repl.note("Live commands work in the middle of a reply: " + ", ".join(_live_names()))
        return
    name = argument.lstrip("/")
    row = COMMANDS.get(name)
    if row is None:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise UsageError(f"There is no command /{name}.", f"Did you mean /{near[0]}?" if near else "")
    repl.show_table([(row.usage, row.help)])
    if name in SETTINGS:
        repl.note(f"{name} takes {SETTINGS[name].allowed}.")


def _live_names() -> Iterator[str]:
    return (f"/{row.name}" for row in COMMANDS.values() if row.live)


@command("set", "/set NAME VALUE", "change a setting from the next block on", live=True, values=_setting_names)
def _set(repl: Repl, argument: str) -> None:
    name, _, value = argument.partition(" ")
    if not name:
        _settings(repl, "")
        return
    if name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, n=1)
        raise UsageError(
            f"There is no setting {name}.",
            f"Did you mean {near[0]}?" if near else f"The settings are {', '.join(SETTINGS)}.",
        )
    _change(repl, name, value.strip())


def _change(repl: Repl, name: str, value: str) -> None:
    if not value:
        repl.note(f"{name} is {_shown(getattr(repl.settings, name))}; it takes {SETTINGS[name].allowed}.")
        return
    repl.change_setting(name, value)


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


def _add_setting(row: Setting) -> None:
    def run(repl: Repl, argument: str) -> None:
        _change(repl, row.name, argument)

    def values(repl: Repl, word: str) -> Iterable[Value]:
        return _setting_values(row.name)

    command(row.name, f"/{row.name} VALUE", row.help, live=True, values=values)(run)


for _row in SETTINGS.values():
    _add_setting(_row)


@command("settings", "/settings", "every setting: value, default, where it came from", live=True)
def _settings(repl: Repl, argument: str) -> None:
    used = repl.last_settings
    rows = []
    for name, row in SETTINGS.items():
        last = _shown(getattr(used, name)) if used is not None else "-"
        value = _shown(getattr(repl.settings, name))
        rows.append((name, value, _shown(row.default), last, repl.origins.get(name, "default")))
    repl.show_table(rows, head=("setting", "value", "default", "last reply", "from"))


@command("system", "/system [TEXT]", "show or replace the system prompt (- removes it)")
def _system(repl: Repl, argument: str) -> None:
    if not argument:
        system = repl.transcript.system
        repl.note(f"The system prompt is: {system}" if system else "There is no system prompt.")
        return
    repl.adopt(repl.transcript.with_system("" if argument == "-" else argument))
    repl.note("The system prompt is removed." if argument == "-" else "The system prompt is replaced.")


@command("clear", "/clear", "start over; the system prompt stays")
def _clear(repl: Repl, argument: str) -> None:
    gone = len(repl.transcript.exchanges)
    repl.adopt(repl.transcript.cleared())
    repl.note(f"Cleared {_count(gone)}.")


@command("undo", "/undo [N]", "take back the last exchange, or the last N")
def _undo(repl: Repl, argument: str) -> None:
    n = _number(argument, "/undo")
    there = len(repl.transcript.exchanges)
    if there == 0:
        raise UsageError("There is nothing to undo.")
    question = repl.transcript.last_question or ""
    repl.adopt(repl.transcript.without_last(n))
    left = len(repl.transcript.exchanges)
    repl.note(
        f"Took back {_count(there - left)}; {_count(left) if left else 'none'} left. Last was: {question[:60]}"
    )


@command("retry", "/retry", "answer the last message again")
def _retry(repl: Repl, argument: str) -> None:
    if repl.transcript.last_question is None:
        raise UsageError("There is nothing to answer again.")
    repl.answer(repl.transcript.without_reply())


def _number(argument: str, name: str) -> int:
    if not argument:
        return 1
    if not argument.isdecimal() or int(argument) < 1:
        raise UsageError(f"{name} cannot take {argument!r}.", "It takes a whole number from 1.")
    return int(argument)


def _count(n: int) -> str:
    return f"{n} exchange{'' if n == 1 else 's'}"


@command("context", "/context", "how many tokens the conversation holds, of how many")
def _context(repl: Repl, argument: str) -> None:
    repl.show_context()


@command("stats", "/stats", "figures of the last reply")
def _stats(repl: Repl, argument: str) -> None:
    repl.show_stats()


@command("model", "/model", "what is known of the checkpoint", live=True)
def _model(repl: Repl, argument: str) -> None:
    repl.show_table(list(facts_table(repl.facts)))


@command("steps", "/steps", "the steps of this run, with dates", live=True)
def _steps(repl: Repl, argument: str) -> None:
    found = repl.steps()
    rows = [(f"step {step.number}", about) for step, about in _described(found)][:SHOWN_STEPS]
    if not rows:
        repl.note("The run's folder holds no steps any more.")
        return
    repl.show_table(rows)
    older = len(found.steps) - len(rows)
    repl.note(f"{f'{older} older ones are not shown. ' if older else ''}/load STEP turns to one of them.")


@command("load", "/load STEP|PATH", "go on with the weights of another step or folder", values=_checkpoints)
def _load(repl: Repl, argument: str) -> None:
    if not argument:
        raise UsageError(
            "/load needs a step or a folder.", "", f"/steps lists the steps; /load {LATEST_WORD} takes the latest."
        )
    repl.load(argument)


@command("export", "/export FILE", f"write the conversation to a file ({' '.join(FORMATS)})", values=_targets)
def _export(repl: Repl, argument: str) -> None:
    if not argument:
        raise UsageError("/export needs a file name.", f"The extension decides the format: {', '.join(FORMATS)}.")
    path: Path = repl.export(argument)
    repl.note(f"Wrote {path}")


@command("save", "/save NAME", "give this session a name to resume it by")
def _save(repl: Repl, argument: str) -> None:
    if not argument:
        raise UsageError("/save needs a name.")
    repl.rename_session(argument)
    repl.note(f"This session is now named {argument}. --resume {argument} or /resume {argument} goes on with it.")


@command("resume", "/resume [NAME]", "go on with another session, by default the latest", values=_session_names)
def _resume(repl: Repl, argument: str) -> None:
    repl.resume(argument)


@command("sessions", "/sessions", "the sessions on disk")
def _sessions(repl: Repl, argument: str) -> None:
    infos = list(repl.sessions())
    if not infos:
        repl.note("There are no sessions yet.")
        return
    repl.show_table([(info.name, _count(info.exchanges), info.opening[:50]) for info in infos[:20]])


@command("quit", "/quit", "leave (as does Ctrl-D on an empty line)")
def _quit(repl: Repl, argument: str) -> None:
    repl.leave()
