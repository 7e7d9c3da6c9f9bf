"""Which chat template a checkpoint's files hold, and what a template does with messages. Knows no tokens.

Templates are found as transformers finds them; `chat_template.json`, which only its processors read, comes last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dist.checkpoint.folder import read_json
from dist.checkpoint.ledger import FILES, Entry, short
from dist.checkpoint.rendering import Messages, Refused
from dist.errors import CheckpointError, UsageError

JINJA, JSON, CONFIG = "chat_template.jinja", "chat_template.json", "tokenizer_config.json"
MORE = "additional_chat_templates"
DEFAULT = "default"
# What no one writes: found in a rendered prompt, it is the content that was put in.
USER_MARK, SYSTEM_MARK, REPLY_MARK = "dllm user 7301", "dllm system 7302", "dllm reply 7303"

Render = Callable[[Messages, bool], str]  # messages, whether the beginning of a reply is added
System = Literal["used", "ignored", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One chat template: its text, its name among others (or ""), and the file it comes from."""

    text: str
    name: str = ""
    source: str = ""

    @property
    def words(self) -> str:
        """How it is called in messages."""
        return f"{self.name}, {self.source}" if self.name not in ("", DEFAULT) else self.source


@dataclass(frozen=True, slots=True, kw_only=True)
class Templates:
    """All templates that count, by name, and what of the other places does not."""

    named: Mapping[str, Template]
    entries: tuple[Entry, ...] = ()

    def choose(self, asked: str | None) -> Template | None:
        """The template to use: as asked (a name or a file), else the default one; None where there is none.

        Raises UsageError for a name that does not exist, CheckpointError where one has to be chosen.
        """
        if asked is not None:
            return self.named.get(asked) or _from_file(asked, sorted(self.named))
        if not self.named or DEFAULT in self.named:
            return self.named.get(DEFAULT)
        raise CheckpointError(
            "The checkpoint has several chat templates and no default one.",
            f"They are called {', '.join(sorted(self.named))}.",
            "Choose one with --chat_template NAME, or send prompts as they are with --no-use_chat_template.",
        )


def find_templates(folder: Path) -> Templates:
    """The chat templates among the tokenizer files in `folder`; raises CheckpointError for a damaged file."""
    places = [
        (JINJA, _jinja_files(folder)),
        (CONFIG, _from_json(folder / CONFIG)),
        (JSON, _from_json(folder / JSON)),
    ]
    held = [(place, found) for place, found in places if found]
    if not held:
        return Templates(named={})
    (first, named), *others = held
    entries = tuple(_not_counted(first, others))
    return Templates(named=named, entries=entries)


def _jinja_files(folder: Path) -> dict[str, Template]:
    found = {}
    paths = [(DEFAULT, folder / JINJA)]
    paths += [(path.stem, path) for path in sorted((folder / MORE).glob("*.jinja"))]
    for name, path in paths:
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            found[name] = Template(text=text, name=name, source=str(path.relative_to(folder)))
    return found


def _from_json(path: Path) -> dict[str, Template]:
    value = read_json(path).get("chat_template")
    if isinstance(value, str):
        return {DEFAULT: Template(text=value, name=DEFAULT, source=path.name)}
    pairs = value.items() if isinstance(value, dict) else _pairs(value)
    return {name: Template(text=text, name=name, source=path.name) for name, text in pairs if isinstance(text, str)}


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    for one in value if isinstance(value, list) else ():
        if isinstance(one, dict) and "name" in one:
            yield str(one["name"]), one.get("template")


def _not_counted(first: str, others: Sequence[tuple[str, Mapping[str, Template]]]) -> Iterator[Entry]:
    why = f"{first} counts"
    for place, found in others:
        if place == CONFIG:
            yield Entry(CONFIG, "chat_template", False, why, short(next(iter(found.values())).text))
        else:
            yield Entry(FILES, place, False, why)


