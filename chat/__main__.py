"""The program: open the group, load, then rank 0 talks and the others follow.

`python -m chat` on one process, `torchrun ... -m chat` on several; run_chat.sh does either.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import traceback
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, NoReturn

from chat.start.early_ranks import complete_environment
from chat.start.options import LaunchOptions, asked_options, load_config, parse_options, with_config
from chat.terminal.lifeline import LEAVE_S, TORCHRUN_PID, Lifeline, watch_rank_0
from chat.terminal.process import die_with_parent, end_within, write_ending, write_status
from chat.terminal.streams import Streams, open_streams, text_waits
from chat.terminal.streams import say as say_on
from dist.errors import ChatError, CheckpointError, RankError

if TYPE_CHECKING:
    from dist.checkpoint.digest import Digests
    from dist.checkpoint.open import Checkpoint
    from dist.group.ranks import Ranks

# How long a rank that failed because a peer is gone waits for that peer to be blamed first.
LINGER_S = 3.0
# oneDNN and torch's layer above it each keep up to 1,024 prepared products, one for every shape and number of rows
# that they met, and both together 0.5 MiB for each. To prepare one again takes half a millisecond.
ONEDNN_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
ONEDNN_CACHED = "128"


def main() -> None:
    """Run one rank; ends the process."""
    # Until import_libraries is done, whatever becomes of it; what is wrong before ends the process. All that is
    # imported stays, and looking through it again and again takes 0.3 s.
    gc.disable()
    rank = int(os.environ.get("RANK", "0"))
    try:
        if rank == 0:
            options = parse_options(
                sys.argv[1:], stdin_is_terminal=os.isatty(0), text_is_piped=partial(text_waits, 0)
            )
        else:
            options = asked_options(sys.argv[1:], io.StringIO())
        # Every rank reads the config file: it may say how the model is spread and in which dtype.
        options = with_config(options, load_config())
    except ChatError as error:
        if rank == 0:
            print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    if options.replay is not None:
        from chat.activities import with_replayed_checkpoint

        options = with_replayed_checkpoint(options)
    if "RANK" in os.environ or "DLLM_LAUNCHER_PID" in os.environ:
        parent = os.environ.get(TORCHRUN_PID if "RANK" in os.environ else "DLLM_LAUNCHER_PID")
        die_with_parent(signal.SIGTERM if rank == 0 else signal.SIGKILL, parent)
    for variable in ONEDNN_CACHES:
        os.environ.setdefault(variable, ONEDNN_CACHED)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ["HF_HUB_OFFLINE"] = "1"
    streams = open_streams()
    if rank == 0:
        lead(options, streams)
    follow(options, streams)


def lead(options: LaunchOptions, streams: Streams) -> NoReturn:
    """Rank 0: everything the user sees."""
    from chat.leader import run

    say = partial(say_on, streams)
    lifeline = Lifeline(say=say, run_dir=streams.run_dir, answer_s=options.answer_timeout)
    lifeline.start()
    try:
        code = run(options, streams, lifeline)
    except RankError as error:
        if options.debug:
            say(traceback.format_exc())
        lifeline.end_after_rank_failure(str(error))
    except ChatError as error:
        say(traceback.format_exc() if options.debug else str(error))
        code = error.exit_code
    except Exception as error:  # noqa: BLE001  (the edge of the program)
        detail = traceback.format_exc()
        print(detail, file=sys.stderr)
        message = f"{type(error).__name__}: {error}\nDetails: {streams.run_dir}/rank0.log, or start with --debug."
        say(detail if options.debug else message)
        code = 1
    lifeline.leave(code)
    os._exit(code)


def follow(options: LaunchOptions, streams: Streams) -> NoReturn:
    """Any other rank: silent, at rank 0's orders. What goes wrong is reported to rank 0, and on this host."""
    from chat.loading.opening import intent
    from dist.model.libraries import wake_gpu

    wake_gpu()
    ranks: Ranks | None = None
    try:
        checkpoint, problem = open_or_problem(options)
        ranks = join(options, streams)
        digest, problem = (None, problem) if checkpoint is None else digest_or_problem(options, checkpoint)
        ranks.meet(intent(options, checkpoint, digest, problem))
        assert checkpoint is not None  # else all ranks have refused
        serve(options, ranks, checkpoint)
        ending, code = "Node 0 has ended the run.", 0
    except ChatError as error:
        # A peer is gone, or all ranks raised the same. Stay a moment, so that torchrun and rank 0 blame that one.
        ending, code = str(error), error.exit_code
        print(error, file=sys.stderr, flush=True)
        signal.sigtimedwait([], LINGER_S)
    except Exception as error:  # noqa: BLE001  (the edge of the program)
        traceback.print_exc()
        how = f"failed: {type(error).__name__}: {error}".splitlines()[0]
        ending, code = f"Rank {os.environ['RANK']} {how}", 1
        end_within(LEAVE_S, code)
        if ranks is not None:
            ranks.record_failure(how)
    write_ending(streams.run_dir, ending)
    if os.environ.get("GROUP_RANK", "0") != "0":  # a host without rank 0
        write_status(streams.run_dir, code)
    sys.stderr.flush()
    os._exit(code)


