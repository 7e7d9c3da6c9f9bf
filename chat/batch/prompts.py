"""Prompts from the command line, a file or standard input, read and checked whole. Knows no model and no template.

Everything wrong with them is said before a model loads, with file and line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from chat.files import expand, has_lone_surrogates
from chat.start.options import STDIN, LaunchOptions
from chat.text.transcript import ASSISTANT, USER, Message, Transcript
from dist.errors import UsageError

STDIN_NAME = "Standard input"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt: `given` as it was read (text, or a list of message objects), and as a transcript."""

    given: Any
    transcript: Transcript


def read_prompts(options: LaunchOptions, stdin: BinaryIO) -> tuple[Prompt, ...]:
    """The prompts that the options name; none if they name none. Raises UsageError.

    `stdin` is read to its end if one of the options is `-`.
    """
    if options.reads_stdin:
        data = stdin.read()
        text = _decode(data, STDIN_NAME)
        if not text.strip():
            raise UsageError(
                "There is no prompt.",
                "Standard input holds no text.",
                "Pipe prompts into the program, give --prompt TEXT, or start it on a terminal for a conversation.",
            )
        if options.prompts_file == STDIN:
            return tuple(_lines(data, STDIN_NAME))
        return (_from_value(text.rstrip("\r\n"), "--prompt"),)
    if options.prompt is not None:
        return (_from_value(options.prompt, "--prompt"),)
    if options.prompts_file is None:
        return ()
    path = expand(options.prompts_file)
    prompts = tuple(_file(path))
    if not prompts:
        raise UsageError(f"{path} holds no prompts.")
    return prompts


def _file(path: Path) -> Iterable[Prompt]:
    read: Callable[[bytes, str], Iterable[Prompt]] = {".jsonl": _json_lines, ".parquet": _parquet}.get(
        path.suffix.lower(), _lines
    )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"The prompts file cannot be read: {path}.", f"{error.strerror}.") from None
    return read(data, str(path))


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{where} is not UTF-8.",
            f"Line {line} holds the byte 0x{data[error.start]:02x} where no character can begin or go on.",
            "Convert it, with iconv for example.",
        ) from None


def _numbered(data: bytes, where: str) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, each with its place in words."""
    # Not splitlines(): it also breaks at form feeds and at separators that belong to the text.
    for number, line in enumerate(_decode(data, where).split("\n"), start=1):
        if line.strip():
            yield f"{where}, line {number}", line.removesuffix("\r")


def _lines(data: bytes, where: str) -> Iterator[Prompt]:
    for place, line in _numbered(data, where):
        yield _from_value(line, place)


def _json_lines(data: bytes, where: str) -> Iterator[Prompt]:
    for place, line in _numbered(data, where):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{place} is not JSON.", f"{error}.") from None
        if not isinstance(value, dict):
            raise UsageError(f"{place} is not a JSON object.", 'A line looks like {"prompt": "..."}.')
        yield _from_record(value, place)


def _parquet(data: bytes, where: str) -> Iterator[Prompt]:
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UsageError(
            f"{where} cannot be read: parquet needs the package pyarrow, which is missing.",
            hint="Run `pip install pyarrow`, or convert the file to .jsonl.",
        ) from None
    try:
        file = ParquetFile(pa.BufferReader(data))
        wanted = [name for name in ("messages", "prompt") if name in file.schema_arrow.names]
        rows = file.read(columns=wanted).to_pylist() if wanted else [dict.fromkeys(file.schema_arrow.names)]
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{where} is not a parquet file that can be read.", f"{error}") from None
    for number, row in enumerate(rows, start=1):
        yield _from_record(row, f"{where}, row {number}")


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
        raise UsageError(f"{place} holds half a surrogate pair, which is no character.")
    return Message(role, content)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
