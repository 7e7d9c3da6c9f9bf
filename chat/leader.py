"""Rank 0 from start to end: what is asked for, the model, then a conversation or a list of prompts.

Everything that can be refused without the model is refused before it is loaded. torch and transformers are
imported as late as can be, so that the first words stand on the screen at once.
"""

from __future__ import annotations

import io
import select
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from chat.activities import (
    Ready,
    answer_prompts,
    default_system,
    hold_conversation,
    open_session,
    replay_session,
    session_to_replay,
)
from chat.batch.prompts import Prompts, read_prompts
from chat.demo import ABOUT
from chat.loading.checkpoints import Checkpoints, run_folder
from chat.loading.facts import checkpoint_facts
from chat.loading.opening import (
    import_libraries,
    intent,
    load,
    open_asked,
    open_steps,
    open_tokenizer,
    read_files,
    start_notices,
    warm_up,
)
from chat.loading.progress import Status
from chat.loading.step_list import AskedStep, first_there
from chat.start.config_file import ConfigFile
from chat.start.early_ranks import complete_environment
from chat.start.options import LaunchOptions, load_config, resolve_settings, with_config
from chat.terminal.lifeline import Lifeline
from chat.terminal.streams import Streams
from chat.text.stops import stop_finder
from dist.checkpoint.digest import Digests, digests
from dist.checkpoint.open import Checkpoint
from dist.errors import WeightsLost
from dist.model.libraries import wake_gpu
from dist.model.prefetch import prefetch
from dist.settings import GenerationSettings

WAIT_S = 1.0

