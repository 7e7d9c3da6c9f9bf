"""The folder of sessions: finding one, listing them, searching them. Reads no more of a journal than it must.

Knows no open session; another program may rename or remove a file at any moment.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from chat.files import state_folder
from chat.sessions.journal import read_journal
from dist.errors import UsageError
from dist.plain_json import parse_json

SUFFIX = ".jsonl"
NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}")
# A line of the beginning that is longer than this is not read whole; the words that are shown come first in it.
LINE_BYTES = 64 << 10
HEAD_LINES = 12
OPENING = 80
# How many sessions are offered at a key, and how long the order of their names may be kept.
OFFERED = 50
LISTED_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """One line of `/sessions`. `changed` is in seconds since the epoch, `opening` the first message's beginning."""

    name: str
    changed: float
    step: int | None = None
    opening: str = ""

    @property
    def words(self) -> str:
        """What it can be found by, in small letters."""
        return f"{self.name}\n{self.opening}".casefold()


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A message that holds the words that were looked for, and the text around them."""

    name: str
    changed: float
    role: str
    around: str


def sessions_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where journals are; it need not exist."""
    return state_folder(environ) / "sessions"


def history_path(environ: Mapping[str, str] = os.environ) -> Path:
    """The file of past input lines; neither it nor its folder need exist."""
    return state_folder(environ) / "history"


def journals(folder: Path) -> list[tuple[float, str]]:
    """The paths of all journals in `folder`, each with the time of its last change, the latest first."""
    dated: list[tuple[float, str]] = []
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return []
    for entry in entries:
        if entry.name.endswith(SUFFIX):
            try:
                found = entry.stat()
            except OSError:  # renamed in this moment by the program that has it open, or a link to nothing
                continue
            if stat.S_ISREG(found.st_mode):
                dated.append((found.st_mtime, entry.path))
    return sorted(dated, reverse=True)


def find_session(folder: Path, name: str = "") -> Path:
    """The journal of the named session, or of the one changed last. Raises UsageError if there is none."""
    dated = [Path(path) for _, path in journals(folder) if os.access(path, os.R_OK)]
    if not dated:
        raise UsageError("There is no session to resume.", f"None is in {folder}.")
    if not name:
        return dated[0]
    found = next((path for path in dated if path.name == name + SUFFIX), None)
    if found is None:
        names = [path.name.removesuffix(SUFFIX) for path in dated[:5]]
        verb = "is" if len(names) == 1 else "are"
        raise UsageError(f"There is no session named {name}.", hint=f"The latest {verb} {', '.join(names)}.")
    return found


def check_name(name: str) -> None:
    """Raises UsageError for what cannot be a session's name."""
    if not NAME.fullmatch(name):
        raise UsageError(
            f"A session cannot be named {name!r}.",
            "A name consists of letters, digits and . _ + - and begins with a letter or digit.",
        )


class Sessions:
    """What is known of the sessions in a folder; of each, what was read once is kept until its file changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, SessionInfo] = {}
        self._listed: tuple[tuple[float, float], list[tuple[float, str]]] | None = None

    def latest(self, *, word: str = "", limit: int | None = None) -> Iterator[SessionInfo]:
        """Sessions, the one changed last first: those with `word` in their name or first words, at most `limit`."""
        wanted = word.casefold()
        found = (info for info in self._described(journals(self.folder)) if wanted in info.words)
        return islice(found, limit)

    def offered(self, beginning: str) -> Iterator[SessionInfo]:
        """The latest sessions whose name begins so, to complete it at a key: their order may be some time old, and
        no more than a few files are opened.
        """
        now, changed = time.monotonic(), _changed(self.folder)
        if self._listed is None or self._listed[0][1] != changed or now - self._listed[0][0] > LISTED_S:
            self._listed = (now, changed), journals(self.folder)
        start = os.path.join(self.folder, beginning)  # noqa: PTH118  (2,000 Paths take longer than all else here)
        return islice(self._described(one for one in self._listed[1] if one[1].startswith(start)), OFFERED)

    def warm_up(self) -> None:
        """Read what the first key is to find at hand. May run on a thread of its own."""
        for _ in self.offered(""):
            pass

    def _described(self, dated: Iterable[tuple[float, str]]) -> Iterator[SessionInfo]:
        for changed, path in dated:
            known = self._known.get(path)
            if known is None or known.changed != changed:
                try:
                    known = self._known[path] = describe(Path(path), changed)
                except OSError:
                    continue
            yield known

    def find(self, words: str) -> Iterator[Found]:
        """Every message of every session that holds `words` (small and capital letters are the same)."""
        wanted = words.casefold()
        # In a file, a word may stand with its quotes and line ends escaped.
        written = json.dumps(words, ensure_ascii=False)[1:-1].casefold()
        for changed, path in journals(self.folder):
            try:
                data = Path(path).read_bytes()
            except OSError:
                continue
            if written not in data.decode(errors="replace").casefold():
                continue
            for node in read_journal(data).tree.nodes():
                at = node.text.casefold().find(wanted)
                if at >= 0:
                    begin = node.text.rfind(" ", 0, max(0, at - 30)) + 1
                    yield Found(
                        name=Path(path).name.removesuffix(SUFFIX),
                        changed=changed,
                        role=node.role,
                        around=" ".join(node.text[max(begin, at - 60) : at + len(words) + 50].split()),
                    )


def _changed(folder: Path) -> float:
    """When a file was last added to `folder`, renamed or removed."""
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def describe(path: Path, changed: float) -> SessionInfo:
    """A few words on a journal, from its first lines. Raises OSError."""
    step: int | None = None
    opening = ""
    with path.open("rb") as file:
        for _ in range(HEAD_LINES):
            line = file.readline(LINE_BYTES)
            if not line:
                break
            if not line.endswith(b"\n"):  # a very long message, or one that is being written
                opening = _beginning_of_text(line)
                break
            try:
                record = _plain(parse_json(line))
            except ValueError:
                continue
            match record.get("kind"):
                case "checkpoint":
                    step = record.get("step")
                case "start":
                    step = _plain(record.get("facts")).get("step")
                    opening = _first_question(record.get("messages"))
                case "turn":
                    opening = str(record.get("text") or _plain(record.get("message")).get("content") or "")
            if opening:
                break
    return SessionInfo(
        name=path.name.removesuffix(SUFFIX),
        changed=changed,
        step=step if isinstance(step, int) else None,
        opening=" ".join(opening[: 4 * OPENING].split())[:OPENING],
    )


def _beginning_of_text(line: bytes) -> str:
    """The beginning of the value of "text" in a JSON line that is cut short."""
    _, _, value = line.decode(errors="replace").partition('"text":"')
    text = re.match(r'(?:[^"\\]|\\.)*', value[: 4 * OPENING], re.DOTALL)
    return str(json.loads(f'"{text[0]}"', strict=False)) if text and text[0] else ""


def _plain(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _first_question(messages: object) -> str:
    plain = messages if isinstance(messages, list) else []
    return next((str(one.get("content", "")) for one in map(_plain, plain) if one.get("role") == "user"), "")
