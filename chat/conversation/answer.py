"""A reply in the making: its text, and what the journal is given of it. Knows no screen and no key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from chat.conversation.going_on import Begun
from chat.conversation.state import Talk
from chat.sessions.session import Session
from chat.text.prompt import most_tokens
from chat.text.running_text import RunningText
from chat.text.stops import held_back
from dist.protocol import BlockUpdate, Reply
from dist.settings import GenerationSettings


class Answer:
    """The reply in the making: its text, and what is journaled of it. Made once its turn is in the journal.

    What it begins with is journaled with the first tokens that are finished.
    """

    def __init__(self, talk: Talk, begun: Begun) -> None:
        self.text = RunningText(talk.reply_text, lambda text: held_back(text, talk.settings.stop))
        self._talk = talk
        self.start = begun
        self.text.extend(begun.token_ids)
        self._question = talk.tree.head
        self.has_tokens = False  # whether anything of it is finished
        self._in_force = talk.settings

    @property
    def withdrawn(self) -> bool:
        """Whether it ended with nothing finished, and what was there before holds again."""
        return not self.has_tokens and self._talk.tree.head != self._question

    def settings(self, seed: int) -> GenerationSettings:
        """Those of the next block."""
        return most_tokens(with_seed(self._talk.settings, seed), self.start.before)

    def take(self, update: BlockUpdate) -> None:
        """Write down what a pass finished, then the settings that came into force behind it."""
        if not update.settled:
            return
        if not self.has_tokens:
            self.has_tokens, self._talk.prefill = True, ""
            begun, before = self.start.token_ids, self.text.text
            if begun:
                self._talk.journal(lambda session: session.tokens(begun, before))
        # Of what a stop text ended, only the end of the reply tells where its text ends.
        ended = update.finish == "stop" and update.settled_ids[-1] not in self._talk.tokenizer.stop_ids
        text = "" if ended else self.text.extend(update.settled_ids)
        self._talk.journal(lambda session: session.tokens(update.settled_ids, text))
        if update.finish is None:
            self.note_settings()

    def note_settings(self) -> None:
        """Write down which settings are others from here on."""
        before, self._in_force = self._in_force.as_dict(), self._talk.settings
        for name, value in self._in_force.as_dict().items():
            if value != before[name]:
                self._talk.journal(partial(Session.setting, name=name, value=value))

    def end(self, reply: Reply) -> None:
        """Write down how it ended."""
        text = self._talk.reply_text(reply.token_ids, reply.settings.stop)
        self.text.finish(reply.token_ids, text)
        self._end(reply.finish, reply.stats.as_dict())

    def fail(self) -> None:
        """It was broken off by an error: what is finished of it stays."""
        self._end("error", {})

    def _end(self, finish: str, stats: Mapping[str, Any]) -> None:
        if self.has_tokens:
            whole = self.text.text
            self._talk.journal(lambda session: session.reply(finish, whole, stats))
        else:
            self._talk.journal(Session.no_reply)


def with_seed(settings: GenerationSettings, drawn: int) -> GenerationSettings:
    """The settings with the seed that was drawn for this turn, if they sample and set none."""
    return replace(settings, seed=drawn) if settings.samples and settings.seed is None else settings
