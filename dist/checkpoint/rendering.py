"""Chat templates at work, in a process of their own that is ended when one takes too long. Knows no tokenizer.

A template is a program that came with the checkpoint: its sandbox keeps it from doing anything but text, and this
keeps it from doing that forever or without bounds.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Messages = Sequence[Mapping[str, Any]]

# A rendering takes milliseconds. The process has to import jinja2 first, perhaps on a very busy machine.
RENDER_S, START_S = 10.0, 120.0
PROJECT = Path(__file__).resolve().parents[2]
CHUNK = 1 << 20


class Refused(Exception):
    """A template refuses its messages or cannot deal with them; `line` is where it cannot be parsed."""

    def __init__(self, words: str, line: int | None = None) -> None:
        super().__init__(words)
        self.line = line


class Stopped(Exception):
    """A template takes too long or makes too much; says which."""


class Renderer:
    """One template with the special tokens that it is given. Its process begins at once and ends with this.

    Threads may share it: each is given the answer to what it asked.
    """

    def __init__(self, template: str, tokens: Mapping[str, Any], *, seconds: float = RENDER_S) -> None:
        """`seconds` is what one rendering may take."""
        self._template = template
        self._tokens = dict(tokens)
        self._seconds = seconds
        self._child = _Child()
        self._asking = threading.Lock()

    def render(self, messages: Messages, begin_reply: bool, arguments: Mapping[str, Any] | None = None) -> str:
        """The text of messages, and of a reply's beginning. Raises Refused, Stopped.

        `arguments` are those that only this template reads.
        """
        values = {**self._tokens, **(arguments or {}), "messages": list(messages), "tools": None}
        return str(
            self._answer({"values": {**values, "documents": None, "add_generation_prompt": begin_reply}})["text"]
        )

    def arguments(self) -> list[str]:
        """The variables that the template reads and does not set. Raises Refused, Stopped."""
        return list(self._answer({})["names"])

    def _answer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        with self._asking:
            try:
                found = self._child.ask({"template": self._template, **request}, self._seconds)
            except BaseException:
                # Also where Ctrl-C comes in between: an answer left in the pipe would be that of the next request.
                self._child.end()
                self._child = _Child()
                raise
        if "stopped" in found:
            raise Stopped(found["stopped"])
        if "error" in found:
            raise Refused(found["error"], found.get("line"))
        return found


class _Child:
    """The process. What was asked of it is answered, or it is ended."""

    def __init__(self) -> None:
        gone, alive = os.pipe()
        paths = (str(PROJECT), *filter(None, sys.path))
        self._process = subprocess.Popen(
            # Without `site`: all that it would add is in the path already.
            [sys.executable, "-S", "-m", "dist.checkpoint.render_child", str(gone)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(gone,),
        )
        os.close(gone)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # a long conversation then goes over in one piece
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, CHUNK)
        self._ready = False
        # Closed with this process, however that ends.
        self.end = weakref.finalize(self, _end, self._process, alive)

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The answer. Raises Stopped, after which this is of no more use, and Refused where there is no jinja2."""
        if not self._ready:
            if self._line(START_S) != b"\n":
                raise Refused("jinja2 cannot be imported in a process of its own")
            self._ready = True
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            line = b""
        else:
            line = self._line(seconds)
        if not line.endswith(b"\n"):
            raise Stopped("It crashed the process that it ran in: too much memory, or too deep a recursion.")
        found: dict[str, Any] = json.loads(line)
        return found

    def _line(self, seconds: float) -> bytes:
        """What it writes next, to the end of the line or to its own end."""
        assert self._process.stdout is not None
        file = self._process.stdout.fileno()
        parts: list[bytes] = []
        deadline = time.monotonic() + seconds
        while not parts or not parts[-1].endswith(b"\n"):
            if not select.select([file], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Stopped(f"It takes more than {seconds:g} s.")
            part = os.read(file, CHUNK)
            if not part:
                break
            parts.append(part)
        return b"".join(parts)


def _end(process: subprocess.Popen[bytes], alive: int) -> None:
    process.kill()
    process.wait()
    os.close(alive)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:  # what was written last is still in it
                continue
