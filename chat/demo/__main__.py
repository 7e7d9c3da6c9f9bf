"""`python -m chat.demo`: prepare the embedded model if need be and print its folder.

`--check` only says by its exit code (0 or 1) whether it is there; `--can-prepare` whether this environment
holds the packages for making it.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

from chat.demo import demo_folder, is_ready
from dist.errors import ChatError


def main(arguments: list[str]) -> int:
    """The exit code. Raises nothing that a user should read."""
    if arguments == ["--check"]:
        print(demo_folder())
        return 0 if is_ready() else 1
    from chat.demo.prepare import missing_packages, prepare

    if arguments == ["--can-prepare"]:
        return 1 if missing_packages() else 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        print(prepare(lambda line: print(line, file=sys.stderr, flush=True)))
    except ChatError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted; nothing half-made was kept.", file=sys.stderr)
        return 130
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
