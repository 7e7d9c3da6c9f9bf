"""Prompts from the command line, a file or standard input. Knows no model and no template.

A file is read as the prompts are gone through, however often, and never held in memory whole. Before a model loads
its encoding is checked to the end and its first prompts one by one: what is wrong is said with file and line.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from chat.files import expand, has_lone_surrogates
from chat.start.option_checks import STDIN
from chat.start.options import LaunchOptions
from chat.text.transcript import ASSISTANT, USER, Message, Transcript
from dist.errors import ChatError, UsageError
from dist.plain_json import parse_json

STDIN_NAME = "Standard input"
# As many as are checked in about half a second; of a longer file the rest is checked when its turn comes.
CHECKED = 100_000
ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt: `given` as it was read (text, or a list of message objects), and as a transcript."""

    given: Any
    transcript: Transcript


class Prompts(Protocol):
    """The prompts of a run, which can be gone through several times."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Prompt]: ...


class _File:
    """What is common to files of prompts, which stay the same file if another takes its name."""

    def __init__(self, opened: BinaryIO, where: str) -> None:
        self._file_number = os.dup(opened.fileno())
        weakref.finalize(self, os.close, self._file_number)
        self._where = where
        self._count = self._check()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Prompt]:
        return islice(self._prompts(), self._count)

    @property
    def _path(self) -> Path:
        """A path by which the file can be opened again, at its beginning, even if it has no name."""
        return Path(f"/proc/self/fd/{self._file_number}")

    def _check(self) -> int:
        """How many prompts there are. Raises UsageError for what is wrong with the first ones."""
        raise NotImplementedError

    def _prompts(self) -> Iterator[Prompt]:
        raise NotImplementedError


class _Lines(_File):
    """A prompt a line; blank lines count for nothing."""

    def _check(self) -> int:
        count = 0
        for place, line in self._numbered():
            if count < CHECKED:
                self._parse(line, place)
            count += 1
        return count

    def _prompts(self) -> Iterator[Prompt]:
        return (self._parse(line, place) for place, line in self._numbered())

    def _numbered(self) -> Iterator[tuple[str, str]]:
        """The lines that are not blank, each with its place in words."""
        # Not universal newlines: form feeds and other separators belong to the text.
        with self._path.open(encoding="utf-8-sig", newline="\n") as file:
            try:
                for number, line in enumerate(file, start=1):
                    if not line.isspace():
                        yield f"{self._where}, line {number}", line.removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError:
                raise self._not_text() from None

    def _not_text(self) -> UsageError:
        number, byte = 0, 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):  # noqa: B007 (used after the loop)
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    byte = line[error.start]
                    break
        return _not_utf_8(self._where, number, byte)

    def _parse(self, line: str, place: str) -> Prompt:
        return _from_value(line, place)


class _JsonLines(_Lines):
    """A JSON object a line."""

    def _parse(self, line: str, place: str) -> Prompt:
        try:
            value = parse_json(line)
        except ValueError as error:
            raise UsageError(f"{place} is not JSON.", f"{error}.") from None
        if not isinstance(value, dict):
            raise UsageError(f"{place} is not a JSON object.", 'A line looks like {"prompt": "..."}.')
        return _from_record(value, place)


class _Parquet(_File):
    """A prompt a row, read some rows at a time."""

    def _check(self) -> int:
        try:
            import pyarrow as pa  # noqa: F401
        except ImportError:
            raise UsageError(
                f"{self._where} cannot be read: parquet needs the package pyarrow, which is missing.",
                hint="Run `pip install pyarrow`, or convert the file to .jsonl.",
            ) from None
        for _ in islice(self._prompts(), CHECKED):
            pass
        with self._file() as file:
            return int(file.metadata.num_rows)

    def _prompts(self) -> Iterator[Prompt]:
        import pyarrow as pa

        try:
            with self._file() as file:
                names = file.schema_arrow.names
                wanted = [name for name in ("messages", "prompt") if name in names]
                batches = file.iter_batches(ROWS_AT_ONCE, columns=wanted or names)
                rows = (row for batch in batches for row in batch.to_pylist())
                for number, row in enumerate(rows, start=1):
                    yield _from_record(row, f"{self._where}, row {number}")
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from None

    def _file(self) -> Any:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile

        try:
            # Buffered: else a whole row group is read at once, which may be the whole file.
            return ParquetFile(str(self._path), buffer_size=1 << 16, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> UsageError:
        return UsageError(f"{self._where} is not a parquet file that can be read.", f"{error}")


KINDS: dict[str, type[_File]] = {".jsonl": _JsonLines, ".parquet": _Parquet}


def read_prompts(options: LaunchOptions, stdin: BinaryIO) -> Prompts:
    """The prompts that the options name; none if they name none. Raises UsageError.

    `stdin` is read to its end if one of the options is `-`.
    """
    if options.prompts_file == STDIN:
        with _stored(stdin, STDIN_NAME) as stored:
            return _not_empty(_Lines(stored, STDIN_NAME), _no_text())
    if options.prompt == STDIN:
        return (_from_value(_whole_text(stdin), "--prompt"),)
    if options.prompt is not None:
        return (_from_value(options.prompt, "--prompt"),)
    if options.prompts_file is None:
        return ()
    path = expand(options.prompts_file)
    kind = KINDS.get(path.suffix.lower(), _Lines)
    try:
        with path.open("rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                prompts = kind(file, str(path))
            else:
                with _stored(file, str(path)) as stored:
                    prompts = kind(stored, str(path))
    except OSError as error:
        raise UsageError(f"The prompts file cannot be read: {path}.", f"{error.strerror}.") from None
    return _not_empty(prompts, UsageError(f"{path} holds no prompts."))


def _not_empty(prompts: _File, otherwise: UsageError) -> _File:
    if not len(prompts):
        raise otherwise
    return prompts


def _no_text() -> UsageError:
    return UsageError(
        "There is no prompt.",
        "Standard input holds no text.",
        "Pipe prompts into the program, give --prompt TEXT, or start it on a terminal for a conversation.",
    )


def _not_utf_8(where: str, line: int, byte: int) -> UsageError:
    return UsageError(
        f"{where} is not UTF-8.",
        f"Line {line} holds the byte 0x{byte:02x} where no character can begin or go on.",
        "Convert it, with iconv for example.",
    )


def _stored(stream: BinaryIO, name: str) -> BinaryIO:
    """What can be read but once, as a file that can be read again. Raises ChatError if the disk refuses."""
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
        shutil.copyfileobj(stream, file)
        file.flush()
    except OSError as error:
        folder = tempfile.gettempdir()
        raise ChatError(f"{name} cannot be stored in {folder}.", f"{error.strerror}.", "Set TMPDIR.") from error
    return file


def _whole_text(stdin: BinaryIO) -> str:
    """All of standard input as one text."""
    data = stdin.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf_8(STDIN_NAME, data.count(b"\n", 0, error.start) + 1, data[error.start]) from None
    if not text.strip():
        raise _no_text()
    return text.rstrip("\r\n")


def _from_record(record: dict[str, Any], place: str) -> Prompt:
    for name in ("messages", "prompt"):
        if record.get(name) is not None:
            return _from_value(record[name], place)
    keys = f"It has {', '.join(map(str, record))}." if record else "It has no keys."
    raise UsageError(f"{place} has neither prompt nor messages.", keys)


def _from_value(value: object, place: str) -> Prompt:
    """A prompt from text or from a list of messages (both are found under either name)."""
    if isinstance(value, str):
        return Prompt(given=value, transcript=Transcript((_message(USER, value, place),)))
    if not isinstance(value, list) or not value:
        raise UsageError(f"{place}: a prompt is text or a list of messages, not {_shown(value)}.")
    messages = []
    for one in value:
        if not isinstance(one, dict) or not all(isinstance(one.get(key), str) for key in ("role", "content")):
            raise UsageError(f"{place}: a message is an object with the texts role and content, not {_shown(one)}.")
        messages.append(_message(one["role"], one["content"], place))
    if messages[-1].role == ASSISTANT:
        raise UsageError(f"{place}: the last message is the assistant's, so there is nothing to answer.")
    return Prompt(given=value, transcript=Transcript(tuple(messages)))


def _message(role: str, content: str, place: str) -> Message:
    if has_lone_surrogates(content):
        raise UsageError(f"{place} holds half a surrogate pair, which is not a character.")
    return Message(role, content)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
