"""The slash commands for what lies on disk: checkpoints, sessions, exports."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from chat.commands.row import Value, ago, command, first_word
from chat.commands.settings import argument_rows
from chat.conversation.resuming import resume as resume_session
from chat.files import expand, read_text
from chat.loading.checkpoints import Steps
from chat.loading.facts import facts_table
from chat.loading.named import BASE_WORD, LATEST_WORD
from chat.sessions.formats import FORMATS
from dist.checkpoint.folder import Step, step_fault
from dist.counted import counted
from dist.errors import UsageError

if TYPE_CHECKING:
    from chat.conversation.repl import Repl

SHOWN_STEPS = 40
SHOWN_SESSIONS = 20
SHOWN_FOUND = 20


@command("model", "/model", "what is known of the checkpoint", live=True)
def model(repl: Repl, argument: str) -> None:
    repl.page.table([*facts_table(repl.talk.facts), *argument_rows(repl)])


@command("steps", "/steps", "the steps of this run, with dates", live=True)
def steps(repl: Repl, argument: str) -> None:
    found = repl.talk.checkpoints.steps()
    rows = [(f"step {step.number}", about) for step, about in _described(found)][:SHOWN_STEPS]
    if not rows:
        repl.note("The run's folder no longer holds any steps.")
        return
    repl.page.table(rows)
    older = len(found.steps) - len(rows)
    repl.note(f"{f'{older} older ones are not shown. ' if older else ''}/load STEP switches to one of them.")


def _described(found: Steps) -> Iterator[tuple[Step, str]]:
    """The steps, the newest first, each with a few words."""
    for step in reversed(found.steps):
        parts = [time.strftime("%Y-%m-%d %H:%M", time.localtime(step.saved_at))]
        parts += ["loaded"] if step.number == found.loaded else []
        parts += ["latest"] if step.number == found.latest else []
        # One that training may be writing just now.
        newest = step is found.steps[-1] if found.latest is None else step.number > found.latest
        fault = step_fault(step.path) if newest else None
        parts += [fault.removeprefix("it is ").removeprefix("it ")] if fault is not None else []
        yield step, ", ".join(parts)


def checkpoint_values(repl: Repl, word: str) -> Iterator[Value]:
    """The steps that can be loaded, the newest first, and folders."""
    try:
        found = repl.talk.checkpoints.steps()
        yield LATEST_WORD, "the step that the run's own file names now"
        yield from ((str(step.number), about) for step, about in _described(found))
    except UsageError:
        pass  # not in a run: folders are all there is
    yield BASE_WORD, "the model that training started from"
    yield from paths(word)


@command(
    "load",
    "/load STEP|PATH",
    "load the weights of another step or folder",
    values=first_word(checkpoint_values),
    example="/load 200",
)
def load(repl: Repl, argument: str) -> None:
    if not argument:
        raise UsageError(
            "/load needs a step or a folder.", "", f"/steps lists the steps; /load {LATEST_WORD} takes the latest."
        )
    repl.talk.load(argument)


@command(
    "watch",
    "/watch [off|load]",
    "show in the toolbar when a newer step is complete; load: load it, and answer the last message again",
    live=True,
    values=first_word(lambda repl, word: [("load", "load the newer step"), ("off", "stop watching")]),
    example="/watch load",
)
def watch(repl: Repl, argument: str) -> None:
    if argument not in ("", "off", "load"):
        raise UsageError(f"/watch cannot take {argument!r}.", "It takes nothing, or off, or load.")
    if argument == "off":
        repl.watching.off()
        repl.note("The run is no longer watched.")
    elif not argument:
        repl.watching.on()
    elif repl.answering.busy:
        repl.later("/watch load")
        repl.note("The newer step will be loaded when this is done.")
    else:
        repl.watching.load()


def paths(word: str, suffixes: Collection[str] | None = ()) -> Iterator[Value]:
    """Folders, and files with one of the suffixes, which could be replaced; None: all files, to be read."""
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
        elif suffixes is None:
            yield f"{lead}{entry.name}", "file"
        elif entry.suffix in suffixes:
            yield f"{lead}{entry.name}", "file, to be replaced with !"


@command(
    "read",
    "/read FILE",
    "put the text of a file into your next message",
    values=first_word(lambda repl, word: paths(word, None)),
    example="/read notes.txt",
)
def read(repl: Repl, argument: str) -> None:
    if not argument:
        raise UsageError("/read needs a file name.")
    text = read_text(argument)
    name = expand(argument).name
    size = repl.talk.check_room(name, text)
    repl.page.console.insert(text, name)
    repl.note(f"{name} is part of your next message: {counted(len(text), 'character')}, {counted(size, 'token')}.")


def _targets(repl: Repl, word: str) -> Iterator[Value]:
    """A name for each format, then what is there."""
    yield from ((f"{repl.talk.session.name}{suffix}", about) for suffix, (_, about) in FORMATS.items())
    yield from paths(word, FORMATS)


@command(
    "export",
    "/export [FILE] [FROM-TO]",
    f"write the conversation, or some exchanges of it, to a file ({' '.join(FORMATS)})",
    values=first_word(_targets),
    example="/export conversation.html 2-5",
)
def export(repl: Repl, argument: str) -> None:
    if not argument:
        repl.note(f"Enter writes this file; the extension decides the format: {', '.join(FORMATS)}.")
        repl.suggest(f"/export {repl.talk.session.name}.md")
        return
    repl.note(f"Wrote {repl.talk.export(argument)}")


@command("save", "/save [NAME]", "put this session on disk, under a name to resume it by", example="/save primes")
def save(repl: Repl, argument: str) -> None:
    repl.talk.save(argument)
    name = repl.talk.session.name
    named = f"This session is named {name}." if argument else f"This session is saved as {name}."
    repl.note(f"{named} Continue it later with --resume {name} or /resume {name}.")


def _session_names(repl: Repl, word: str) -> Iterable[Value]:
    found = repl.talk.sessions.offered(word)
    return ((info.name, info.opening[:40]) for info in found if info.name != repl.talk.session.name)


@command(
    "resume",
    "/resume [NAME|FILE.json]",
    "continue another session, by default the latest, or an exported one",
    values=first_word(_session_names),
    example="/resume primes",
)
def resume(repl: Repl, argument: str) -> None:
    resume_session(repl.talk, repl.page, argument)
    repl.show_conversation()


@command(
    "sessions",
    "/sessions [WORD]",
    "the sessions on disk, or those with WORD in name or first words",
    example="/sessions prime",
)
def sessions(repl: Repl, argument: str) -> None:
    infos = list(repl.talk.sessions.latest(word=argument, limit=SHOWN_SESSIONS))
    if not infos:
        repl.note(
            f"No session has {argument} in its name or first words. /find looks further."
            if argument
            else "There are no sessions yet."
        )
        return
    rows = []
    for info in infos:
        date = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.changed))
        step = "" if info.step is None else f"step {info.step}"
        here = "* " if info.name == repl.talk.session.name else ""
        rows.append((f"{here}{info.name}", date, ago(time.time() - info.changed), step, info.opening[:50]))
    repl.page.table(rows, head=("session", "changed", "", "", "begins with"))


@command("find", "/find WORD", "every message of every session that holds WORD", example="/find prime")
def find(repl: Repl, argument: str) -> None:
    if not argument:
        raise UsageError("/find needs something to look for.")
    found = list(islice(repl.talk.sessions.find(argument), SHOWN_FOUND + 1))
    if not found:
        repl.note(f"No session holds {argument!r}.")
        return
    repl.page.table([(one.name, one.role, one.around) for one in found[:SHOWN_FOUND]])
    more = f"There are more than {SHOWN_FOUND}; a longer word finds fewer. " if len(found) > SHOWN_FOUND else ""
    repl.note(f"{more}/resume NAME continues a session.")
