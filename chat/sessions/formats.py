"""A conversation in the formats of readers and of training: a function each, and `FORMATS`, the table of them.

To add one, add a function from Conversation to bytes and its row. Pure: they write no file. Texts to read say with
each reply what made it. Training data holds the messages alone, and none without a reply.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from chat.sessions.exported import HEADINGS, Conversation, facts_of, samples, with_states
from chat.sessions.html_page import as_html
from chat.sessions.nodes import Made, Node
from chat.sessions.records import VERSION, to_plain
from chat.text.transcript import ASSISTANT, SYSTEM, USER
from dist.errors import ChatError

SHAREGPT = {SYSTEM: "system", USER: "human", ASSISTANT: "gpt"}
FORMAT = "dllm-chat session"


# To read.


def as_text(conversation: Conversation) -> bytes:
    parts = [f"System:\n{conversation.system}"] if conversation.system else []
    for node, state in with_states(conversation):
        parts.append(f"{_heading(node, state)}:\n{node.text}")
        if node.made is not None:
            parts.append(f"[{facts_of(node.made)}]")
    return _encoded("\n\n".join(parts) + "\n")


def as_markdown(conversation: Conversation) -> bytes:
    parts = [f"# {_one_line(conversation.title)}"]
    if conversation.system:
        parts += ["## System", _closed(conversation.system)]
    for node, state in with_states(conversation):
        parts += [f"## {_heading(node, state)}", _closed(node.text)]
        if node.made is not None:
            parts.append(f"> {_escaped(facts_of(node.made))}")
    return _encoded("\n\n".join(parts) + "\n")


def _heading(node: Node, state: str) -> str:
    return f"{HEADINGS[node.role]} ({state})" if state else HEADINGS[node.role]


def _closed(text: str) -> str:
    """`text` as Markdown that ends where it ends: what would swallow the text behind it is put into a fence."""
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("commonmark").parse(f"{text}\n\n## end")
    whole = len(tokens) > 2 and tokens[-3].type == "heading_open" and tokens[-3].level == 0
    if whole and "\0" not in text:
        return text
    fence = "`" * (2 + max(map(len, re.findall(r"`+", text)), default=1))
    return f"{fence}\n{text}\n{fence}"


def _one_line(text: str) -> str:
    return _escaped(" ".join(text.split()))


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", text)


# All of it.


def as_json(conversation: Conversation) -> bytes:
    """Messages with all that is known of each, and the whole journal, from which the session can be resumed."""
    plain: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "name": conversation.name,
        "title": conversation.title,
        "messages": [
            *([{"role": SYSTEM, "content": conversation.system}] if conversation.system else []),
            *(_message(node, state) for node, state in with_states(conversation)),
        ],
    }
    if conversation.tree is not None:
        plain["journal"] = [to_plain(record) for record in conversation.tree.records]
    return _encoded(json.dumps(plain, ensure_ascii=False, indent=1, default=str) + "\n")


def _message(node: Node, state: str) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": node.role, "content": node.text, "time": node.time}
    if state:
        plain["state"] = state
    return plain if node.made is None else {**plain, **provenance(node.made)}


def provenance(made: Made) -> Mapping[str, Any]:
    """How a reply was made, as plain values."""
    one = made.checkpoint
    checkpoint = {"path": one.path, "step": one.step, "digest": one.digest} if one is not None else None
    return {
        "token_ids": list(made.token_ids),
        "finish": made.finish,
        "checkpoint": checkpoint,
        "dtype": one.dtype if one is not None else None,
        "settings": dict(made.turn.settings),
        "changes": [{"at": change.at, "name": change.name, "value": change.value} for change in made.changes],
        "seed": made.turn.seed if samples(made) else None,
        "template_args": dict(made.turn.settings.get("template_args", {})),
        "left_out": made.turn.left_out,
        "begun": made.turn.begun,
        "continues": made.turn.continues is not None,
        "stats": dict(made.stats),
        "ended": made.time,
    }


# For training.


def _pairs(conversation: Conversation) -> list[tuple[str, str]]:
    """(role, content) of the messages that make a sequence of questions and replies."""
    system = [(SYSTEM, conversation.system)] if conversation.system else []
    said = [(node.role, node.text) for node, state in with_states(conversation) if state != "unanswered"]
    return system + said


def as_jsonl(conversation: Conversation) -> bytes:
    messages = [{"role": role, "content": content} for role, content in _pairs(conversation)]
    return _encoded(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def as_sharegpt(conversation: Conversation) -> bytes:
    said = [{"from": SHAREGPT[role], "value": content} for role, content in _pairs(conversation)]
    return _encoded(
        json.dumps([{"id": conversation.name, "conversations": said}], ensure_ascii=False, indent=1) + "\n"
    )


def as_parquet(conversation: Conversation) -> bytes:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ChatError(
            "Parquet files cannot be written.",
            "The package pyarrow is not installed.",
            "Run `pip install pyarrow`.",
        ) from None
    messages = [{"role": role, "content": content} for role, content in _pairs(conversation)]
    kind = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
    table = pa.table({"messages": pa.array([messages], kind)})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue()


def _encoded(text: str) -> bytes:
    # Names of folders that are no UTF-8 come with halves of characters.
    return text.encode(errors="replace")


# The extension of each, what writes it, and a few words. The first that a name ends with counts.
FORMATS: dict[str, tuple[Callable[[Conversation], bytes], str]] = {
    ".md": (as_markdown, "to read"),
    ".txt": (as_text, "to read"),
    ".html": (as_html, "one page, rendered"),
    ".sharegpt.json": (as_sharegpt, "ShareGPT conversations"),
    ".json": (as_json, "everything, to be resumed from"),
    ".jsonl": (as_jsonl, "OpenAI messages"),
    ".parquet": (as_parquet, "verl's multi-turn data"),
}
