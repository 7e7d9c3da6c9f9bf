"""What the start script asks before any set-up: are options and hosts sound, which model is meant. Knows no torch.

`python -m chat.start.preflight [options of python -m chat]` prints `demo` or `checkpoint`, or refuses with exit
code 2. Where the newest step of a run lacks a part it asks a user at a terminal whether to open the newest complete
one, and prints that one's folder on a line of its own.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from chat.start.options import LaunchOptions, asked_options, load_config, parse_options, with_config
from chat.terminal.streams import text_waits
from dist.checkpoint.folder import find_weights
from dist.errors import ChatError, CheckpointError, StepIncomplete
from dist.group.hosts import Hosts, check_interfaces


def main(arguments: list[str]) -> int:
    complete = None
    try:
        hosts = Hosts.from_environment()
        check_interfaces()
        if hosts.node == 0:
            options = parse_options(arguments, stdin_is_terminal=os.isatty(0), text_is_piped=partial(text_waits, 0))
        else:  # a host of followers: prompts, results and keyboard are at rank 0's
            options = asked_options(arguments, sys.stdout)
        # Every host has to open the same folder, and only one has a user.
        if hosts.nodes == 1 and os.isatty(0) and os.isatty(2) and not options.steps:
            complete = complete_step(options)
    except ChatError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print("checkpoint" if options.checkpoint_dir or options.replay else "demo")
    if complete is not None:
        print(complete)
    return 0


def complete_step(options: LaunchOptions) -> str | None:
    """The folder to open in place of a run whose step is half written, if there is one and the user wants it.

    Raises CheckpointError if not. Anything else wrong with the folder is left for the program to report.
    """
    folder = with_config(options, load_config()).checkpoint_dir
    try:
        if folder is not None:
            find_weights(Path(folder).expanduser())
    except StepIncomplete as error:
        print(f"{error.what} {error.why}", file=sys.stderr)
        print(f"Open {Path(error.complete).name}? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return error.complete
        raise CheckpointError(error.hint) from None
    except (CheckpointError, OSError):
        pass
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
