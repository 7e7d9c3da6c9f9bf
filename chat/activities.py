"""What rank 0 does with a loaded model: hold a conversation, answer prompts, replay a session. Loads nothing."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from chat.batch.prompts import Prompts
from chat.demo import DEFAULT_SYSTEM
from chat.loading.checkpoints import Checkpoints
from chat.loading.facts import CheckpointFacts
from chat.loading.progress import Status
from chat.start.options import LaunchOptions, version_text
from chat.terminal.lifeline import EXIT_INTERRUPTED, Lifeline
from chat.terminal.mode import BaseMode
from chat.terminal.streams import Streams, session_mode, write_out
from dist.errors import ChatError, UsageError
from dist.settings import GenerationSettings

EXIT_DIFFERS = 6
CLOSE_S = 1.0

if TYPE_CHECKING:
    from chat.batch.copies import Copies
    from chat.console.app import Console
    from chat.console.plain import PlainLines
    from chat.conversation.repl import Repl
    from chat.conversation.state import Talk
    from chat.loading.step_list import AskedStep
    from chat.sessions.session import Session
    from chat.sessions.tree import Tree
    from chat.text.tokenizer import ChatTokenizer
    from dist.decode.engine import Engine


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """All that rank 0 has when the model is loaded."""

    options: LaunchOptions
    streams: Streams
    lifeline: Lifeline
    engine: Engine
    tokenizer: ChatTokenizer
    settings: GenerationSettings
    origins: dict[str, str]
    facts: CheckpointFacts
    use_template: bool
    checkpoints: Checkpoints


def default_system(options: LaunchOptions) -> str:
    """The system prompt to begin with: what was asked for; the embedded model has one that suits it."""
    if options.system is not None:
        return options.system
    return DEFAULT_SYSTEM if options.checkpoint_dir is None else ""


def answer_prompts(ready: Ready, prompts: Prompts, copies: Copies | None, steps: Sequence[AskedStep] = ()) -> int:
    """Answer one prompt or many without a conversation, with each of the steps if any; returns the exit code."""
    from chat.batch.in_turn import InTurn
    from chat.batch.interruption import Interruption
    from chat.batch.measured import measured
    from chat.batch.run import run_batch
    from chat.loading.trial import undecided

    interruption = Interruption(ready.streams.run_dir)
    ready.lifeline.on_interrupt = interruption.arrived
    interruption.announce()
    settings = ready.settings
    names = undecided(ready.origins)
    if names:
        settings, why = measured(
            ready.engine,
            ready.tokenizer,
            ready.options,
            settings,
            prompts,
            undecided=names,
            stop=interruption.asked,
        )
        Status(ready.streams).say(why)
    in_turn = InTurn(
        steps,
        ready.checkpoints,
        copies,
        loaded=ready.facts.model.path,
        tokenizer=ready.tokenizer,
        use_template=ready.use_template,
    )
    return run_batch(
        ready.engine,
        ready.tokenizer,
        ready.options,
        settings,
        prompts,
        ready.streams,
        {"dtype": ready.facts.model.dtype} if steps else ready.facts.conditions,
        interrupted=interruption.asked,
        workers=copies,
        steps=in_turn if steps else None,
    )


def session_to_replay(options: LaunchOptions) -> Tree:
    """The session whose replies are to be decoded again. Raises ChatError."""
    from chat.sessions.folder import sessions_folder
    from chat.sessions.reimport import tree_of

    assert options.replay is not None
    tree = tree_of(sessions_folder(), options.replay)
    if not any(node.made for node in tree.nodes()):
        raise UsageError(f"{options.replay} holds no reply to replay.")
    return tree


def with_replayed_checkpoint(options: LaunchOptions) -> LaunchOptions:
    """For --replay without a checkpoint: the one that made the first reply.

    What is wrong with the session is left for `session_to_replay` to say.
    """
    if options.replay is None or "checkpoint_dir" in options.given:
        return options
    try:
        tree = session_to_replay(options)
    except ChatError:
        return options
    first = next(node.made.checkpoint for node in tree.nodes() if node.made is not None)
    path = None if first is None or "about" in first.facts else first.path
    return dataclasses.replace(options, checkpoint_dir=path)


def replay_session(ready: Ready, tree: Tree) -> int:
    """Decode every reply again; returns 0 if all came out the same, else 6.

    A checkpoint that the user named decodes them all; else each is decoded by the one that made it.
    """
    from chat.batch.interruption import Interruption
    from chat.conversation.provenance import checkpoint_record
    from chat.conversation.replaying import Weights, decoder, replay_all
    from chat.conversation.visiting import Guest

    interruption = Interruption(ready.streams.run_dir)
    ready.lifeline.on_interrupt = interruption.arrived
    interruption.announce()
    now = checkpoint_record(ready.facts, ready.tokenizer, use_template=ready.use_template)
    status = Status(ready.streams)

    def go(path: Path) -> Guest:
        adopted = ready.checkpoints.load(str(path), status.loading, partial(status.reading, "Verifying"))
        status.clear()
        record = checkpoint_record(adopted.facts, adopted.tokenizer, use_template=adopted.use_template)
        return Guest(tokenizer=adopted.tokenizer, use_template=adopted.use_template, record=record)

    weights = Weights(
        decoder(ready.engine, rounds=now.dtype != "float32", interrupted=interruption.asked),
        Guest(tokenizer=ready.tokenizer, use_template=ready.use_template, record=now),
        None if "checkpoint_dir" in ready.options.given else go,
    )
    same = replay_all(tree, weights, say=lambda text: write_out(ready.streams.replies, f"{text}\n"))
    if interruption.asked():
        return EXIT_INTERRUPTED
    return 0 if same else EXIT_DIFFERS


def open_session(options: LaunchOptions) -> tuple[Session, tuple[str, ...]]:
    """The session to go on with, or a new one, and what there is to say about its file. Raises ChatError."""
    from chat.sessions.folder import sessions_folder
    from chat.sessions.reimport import import_session, is_file_to_import
    from chat.sessions.session import Session

    if options.resume is not None and is_file_to_import(options.resume):
        return import_session(sessions_folder(), options.resume, version_text())
    if options.resume is not None:
        return Session.resume(sessions_folder(), options.resume)
    return Session(sessions_folder(), system=default_system(options), program=version_text()), ()


def hold_conversation(ready: Ready, session: Session, said: tuple[str, ...]) -> int:
    """Talk until the user leaves; returns the exit code. `said` is what there is to say of the session's file."""
    from chat.commands.table import dispatch
    from chat.conversation.continuing import command_line, leave_word
    from chat.conversation.page import Page
    from chat.conversation.repl import Repl
    from chat.conversation.resuming import take_up
    from chat.conversation.state import Talk
    from chat.screen.draw import Palette
    from chat.sessions.folder import Sessions, sessions_folder

    with session_mode(ready.streams) as mode:
        repl: Repl
        console = open_console(ready, mode, lambda: repl)
        page = Page(console, Palette.of(ready.streams))
        talk = Talk(
            page=page,
            tokenizer=ready.tokenizer,
            settings=ready.settings,
            origins=ready.origins,
            facts=ready.facts,
            session=session,
            sessions=Sessions(sessions_folder()),
            use_template=ready.use_template,
            checkpoints=ready.checkpoints,
            positions=ready.engine.max_positions,
            how_to_continue=partial(command_line, sys.argv[1:], os.environ),
            announce=partial(leave_word, ready.streams.run_dir),
        )
        repl = Repl(engine=ready.engine, page=page, talk=talk, dispatch=dispatch)
        guard_terminal(ready.lifeline, console, mode, talk)
        ready.lifeline.on_silence = repl.show_silence
        ready.lifeline.on_tick = repl.watch_quiet
        console.start()
        threading.Thread(target=talk.sessions.warm_up, daemon=True).start()
        repl.note(welcome(ready.facts))
        if ready.options.resume is not None:
            take_up(talk, page, said)
            repl.show_conversation()
        try:
            repl.run()
        finally:
            ready.lifeline.put_back = mode.restore
            console.close()
    return 0


