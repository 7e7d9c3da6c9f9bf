"""The conversation as a value. Knows no tokens, no screen and no file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from chat.files import has_lone_surrogates

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"


@dataclass(frozen=True, slots=True)
class Message:
    """One message. Content is always valid Unicode text.

    token_ids   of a reply: its ids as they were decoded, up to and including the stop token
    stopped     of a reply: it was cancelled, and this is what was finished by then
    unanswered  of a user's message: no reply was made to it
    left_out    of a reply: how many of the oldest exchanges its prompt had no room for
    """

    role: str
    content: str
    token_ids: tuple[int, ...] = ()
    stopped: bool = field(default=False, kw_only=True)
    unanswered: bool = field(default=False, kw_only=True)
    left_out: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if has_lone_surrogates(self.content):
            clean = self.content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            object.__setattr__(self, "content", clean)
        object.__setattr__(self, "token_ids", tuple(self.token_ids))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: role and content, and whatever else is not at its default."""
        plain: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.token_ids:
            plain["token_ids"] = list(self.token_ids)
        plain.update({name: getattr(self, name) for name in FLAGS if getattr(self, name)})
        return plain


FLAGS = ("stopped", "unanswered", "left_out")


def message_from(plain: Mapping[str, Any]) -> Message:
    """The message that `as_dict` wrote. Raises KeyError, TypeError or ValueError for other things."""
    if not isinstance(plain["role"], str) or not isinstance(plain["content"], str):
        raise ValueError("a message has a role and a content")
    return Message(
        plain["role"],
        plain["content"],
        tuple(plain.get("token_ids", ())),
        **{name: plain[name] for name in FLAGS if name in plain},
    )


@dataclass(frozen=True, slots=True)
class Transcript:
    """The messages so far: perhaps a system message, then exchanges. Methods return a new transcript."""

    messages: tuple[Message, ...] = ()

    @property
    def system(self) -> str:
        """The system prompt, or the empty text."""
        first = self.messages[0] if self.messages else None
        return first.content if first is not None and first.role == SYSTEM else ""

    @property
    def exchanges(self) -> tuple[tuple[Message, ...], ...]:
        """The messages after the system prompt, one group from each of the user's messages to the next."""
        groups: list[list[Message]] = []
        for message in self.messages[1:] if self.system_messages else self.messages:
            if message.role == USER or not groups:
                groups.append([])
            groups[-1].append(message)
        return tuple(tuple(group) for group in groups)

    @property
    def system_messages(self) -> tuple[Message, ...]:
        """The system message, if there is one, as a tuple."""
        return tuple(message for message in self.messages[:1] if message.role == SYSTEM)

    @property
    def last_question(self) -> str | None:
        """The user's last message, for `/retry`; None if there is none."""
        return next(iter(self.questions), None)

    @property
    def questions(self) -> tuple[str, ...]:
        """The user's messages, the last one first."""
        return tuple(message.content for message in reversed(self.messages) if message.role == USER)

    @property
    def last_reply(self) -> str | None:
        """The model's last message; None if there is none."""
        return next((one.content for one in reversed(self.messages) if one.role == ASSISTANT), None)

    def with_system(self, text: str) -> Transcript:
        """With this system prompt in place of the old one; with none if `text` is empty."""
        system = (Message(SYSTEM, text),) if text else ()
        return Transcript((*system, *self.messages[len(self.system_messages) :]))

    def with_user(self, text: str) -> Transcript:
        """With a new message of the user's. One that still waits for its reply is marked unanswered."""
        return Transcript((*self.mark_unanswered().messages, Message(USER, text)))

    def with_reply(
        self, text: str, token_ids: Iterable[int] = (), *, stopped: bool = False, left_out: int = 0
    ) -> Transcript:
        """With a reply to the last message, which then counts as answered."""
        *before, last = self.messages
        reply = Message(ASSISTANT, text, tuple(token_ids), stopped=stopped, left_out=left_out)
        return Transcript((*before, dataclasses.replace(last, unanswered=False), reply))

    def mark_unanswered(self) -> Transcript:
        """The same; a last message of the user's is marked unanswered."""
        if not self.messages or self.messages[-1].role != USER:
            return self
        return Transcript((*self.messages[:-1], dataclasses.replace(self.messages[-1], unanswered=True)))

    def without_reply(self) -> Transcript:
        """Without the reply at the end, so that the last message can be answered again."""
        kept = list(self.messages)
        while kept and kept[-1].role == ASSISTANT:
            kept.pop()
        if kept and kept[-1].role == USER:
            kept[-1] = dataclasses.replace(kept[-1], unanswered=False)
        return Transcript(tuple(kept))

    def without_oldest(self, n: int) -> Transcript:
        """Without the first `n` exchanges; the system prompt stays."""
        return self._of(self.exchanges[n:])

    def for_model(self) -> Transcript:
        """What a prompt is made of: without messages that got no reply, except the last.

        Templates refuse two messages of the user's in a row, and what was cancelled before it
        said anything was most often sent by mistake.
        """
        kept = (one for one in self.messages[:-1] if not one.unanswered)
        return Transcript((*kept, *self.messages[-1:]))

    def _of(self, exchanges: tuple[tuple[Message, ...], ...]) -> Transcript:
        return Transcript((*self.system_messages, *(message for group in exchanges for message in group)))
