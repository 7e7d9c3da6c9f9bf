"""A text in the user's own editor, on a terminal that is lent to it. Knows no input line."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from chat.terminal.mode import BaseMode
from chat.terminal.streams import Streams


def edit_text(text: str, streams: Streams, mode: BaseMode) -> str:
    """`text` as $VISUAL, $EDITOR or vi leaves it, unchanged if the editor fails. Raises OSError if there is none.

    The editor gets the terminal explicitly, and a mode without keys that signal: it is not the terminal's
    foreground job, so its Ctrl-C would end the launcher.
    """
    command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "") or ["vi"]
    terminal = streams.replies.fileno()
    with tempfile.TemporaryDirectory(prefix="dllm-chat-") as folder:
        path = Path(folder) / "message.md"
        path.write_text(text, encoding="utf-8")
        with mode.lent():
            done = subprocess.run([*command, path], stdin=streams.keyboard_fd, stdout=terminal, stderr=terminal)
        if done.returncode == 0:
            text = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n")
    return text
