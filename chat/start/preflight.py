"""What the start script asks before any set-up: are options and hosts sound, which model is meant. Knows no torch.

`python -m chat.start.preflight [options of python -m chat]` prints `demo` or `checkpoint`, or refuses with exit
code 2.
"""

from __future__ import annotations

import os
import sys

from chat.start.options import asked_options, parse_options
from dist.errors import ChatError
from dist.group.hosts import Hosts, check_interfaces


def main(arguments: list[str]) -> int:
    try:
        hosts = Hosts.from_environment()
        check_interfaces()
        if hosts.node == 0:
            options = parse_options(arguments, stdin_is_terminal=os.isatty(0))
        else:  # a host of followers: prompts, results and keyboard are at rank 0's
            options = asked_options(arguments, sys.stdout)
    except ChatError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print("checkpoint" if options.checkpoint_dir else "demo")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
