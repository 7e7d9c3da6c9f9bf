"""How a conversation is continued later: the command that does it. Knows no session's content."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from chat.files import write_whole
from dist.settings import SETTINGS

WORD_FILE = "continue"


def command_line(options: Sequence[str], environ: Mapping[str, str], name: str) -> str:
    """The command that starts the program as it was started with `options`, and resumes the session `name`."""
    if "DLLM_LAUNCHER_PID" not in environ:
        return f"the same command with --resume {name}"
    words = ["bash", "run_chat.sh"]
    ranks = environ.get("LOCAL_WORLD_SIZE", "1")
    words += [ranks] if ranks != "1" else []
    rest = _without(options)
    if rest and rest[0].startswith("--checkpoint_dir="):  # as the second argument of the script
        words.append(rest.pop(0).partition("=")[2])
    return shlex.join([*words, *rest, "--resume", name])


def _without(options: Sequence[str]) -> list[str]:
    """The options but for --resume, for settings, which the session restores as they were last, and for a `--`."""
    kept: list[str] = []
    skip = False
    for word in options:
        if skip and not word.startswith("--"):
            skip = False
            continue
        name, equals, _ = word.partition("=")
        dropped = word.startswith("--") and name[2:].replace("-", "_") in {"resume", *SETTINGS}
        skip = dropped and not equals
        if not dropped and word != "--":  # which the launcher puts before them
            kept.append(word)
    return kept


def leave_word(run_dir: Path, text: str) -> None:
    """Leave `text` for the start script, which shows it if this process is killed."""
    with suppress(OSError):
        write_whole(run_dir / WORD_FILE, f"{text}\n".encode(errors="replace"))