def open_or_problem(options: LaunchOptions) -> tuple[Checkpoint | None, str | None]:
    """This host's copy of the checkpoint, or why it cannot be used: for rank 0 to report."""
    from chat.loading.opening import open_asked

    try:
        return open_asked(options), None
    except CheckpointError as error:
        return None, str(error)


def digest_or_problem(options: LaunchOptions, checkpoint: Checkpoint) -> tuple[Digests | None, str | None]:
    """The digest of this host's copy, of its every byte too if --verify asks for it, or why it cannot be used."""
    from chat.loading.opening import reads_for_host
    from dist.checkpoint.digest import digests
    from dist.checkpoint.verify import verify

    whole = options.verify and reads_for_host()
    try:
        return replace(digests(checkpoint), whole=verify(checkpoint).digest if whole else ""), None
    except CheckpointError as error:
        return None, str(error)


def join(options: LaunchOptions, streams: Streams) -> Ranks:
    """Reach the other ranks, and from then on end if rank 0 gives no sign of life. Raises ChatError."""
    from dist.group.ranks import Ranks

    complete_environment()
    ranks = Ranks()
    watch_rank_0(ranks, streams.run_dir, options.answer_timeout)
    return ranks


def serve(options: LaunchOptions, ranks: Ranks, checkpoint: Checkpoint) -> None:
    """Load with the others and answer until rank 0 shuts down. Raises ChatError."""
    from chat.batch.copies import serve as serve_copy
    from chat.batch.copies import tell_failure
    from chat.loading.opening import import_libraries, load, open_tokenizer
    from chat.text.stops import stop_finder
    from dist.group.copies import hear_division, open_copy, tell_free_memory, wait_for_the_end
    from dist.model.memory import free_bytes

    import_libraries(options)
    tell_free_memory(ranks, free_bytes(ranks.device))
    division = hear_division(ranks)
    copy = division.copy_of(ranks.rank)
    if copy is None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        wait_for_the_end(ranks)
        return
    group = open_copy(ranks, division)
    leads = copy > 0 and group.rank == 0
    try:
        plain = replace(options, use_chat_template=False)
        ends = stop_finder(cache(lambda: open_tokenizer(plain, checkpoint))) if leads else None
        engine = load(options, group, checkpoint, division.mode, None, ends)[0]
    except ChatError as error:
        if leads:
            tell_failure(ranks.store, copy, error)
        raise
    # Ctrl-C is rank 0's to answer: from here on it ends a reply or a list of prompts, not the ranks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if leads:
        serve_copy(engine, ranks.store, copy)
    else:
        engine.follow()
    end_within(LEAVE_S, 0)
    engine.close()


if __name__ == "__main__":
    main()
