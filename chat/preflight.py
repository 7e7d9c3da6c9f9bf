"""What the start script asks before any set-up: are the options sound, and which model is meant. Knows no torch.

`python -m chat.preflight [options of python -m chat]` prints `demo` or `checkpoint`, or refuses with exit code 2.
"""

from __future__ import annotations

import os
import sys

from chat.options import parse_options
from dist.errors import ChatError


def main(arguments: list[str]) -> int:
    try:
        options = parse_options(arguments, stdin_is_terminal=os.isatty(0))
    except ChatError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print("checkpoint" if options.checkpoint_dir else "demo")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
