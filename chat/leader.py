"""Rank 0 from start to end: what is asked for, the model, then a conversation or a list of prompts.

Everything that can be refused without the model is refused before it is loaded. torch and transformers are
imported as late as can be, so that the first words stand on the screen at once.
"""

from __future__ import annotations

import dataclasses
import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from chat.batch.prompts import Prompts, read_prompts
from chat.demo import ABOUT, DEFAULT_SYSTEM
from chat.loading.checkpoints import Checkpoints, run_folder
from chat.loading.facts import CheckpointFacts, checkpoint_facts
from chat.loading.opening import import_libraries, intent, load, open_asked, open_tokenizer, start_notices, warm_up
from chat.loading.progress import Status
from chat.start.options import LaunchOptions, load_config, resolve_settings, version_text, with_config
from chat.terminal.lifeline import EXIT_INTERRUPTED, Lifeline
from chat.terminal.mode import BaseMode
from chat.terminal.streams import Streams, session_mode, write_out
from dist.checkpoint.digest import digests
from dist.checkpoint.open import Checkpoint
from dist.errors import UsageError, WeightsLost
from dist.model.prefetch import prefetch
from dist.settings import GenerationSettings

EXIT_DIFFERS = 6
CLOSE_S = 1.0
WAIT_S = 1.0

if TYPE_CHECKING:
    from chat.batch.copies import Copies
    from chat.console.app import Console, PlainLines
    from chat.conversation.repl import Repl
    from chat.conversation.state import Talk
    from chat.sessions.session import Session
    from chat.sessions.tree import Tree
    from chat.text.tokenizer import ChatTokenizer
    from dist.decode.engine import Engine
    from dist.group.copies import Division
    from dist.group.group import SoloGroup, TorchGroup
    from dist.group.ranks import Ranks


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


def run(options: LaunchOptions, streams: Streams, lifeline: Lifeline) -> int:
    """The whole of rank 0; returns the exit code. Raises ChatError."""
    started = time.monotonic()
    config = load_config()
    options = with_config(options, config)
    status = Status(streams)
    prompts = asked_prompts(options, status)
    opened = None if options.has_prompts or options.replay is not None else open_session(options)
    old = None if options.replay is None else session_to_replay(options)
    checkpoint = open_asked(options)
    settings, origins = resolve_settings(options, config, checkpoint.generation_config, checkpoint.defaults)
    if options.verify:
        verify(checkpoint, status)
    else:
        prefetch(checkpoint.files)
    status.show(f"Loading {checkpoint.path}")

    from dist.group.ranks import open_ranks

    # What does not fit between the ranks is refused before anything else is imported.
    ranks = open_ranks()
    if ranks is not None:
        lifeline.watch(ranks)
        ranks.meet(intent(options, checkpoint))
        lifeline.watch(ranks)
    import_libraries(options)
    tokenizer = open_tokenizer(options, checkpoint)
    use_template = tokenizer.wants_template(options.use_chat_template)
    told_apart_by = digests(checkpoint)
    if options.has_prompts:
        from chat.batch.run import check_output

        options = dataclasses.replace(options, system=default_system(options) or None)
        known = {
            "checkpoint": str(checkpoint.path),
            "digest": told_apart_by.checkpoint,
            **({} if options.dtype == "auto" else {"dtype": options.dtype}),
        }
        from dist.decode.trial import undecided

        check_output(options, settings, use_template, prompts, known, undecided(origins))

    group, division = open_own_group(options, checkpoint, ranks, len(prompts) * options.n)
    engine, reloader = load(options, group, checkpoint, division.mode, status.loading)
    # The others of several copies get no warm-up either: they find their kernels with the first batch.
    slow_notice = warm_up(engine, settings) if division.copies == 1 else engine.slow_notice
    status.clear()
    about = ABOUT if options.checkpoint_dir is None else None
    seconds = time.monotonic() - started
    facts = checkpoint_facts(reloader.loaded, tokenizer, use_template, group.size, seconds, about, told_apart_by)
    if division.copies > 1:
        facts = facts.in_copies(division.words)
    for line in (
        *start_notices(facts, tokenizer, use_template, default_system(options)),
        *filter(None, (slow_notice,)),
    ):
        status.say(line)
    ready = Ready(
        options=options,
        streams=streams,
        lifeline=lifeline,
        engine=engine,
        tokenizer=tokenizer,
        settings=settings,
        origins=origins,
        facts=facts,
        use_template=use_template,
        checkpoints=Checkpoints(
            engine=engine,
            reloader=reloader,
            tokenizer=tokenizer,
            options=options,
            config=config,
            ranks=group.size,
            run=run_folder(checkpoint.steps),
        ),
    )

    if division.copies == 1 and division.words:
        status.say(division.words)

    from dist.group.copies import tell_the_end

    copies = None
    if ranks is not None and division.copies > 1:
        from chat.batch.copies import Copies

        copies = Copies(engine, ranks.store, division.copies)

    def let_go(code: int) -> None:
        lifeline.leave(code)
        if copies is not None:
            copies.let_go()
        if ranks is not None and division.copies * division.ranks < ranks.size:
            tell_the_end(ranks)
        engine.shutdown()
        engine.close()

    try:
        if old is not None:
            code = replay_session(ready, old)
        else:
            code = answer_prompts(ready, prompts, copies) if opened is None else hold_conversation(ready, *opened)
    except WeightsLost as error:
        # The ranks are well, and the followers wait for orders.
        let_go(error.exit_code)
        raise
    let_go(code)
    return code