if TYPE_CHECKING:
    from chat.batch.copies import Copies
    from chat.sessions.session import Session
    from chat.sessions.tree import Tree
    from chat.text.tokenizer import TokenizerFiles
    from dist.decode.engine import Engine
    from dist.group.copies import Division
    from dist.group.group import SoloGroup, TorchGroup
    from dist.group.ranks import Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked for, known before any rank meets another.

    session  the session to continue, or a new one, and what there is to say of its file; None: no conversation
    replay   the session whose replies are to be decoded again, if any
    steps    the checkpoints that are to answer prompts in turn, of which `checkpoint` is the first that is there
    digest   the checkpoint's, that of every byte too if --verify asks for it
    files    the tokenizer's
    """

    prompts: Prompts
    session: tuple[Session, tuple[str, ...]] | None
    replay: Tree | None
    checkpoint: Checkpoint
    steps: tuple[AskedStep, ...]
    digest: Digests
    settings: GenerationSettings
    origins: dict[str, str]
    files: TokenizerFiles


def run(options: LaunchOptions, streams: Streams, lifeline: Lifeline) -> int:
    """The whole of rank 0; returns the exit code. Raises ChatError."""
    started = time.monotonic()
    wake_gpu()
    # 1. What needs no model is read, and refused, first.
    config = load_config()
    options = with_config(options, config)
    status = Status(streams)
    asked = ask(options, config, status)
    checkpoint = asked.checkpoint
    # 2. What does not fit between the ranks is refused before anything else is imported.
    ranks = meet(options, asked, lifeline)
    import_libraries(options)
    tokenizer = open_tokenizer(options, checkpoint, asked.settings.template_arguments, asked.files)
    use_template = tokenizer.wants_template(options.use_chat_template)
    digest = asked.digest
    if options.has_prompts:
        options = replace(options, system=default_system(options) or None)
        refuse_other_output(options, asked, use_template, digest.checkpoint)
    # 3. The model.
    group, division = open_own_group(options, checkpoint, ranks, len(asked.prompts) * options.n)
    ends = stop_finder(lambda: tokenizer)
    engine, reloader = load(options, group, checkpoint, division.mode, status.loading, ends)
    # The others of several copies get no warm-up either: they find their kernels with the first batch.
    slow_notice = warm_up(engine, asked.settings, asked.origins) if division.copies == 1 else engine.slow_notice
    status.clear()
    about = ABOUT if options.checkpoint_dir is None else None
    seconds = time.monotonic() - started
    facts = checkpoint_facts(reloader.loaded, tokenizer, use_template, group.size, seconds, about, digest)
    if division.copies > 1:
        facts = facts.in_copies(division.words)
    notices = start_notices(facts, tokenizer, use_template, default_system(options))
    for line in (*notices, slow_notice, division.words if division.copies == 1 else None):
        if line:
            status.say(line)
    ready = Ready(
        options=options,
        streams=streams,
        lifeline=lifeline,
        engine=engine,
        tokenizer=tokenizer,
        settings=asked.settings,
        origins=asked.origins,
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
    # 4. What it is for.
    return use_to_the_end(ready, asked, ranks, division)


def ask(options: LaunchOptions, config: ConfigFile, status: Status) -> Asked:
    """Read what is asked for; begin to bring the weight files into memory. Raises ChatError."""
    prompts = asked_prompts(options, status)
    session = None if options.has_prompts or options.replay is not None else open_session(options)
    replay = None if options.replay is None else session_to_replay(options)
    steps = tuple(open_steps(options)) if options.steps else ()
    checkpoint = first_there(steps) if steps else open_asked(options)
    settings, origins = resolve_settings(options, config, checkpoint.generation_config, checkpoint.defaults)
    if not options.verify:
        prefetch(checkpoint.files)
    files = read_files(options, checkpoint, settings.template_arguments)
    digest = replace(digests(checkpoint), whole=verify(checkpoint, status) if options.verify else "")
    status.show(f"Loading {checkpoint.path}")
    return Asked(
        prompts=prompts,
        session=session,
        replay=replay,
        checkpoint=checkpoint,
        steps=steps,
        digest=digest,
        settings=settings,
        origins=origins,
        files=files,
    )


def meet(options: LaunchOptions, asked: Asked, lifeline: Lifeline) -> Ranks | None:
    """Wait for the other ranks and agree with them on what is loaded; None without others. Raises ChatError."""
    from dist.group.ranks import open_ranks

    complete_environment()
    ranks = open_ranks()
    if ranks is not None:
        lifeline.watch(ranks)
        ranks.meet(intent(options, asked.checkpoint, asked.digest))
        lifeline.watch(ranks)
    return ranks


def refuse_other_output(options: LaunchOptions, asked: Asked, use_template: bool, digest: str) -> None:
    """Raise UsageError for an output file of another run, as far as that can be seen without the model."""
    from chat.batch.in_turn import makers_of
    from chat.batch.run import check_output
    from chat.loading.trial import undecided

    known = {} if options.dtype == "auto" else {"dtype": options.dtype}
    names = undecided(asked.origins)
    if not asked.steps:
        known |= {"checkpoint": str(asked.checkpoint.path), "digest": digest}
        check_output(options, asked.settings, use_template, asked.prompts, known, names)
        return
    done = check_output(options, asked.settings, use_template, asked.prompts, known, names, makers_of(asked.steps))
    for number, step in enumerate(asked.steps):
        if step.problem is not None and number not in done:
            raise step.problem


def open_copies(engine: Engine, ranks: Ranks | None, division: Division) -> Copies | None:
    """The other copies of the model, if there are any."""
    if ranks is None or division.copies == 1:
        return None
    from chat.batch.copies import Copies

    return Copies(engine, ranks.store, division.copies, division.ranks)


def use_to_the_end(ready: Ready, asked: Asked, ranks: Ranks | None, division: Division) -> int:
    """Do what the model was loaded for, then let all ranks go; returns the exit code. Raises ChatError."""
    copies = open_copies(ready.engine, ranks, division)
    try:
        code = use(ready, asked, copies)
    except WeightsLost as error:
        # The ranks are well, and the followers wait for orders.
        let_go(error.exit_code, ready.lifeline, ready.engine, ranks, division, copies)
        raise
    let_go(code, ready.lifeline, ready.engine, ranks, division, copies)
    return code


def use(ready: Ready, asked: Asked, copies: Copies | None) -> int:
    """Do what the model was loaded for; returns the exit code."""
    if asked.replay is not None:
        return replay_session(ready, asked.replay)
    if asked.session is None:
        return answer_prompts(ready, asked.prompts, copies, asked.steps)
    return hold_conversation(ready, *asked.session)


def let_go(
    code: int, lifeline: Lifeline, engine: Engine, ranks: Ranks | None, division: Division, copies: Copies | None
) -> None:
    """All ranks end; the program ends with `code` in bounded time."""
    from dist.group.copies import tell_the_end

    lifeline.leave(code)
    if copies is not None:
        copies.let_go()
    if ranks is not None and division.copies * division.ranks < ranks.size:
        tell_the_end(ranks)
    engine.shutdown()
    engine.close()


def asked_prompts(options: LaunchOptions, status: Status) -> Prompts:
    """The prompts to answer, none for a conversation. Says so if it has to wait for them. Raises UsageError."""
    stdin = sys.stdin.buffer if sys.stdin else io.BytesIO()  # None where descriptor 0 is closed
    if options.reads_stdin and sys.stdin and not select.select([stdin], [], [], WAIT_S)[0]:
        status.say("Reading prompts from standard input, up to its end.")
    return read_prompts(options, stdin)


def verify(checkpoint: Checkpoint, status: Status) -> str:
    """Check every byte of this host's weight files; gives the digest of all. Raises CheckpointError."""
    from dist.checkpoint.verify import verify as check

    verified = check(checkpoint, partial(status.reading, "Verifying"))
    status.say(f"Verified: {verified}.")
    return verified.digest


def open_own_group(
    options: LaunchOptions, checkpoint: Checkpoint, ranks: Ranks | None, replies: int
) -> tuple[SoloGroup | TorchGroup, Division]:
    """Rank 0: decides which ranks hold a model together, informs all others, and opens its own group."""
    from chat.loading.division import divide, undivided
    from dist.group.copies import open_copy, tell_free_memory
    from dist.group.group import SoloGroup
    from dist.model.memory import free_bytes

    if ranks is None:
        return SoloGroup(), undivided(options.parallel, 1)
    tell_free_memory(ranks, free_bytes(ranks.device))
    division = divide(options.parallel, options.dtype, checkpoint, ranks, replies)
    return open_copy(ranks, division), division
