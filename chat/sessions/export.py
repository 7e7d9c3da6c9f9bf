"""A transcript as a file: Markdown, JSON, JSON Lines, plain text, HTML. Knows no model and asks nothing.

One table, `FORMATS`, holds a function for each extension.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chat.files import expand, write_whole
from chat.text.transcript import ASSISTANT, SYSTEM, USER, Message, Transcript
from dist.errors import ChatError, UsageError
from dist.settings import GenerationSettings

HEADINGS = {SYSTEM: "System", USER: "You", ASSISTANT: "Model"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """All that an export holds. `facts` are what is known of the checkpoint, by name."""

    transcript: Transcript
    settings: GenerationSettings
    facts: Mapping[str, Any] = field(default_factory=dict)


def split_target(argument: str) -> tuple[str, bool]:
    """The file and whether it may be replaced, from the words after `/export`: `chat.md` or `chat.md !`."""
    name = argument.strip()
    force = name.endswith(" !")
    return (name[:-2].rstrip() if force else name), force


def export(target: str, conversation: Conversation, *, force: bool = False) -> Path:
    """Write the conversation to the file `target`, whole or not at all; gives its path.

    The extension decides the format. Raises UsageError for an unknown extension and for a file that is there
    already (but with `force`), ChatError if the disk refuses.
    """
    path = expand(target)
    render = FORMATS.get(path.suffix.lower())
    if render is None:
        *most, last = FORMATS
        raise UsageError(
            f"Cannot tell the format of {target!r} from its extension.", f"It takes {', '.join(most)} or {last}."
        )
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder.", hint="Name a file.")
        if path.exists() and not force:
            raise UsageError(f"{path} is there already.", hint=f"To replace it: /export {target} !")
        # Names of folders that are no UTF-8 come with halves of characters.
        write_whole(path, render(conversation).encode(errors="replace"))
    except OSError as error:
        raise ChatError(f"{path} cannot be written.", f"{error.strerror}.") from error
    return path


def _notes(message: Message) -> tuple[str, ...]:
    """What a reader must know of a message besides its text."""
    left_out = f"made without the {message.left_out} oldest exchange{'s' if message.left_out > 1 else ''}"
    return (
        *(("stopped",) if message.stopped else ()),
        *(("unanswered",) if message.unanswered else ()),
        *((left_out,) if message.left_out else ()),
    )


def _heading(message: Message) -> str:
    notes = _notes(message)
    heading = HEADINGS.get(message.role, message.role)
    return f"{heading} ({', '.join(notes)})" if notes else heading


def _facts(conversation: Conversation) -> list[tuple[str, str]]:
    """Names and values, checkpoint first, as they are shown in a table."""
    both = {**conversation.facts, **conversation.settings.as_dict()}
    return [(name, "none" if value is None else str(value)) for name, value in both.items()]


def _plain(conversation: Conversation) -> dict[str, Any]:
    return {
        "checkpoint": dict(conversation.facts),
        "settings": conversation.settings.as_dict(),
        "messages": [message.as_dict() for message in conversation.transcript.messages],
    }


def _as_json(conversation: Conversation) -> str:
    return json.dumps(_plain(conversation), ensure_ascii=False, indent=2, default=str) + "\n"


def _as_jsonl(conversation: Conversation) -> str:
    return json.dumps(_plain(conversation), ensure_ascii=False, default=str) + "\n"


def _as_markdown(conversation: Conversation) -> str:
    rows = (f"| {name} | {_table_cell(value)} |" for name, value in _facts(conversation))
    table = "\n".join(("| | |", "|---|---|", *rows))
    messages = (f"## {_heading(message)}\n\n{message.content}" for message in conversation.transcript.messages)
    return "\n\n".join(("# Conversation", *messages, "## Made with", table)) + "\n"


def _table_cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _as_text(conversation: Conversation) -> str:
    messages = (f"{_heading(message)}:\n{message.content}" for message in conversation.transcript.messages)
    facts = "\n".join(f"{name}: {value}" for name, value in _facts(conversation))
    return "\n\n".join((*messages, facts)) + "\n"


def _as_html(conversation: Conversation) -> str:
    messages = "\n".join(
        f'<section class="{html.escape(message.role)}"><h2>{html.escape(_heading(message))}</h2>'
        f"<pre>{html.escape(message.content)}</pre></section>"
        for message in conversation.transcript.messages
    )
    rows = "\n".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in _facts(conversation)
    )
    return (
        '<!doctype html>\n<html><head><meta charset="utf-8"><title>Conversation</title>\n'
        "<style>body{max-width:50em;margin:auto;font-family:sans-serif}"
        "pre{white-space:pre-wrap;font-family:inherit}th{text-align:left}</style></head>\n"
        f"<body>\n{messages}\n<h2>Made with</h2>\n<table>\n{rows}\n</table>\n</body></html>\n"
    )


FORMATS: dict[str, Callable[[Conversation], str]] = {
    ".md": _as_markdown,
    ".json": _as_json,
    ".jsonl": _as_jsonl,
    ".txt": _as_text,
    ".html": _as_html,
}