def asked_prompts(options: LaunchOptions, status: Status) -> Prompts:
    """The prompts to answer, none for a conversation. Says so if it has to wait for them. Raises UsageError."""
    stdin = sys.stdin.buffer if sys.stdin else io.BytesIO()  # None where descriptor 0 is closed
    if options.reads_stdin and sys.stdin and not select.select([stdin], [], [], WAIT_S)[0]:
        status.say("Reading prompts from standard input, up to its end.")
    return read_prompts(options, stdin)


def verify(checkpoint: Checkpoint, status: Status) -> None:
    """Check every byte of the weight files, which all ranks read. Raises CheckpointError."""
    from dist.checkpoint.verify import verify as check

    said = check(checkpoint, partial(status.reading, "Verifying"))
    status.say(f"Verified: {said}.")


def default_system(options: LaunchOptions) -> str:
    """The system prompt to begin with: what was asked for; the embedded model has one that suits it."""
    if options.system is not None:
        return options.system
    return DEFAULT_SYSTEM if options.checkpoint_dir is None else ""


def open_own_group(
    options: LaunchOptions, checkpoint: Checkpoint, ranks: Ranks | None, replies: int
) -> tuple[SoloGroup | TorchGroup, Division]:
    """Rank 0: which ranks hold a model together, which all others are told, and the group of its own."""
    from chat.loading.division import divide, undivided
    from dist.group.copies import open_copy, tell_free_memory
    from dist.group.group import SoloGroup
    from dist.model.memory import free_bytes

    if ranks is None:
        return SoloGroup(), undivided(options.parallel, 1)
    tell_free_memory(ranks, free_bytes(ranks.device))
    division = divide(options.parallel, options.dtype, checkpoint, ranks, replies)
    return open_copy(ranks, division), division


def answer_prompts(ready: Ready, prompts: Prompts, copies: Copies | None) -> int:
    """One prompt or many, without a conversation; returns the exit code."""
    from chat.batch.interruption import Interruption
    from chat.batch.measured import measured
    from chat.batch.run import run_batch
    from dist.decode.trial import undecided

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
    return run_batch(
        ready.engine,
        ready.tokenizer,
        ready.options,
        settings,
        prompts,
        ready.streams,
        ready.facts.conditions,
        interrupted=interruption.asked,
        workers=copies,
    )


def session_to_replay(options: LaunchOptions) -> Tree:
    """The session whose replies are to be decoded again. Raises ChatError."""
    from chat.sessions.folder import sessions_folder
    from chat.sessions.reimport import tree_of

    assert options.replay is not None
    tree = tree_of(sessions_folder(), options.replay)
    makers = [node.made.checkpoint for node in tree.nodes() if node.made is not None]
    if not makers:
        raise UsageError(f"{options.replay} holds no reply to replay.")
    last = makers[-1]
    if options.checkpoint_dir is None and last is not None and "about" not in last.facts:
        raise UsageError(
            "--replay needs a checkpoint.",
            f"The last reply of the session was made by {last.path}.",
            "Name that one, or another one to compare it with.",
        )
    return tree


def replay_session(ready: Ready, tree: Tree) -> int:
    """Decode every reply again; returns 0 if all came out the same, else 6."""
    from chat.batch.interruption import Interruption
    from chat.conversation.provenance import checkpoint_record
    from chat.conversation.replaying import replay_all

    interruption = Interruption(ready.streams.run_dir)
    ready.lifeline.on_interrupt = interruption.arrived
    interruption.announce()
    same = replay_all(
        ready.engine,
        tree,
        ready.tokenizer,
        checkpoint_record(ready.facts, ready.tokenizer, use_template=ready.use_template),
        use_template=ready.use_template,
        say=lambda text: write_out(ready.streams.replies, f"{text}\n"),
        interrupted=interruption.asked,
    )
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
        repl.note(welcome(ready.facts))
        if ready.options.resume is not None:
            talk.take_up(said)
            repl.show_conversation()
        try:
            repl.run()
        finally:
            ready.lifeline.put_back = mode.restore
            console.close()
    return 0


def open_console(ready: Ready, mode: BaseMode, repl: Callable[[], Repl]) -> Console | PlainLines:
    """What reads the keyboard and writes to the terminal, as far as that can do it."""
    from chat.commands.table import COMMANDS, complete
    from chat.console.app import Console, PlainLines
    from chat.sessions.folder import history_path

    if ready.streams.plain:
        return PlainLines(ready.streams, mode=mode, on_abort=ready.lifeline.ask_abort)
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
