"""The journal of a conversation on disk, written as it goes. Knows no model; only rank 0 uses it.

One JSON object a line, each line written whole by one write; `journal.py` reads it back.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from chat.files import append_line, state_folder
from chat.sessions.journal import Restored, SessionInfo, describe, read_journal
from chat.text.transcript import Message, Transcript
from dist.errors import ChatError, UsageError

SUFFIX = ".jsonl"
NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}")


def sessions_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where journals lie; it need not exist."""
    return state_folder(environ) / "sessions"


def history_path(environ: Mapping[str, str] = os.environ) -> Path:
    """The file of past input lines; neither it nor its folder need exist."""
    return state_folder(environ) / "history"


class Session:
    """An open journal. Its file comes into being with the first turn, so unused sessions leave nothing behind.

    If the disk refuses a record, ChatError is raised once and later records are dropped in silence, so that
    the conversation can go on.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "",
        transcript: Transcript | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """A new session. `transcript` is what it starts with, `facts` what is known of the checkpoint."""
        if name:
            _check_name(name)
        self.name = name or f"{time.strftime('%Y-%m-%d-%H%M%S')}-{secrets.token_hex(2)}"
        self._folder = folder
        self._known = transcript or Transcript()
        self._in_reply = False
        self._facts = dict(facts or {})
        self._file: int | None = None
        self._dropped = False
        self._so_far = ""

    @classmethod
    def resume(cls, folder: Path, name: str = "") -> tuple[Session, Restored]:
        """Open the named session, or the latest one, to go on with it; and what it holds.

        An unfinished last line is cut off. Raises UsageError if there is no such session or another program has
        it open, ChatError if it cannot be read.
        """
        path = find_session(folder, name)
        session = cls(folder)
        session.name = path.name.removesuffix(SUFFIX)
        try:
            session._file = _open(path)
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            os.ftruncate(session._file, len(whole))
        except OSError as error:
            session.close()
            raise ChatError(f"The session {session.name} cannot be opened.", f"{error}.") from error
        restored = read_journal(whole)
        session._known = restored.transcript
        return session, restored

    @property
    def path(self) -> Path:
        """Where the journal is, or will be."""
        return self._folder / (self.name + SUFFIX)

    def turn(self, transcript: Transcript, settings: Mapping[str, Any], *, tentative: bool = False) -> None:
        """The conversation with the person's message at its end, before anything is generated.

        `tentative`: it takes the place of what the journal holds once a block is finished, and not before.
        """
        *before, message = transcript.messages
        start: dict[str, Any] = {}
        if tentative:
            start = {"messages": [one.as_dict() for one in before]}
        # What follows an error in a reply does not go on from what the journal holds.
        elif self._in_reply or self._known.mark_unanswered().messages != tuple(before):
            self.replace(Transcript(tuple(before)))
        self._so_far = ""
        self._in_reply = False
        self._write("turn", **start, message=message.as_dict(), settings=dict(settings))
        self._known = transcript

    def block(self, token_ids: Sequence[int], text: str) -> None:
        """A finished block of the reply: its ids, and the text of the whole reply up to its end."""
        # Only what differs from the text before is written, else a long reply's journal grows with its square.
        keep = _common_length(self._so_far, text)
        self._so_far = text
        self._write("block", token_ids=list(token_ids), keep=keep, text=text[keep:])
        self._in_reply = True

    def reply(self, message: Message) -> None:
        """The reply as it ended. A reply without a finished block is not written: its message is unanswered."""
        self._so_far = ""
        self._write("reply", message=message.as_dict())
        self._known = Transcript((*self._known.messages, message))
        self._in_reply = False

    def replace(self, transcript: Transcript) -> None:
        """The whole conversation, after a change that is no turn (`/undo`, `/system`, `/clear`, ...)."""
        self._so_far = ""
        self._known = transcript
        self._in_reply = False
        if self._file is not None:
            self._write("transcript", messages=[message.as_dict() for message in transcript.messages])

    def set_facts(self, facts: Mapping[str, Any]) -> None:
        """What is known of the checkpoint from here on."""
        self._facts = dict(facts)
        if self._file is not None:
            self._write("facts", facts=self._facts)

    def rename(self, name: str) -> None:
        """Give the session a name to find it by. Raises UsageError for a bad or taken name, ChatError if the
        disk refuses.
        """
        _check_name(name)
        if name == self.name:
            return
        target = self._folder / (name + SUFFIX)
        if target.exists():
            raise UsageError(f"There is a session named {name} already.", mend="Choose another name.")
        if self._file is not None:
            try:
                self.path.rename(target)
            except OSError as error:
                raise ChatError(f"The session cannot be named {name}.", f"{error}.") from error
        self.name = name

    def close(self) -> None:
        """Let go of the journal."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, kind: str, **record: Any) -> None:
        if self._dropped:
            return
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._file = _open(self.path, os.O_CREAT | os.O_EXCL)
                messages = [message.as_dict() for message in self._known.messages]
                start = {"version": 1, "time": round(time.time(), 3), "facts": self._facts, "messages": messages}
                append_line(self._file, {"kind": "start", **start})
            append_line(self._file, {"kind": kind, **record})
        except OSError as error:
            self._dropped = True
            raise ChatError(
                "The conversation is no longer being saved.",
                f"{self.path}: {error.strerror}.",
                "It goes on here; /export FILE writes it elsewhere.",
            ) from error


def find_session(folder: Path, name: str = "") -> Path:
    """The journal of the named session, or of the one changed last. Raises UsageError if there is none."""
    paths = journals(folder)
    if not paths:
        raise UsageError("There is no session to go on with.", f"None is in {folder}.")
    if not name:
        return paths[0]
    found = next((path for path in paths if path.name == name + SUFFIX), None)
    if found is None:
        names = [path.name.removesuffix(SUFFIX) for path in paths[:5]]
        raise UsageError(f"There is no session named {name}.", mend=f"The latest are {', '.join(names)}.")
    return found


def journals(folder: Path) -> list[Path]:
    """All journals in `folder` that can be read, the one changed last first."""
    dated: list[tuple[float, Path]] = []
    for path in folder.glob("*" + SUFFIX):
        try:
            found = path.stat()
        except OSError:  # renamed in this moment by the program that has it open, or a link to nothing
            continue
        if stat.S_ISREG(found.st_mode) and os.access(path, os.R_OK):
            dated.append((found.st_mtime, path))
    return [path for _, path in sorted(dated, reverse=True)]


def list_sessions(folder: Path) -> tuple[SessionInfo, ...]:
    """A few words on every session that can be read, the one changed last first."""
    found: list[SessionInfo] = []
    for path in journals(folder):
        with suppress(OSError):
            found.append(describe(path))
    return tuple(found)


def _open(path: Path, more: int = 0) -> int:
    """A locked journal, ready for the next line. Raises OSError, or UsageError if it is open elsewhere."""
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | more, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        name = path.name.removesuffix(SUFFIX)
        raise UsageError(
            f"The session {name} is open in another program.",
            "Two programs cannot write the same session.",
            "End the other one, or name another session.",
        ) from None
    return file


def _common_length(one: str, other: str) -> int:
    if other.startswith(one):
        return len(one)
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise UsageError(
            f"A session cannot be named {name!r}.",
            "Names are made of letters, digits and . _ + -, and begin with a letter or digit.",
        )