def open_console(ready: Ready, mode: BaseMode, repl: Callable[[], Repl]) -> Console | PlainLines:
    """What reads the keyboard and writes to the terminal, as far as that can do it."""
    from chat.sessions.folder import history_path

    if ready.streams.plain:
        from chat.console.plain import PlainLines

        drafts = history_path().parent / "drafts"
        return PlainLines(ready.streams, mode=mode, on_abort=ready.lifeline.ask_abort, drafts=drafts)
    from chat.commands.table import COMMANDS, complete
    from chat.console.app import Console

    return Console(
        ready.streams,
        commands=list(COMMANDS.values()),
        history_file=history_path(),
        complete=lambda before: complete(repl(), before),
        mode=mode,
        vi_mode=ready.options.editing_mode == "vi",
        on_abort=ready.lifeline.ask_abort,
    )


def guard_terminal(lifeline: Lifeline, console: Console | PlainLines, mode: BaseMode, talk: Talk) -> None:
    """However the program ends, the terminal is put back and the user learns how to continue."""

    def put_back() -> None:
        closing = threading.Thread(target=console.close, daemon=True)
        closing.start()
        closing.join(CLOSE_S)
        mode.restore()

    lifeline.put_back = put_back
    lifeline.kept = lambda: talk.farewell


def welcome(facts: CheckpointFacts) -> str:
    """What is talked to, in a few words, and where help is."""
    step = "" if facts.step is None else f", step {facts.step}"
    model = facts.model
    return (
        f"{facts.checkpoint}{step}\n"
        f"{model.model_type}, {model.parameters / 1e6:,.1f} M parameters, {model.dtype}; "
        f"{model.parallel}. Ready in {facts.ready_seconds} s.\n"
        "/help lists the commands, Ctrl-D leaves.\n"
    )
