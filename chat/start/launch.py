"""torchrun with its own talk in a log. The ranks keep this process's streams.

`python -m chat.start.launch LOG [torchrun's options] -m MODULE [its arguments]`. torchrun hands file descriptors 0,
1 and 2 on to its workers and closes all others, so its banner cannot be sent elsewhere by the shell without taking
the ranks' stderr along.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main() -> None:
    # Only the Python object changes: the workers inherit descriptor 2 as it is. Never closed, since the
    # interpreter still prints torchrun's last exception to it.
    sys.stderr = Path(sys.argv[1]).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115
    del sys.argv[1]
    # What follows `--` is the program's: torchrun would take `--n` for a shortened option of its own.
    sys.argv.insert(sys.argv.index("-m") + 2, "--")
    runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