def _from_file(asked: str, names: Sequence[str]) -> Template:
    path = Path(asked).expanduser()
    if not path.is_file():
        known = f"The checkpoint's are called {', '.join(names)}." if names else "The checkpoint has none."
        raise UsageError(f"--chat_template cannot be {asked}.", f"It is not a file. {known}")
    if path.suffix == ".json":
        found = _from_json(path)
        if DEFAULT not in found:
            raise UsageError(f"--chat_template cannot be {asked}.", "It holds no chat_template.")
        return found[DEFAULT]
    return Template(text=path.read_text(encoding="utf-8", errors="replace"), source=str(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What a template does with messages.

    parts      contents must be given as lists of parts, not as text
    system     what becomes of a system message
    history    earlier messages of the user and replies are in the prompt, as far as the template takes several
    turn_end   what stands right after a reply, up to the next turn
    """

    parts: bool
    system: System
    history: bool
    turn_end: str

    @property
    def notices(self) -> tuple[str, ...]:
        """What is worth knowing about it, in words."""
        notices = {
            f"it {self.system[:-1]}s system prompts": self.system != "used",
            "it leaves out what was said before the last message": not self.history,
            "contents are given as lists of parts": self.parts,
        }
        return tuple(words for words, holds_true in notices.items() if holds_true)


def special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens by name that tokenizer_config.json holds, as templates are given them."""
    found = {}
    for name, value in tokenizer_config.items():
        token = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(token, str):
            found[name] = token
    return found


def observe(render: Render) -> Behaviour:
    """What the template behind `render` does, seen from a few renderings.

    Raises Refused, saying what is wrong, for a template that leaves the user's message out in every form or
    refuses a single message of the user's. What else `render` raises (Stopped) is passed on.
    """
    parts = _needs_parts(render)

    def rendered(*messages: tuple[str, str], begin: bool = False) -> str:
        return render([message(role, text, parts) for role, text in messages], begin)

    try:
        with_system = rendered(("system", SYSTEM_MARK), ("user", USER_MARK), begin=True)
        system: System = "used" if holds(with_system, SYSTEM_MARK) else "ignored"
    except Refused:
        system = "refused"
    return Behaviour(parts=parts, system=system, history=_keeps_history(rendered), turn_end=_turn_end(rendered))


def message(role: str, text: str, parts: bool) -> dict[str, Any]:
    """One message as templates take it."""
    return {"role": role, "content": [{"type": "text", "text": text}] if parts else text}


def holds(prompt: str, content: str) -> bool:
    """Whether a message's content is in a prompt, whatever became of its blanks and capitals."""
    plain, wanted = ("".join(text.split()).casefold() for text in (prompt, content))
    return wanted in plain or json.dumps(wanted, ensure_ascii=False)[1:-1] in plain


def _needs_parts(render: Render) -> bool:
    problem: Refused | None = None
    for parts in (False, True):
        try:
            if holds(render([message("user", USER_MARK, parts)], True), USER_MARK):
                return parts
        except Refused as error:
            problem = problem or error
    if problem is not None:
        raise problem
    raise Refused("its output lacks the user's message")


def _keeps_history(rendered: Callable[..., str]) -> bool:
    """Whether earlier turns are in the prompt; a template that refuses several turns says so itself."""
    try:
        whole = rendered(("user", SYSTEM_MARK), ("assistant", REPLY_MARK), ("user", USER_MARK), begin=True)
    except Refused:
        return True
    return holds(whole, SYSTEM_MARK) and holds(whole, REPLY_MARK)


def _turn_end(rendered: Callable[..., str]) -> str:
    try:
        whole = rendered(("user", USER_MARK), ("assistant", REPLY_MARK))
        opened = rendered(("user", USER_MARK), begin=True)
        closed = rendered(("user", USER_MARK))
    except Refused:
        return ""
    _, found, after = whole.rpartition(REPLY_MARK)
    if not found:
        return ""
    beginning = opened[len(closed) :] if opened.startswith(closed) else ""
    return "" if beginning.strip() and after.strip().startswith(beginning.strip()) else after
