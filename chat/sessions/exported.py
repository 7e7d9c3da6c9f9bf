"""What is exported of a session, and what is said with each of its messages. Pure; knows no format."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from chat.sessions.nodes import CUT, Made, Node
from chat.sessions.tree import Tree
from chat.text.transcript import ASSISTANT, SYSTEM, USER
from dist.counted import counted
from dist.errors import UsageError
from dist.settings import SETTINGS, parse_setting, setting_text

HEADINGS = {SYSTEM: "System", USER: "You", ASSISTANT: "Model"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What is exported: the messages of one branch, or some exchanges of it, under a system prompt ("": none).

    `tree` is the whole session, where all of the branch is exported.
    """

    name: str
    title: str
    system: str
    nodes: tuple[Node, ...]
    tree: Tree | None = None


def state_of(node: Node, following: Node | None) -> str:
    """What to know about a message besides its text: stopped, cut, unanswered, made without others."""
    if node.made is None:
        answered = following is not None and following.role == ASSISTANT
        return "" if answered or node.role != USER else "unanswered"
    n = node.made.turn.left_out
    left_out = f"made without the oldest {counted(n, 'exchange')}" if n else ""
    ended = {"cancelled": "stopped", "error": "cut", CUT: "cut"}.get(node.made.finish, "")
    return ", ".join(filter(None, (ended, left_out)))


def with_states(conversation: Conversation) -> Iterator[tuple[Node, str]]:
    """Every message, and what to know about it."""
    for node, following in zip(conversation.nodes, (*conversation.nodes[1:], None), strict=True):
        yield node, state_of(node, following)


def facts_of(made: Made) -> str:
    """How a reply was made, on one line."""
    settings, stats = made.turn.settings, made.stats
    parts = []
    if made.checkpoint is not None:
        one = made.checkpoint
        step = "" if one.step is None else f"step {one.step}, "
        digest = f" ({one.digest})" if one.digest else ""
        parts.append(f"{step}{one.path}{digest}")
        parts += filter(None, (one.dtype,))
    values = {name: _parsed(name, settings[name]) for name in SETTINGS if name in settings}
    parts += [
        f"{name} {setting_text(value)}"
        for name, value in values.items()
        if value != SETTINGS[name].default or name in ("add_eos_length", "refine_iter")
    ]
    parts += [
        f"{one.name} {setting_text(_parsed(one.name, one.value))} from token {one.at} on" for one in made.changes
    ]
    if samples(made) and settings.get("seed") is None:
        parts.append(f"seed {made.turn.seed}")
    parts.append(counted(len(made.token_ids), "token"))
    if made.turn.begun:
        whose = "from the reply that it continues" if made.turn.continues is not None else "prefilled"
        parts.append(f"the first {made.turn.begun} {whose}")
    if "tokens_per_s" in stats:
        parts.append(f"{stats['tokens_per_s']} tok/s")
    if "forwards" in stats:
        parts.append(f"{stats['forwards']} forward {'pass' if stats['forwards'] == 1 else 'passes'}")
    parts.append(made.finish)
    if made.time is not None:
        parts.append(time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(made.time)))
    return " · ".join(parts)


def _parsed(name: str, value: Any) -> Any:
    """A recorded value as settings hold it; as it is if this version cannot take it."""
    try:
        return parse_setting(name, value)
    except (KeyError, UsageError):
        return value


def samples(made: Made) -> bool:
    """Whether any of a reply was drawn at random, so that its seed counts."""
    temperatures = [
        made.turn.settings.get("temperature"),
        *(o.value for o in made.changes if o.name == "temperature"),
    ]
    return any(isinstance(one, (int, float)) and one > 0 for one in temperatures)
