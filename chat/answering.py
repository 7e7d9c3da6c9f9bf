"""A message answered: the model's passes go to the screen and the journal, the reply into the conversation.

Knows no key and no command.
"""

from __future__ import annotations

import dataclasses
import secrets
from functools import partial
from typing import Literal

from chat.fitting import FittedPrompt
from chat.page import Page
from chat.screen import ReplyView
from chat.talk import Talk
from chat.trace import Trace
from chat.transcript import Transcript
from chat.work import Work
from dist.errors import ChatError
from dist.protocol import BlockUpdate, Reply, Turn
from dist.settings import MAX_SEED, GenerationSettings

# Whether every pass is written into the scrollback; "top" with the candidates of what it changed.
TraceMode = Literal["off", "on", "top"]


class Answering:
    """Answers messages of one conversation, one at a time. `trace` may change in the middle of a reply.

    `busy`: a reply is being made, and changed settings count from its next block on.
    """

    def __init__(self, talk: Talk, work: Work, page: Page) -> None:
        self._talk = talk
        self._work = work
        self._page = page
        self.trace: TraceMode = "off"
        self.busy = False

    def answer(self, transcript: Transcript) -> None:
        """Answer the last message of `transcript`, which becomes the conversation. Raises ChatError."""
        talk = self._talk
        fitted = talk.fitted(transcript)
        self._note_left_out(fitted, len(transcript.exchanges))
        talk.transcript = transcript
        drawn = secrets.randbelow(MAX_SEED)

        def settings() -> GenerationSettings:
            return with_seed(talk.settings, drawn)

        turn = Turn(
            prompts=(fitted.token_ids,),
            settings=settings(),
            placeholder=talk.tokenizer.eos_id,
            stop_ids=talk.tokenizer.stop_ids,
            trace=self.trace == "top",
        )
        talk.journal(lambda session: session.turn(transcript, turn.settings.as_dict()))
        view, trace = self._page.reply_view(talk.reply_text), self._page.trace(talk.reply_text)
        self.busy = True
        try:
            reply = self._work.reply(turn, settings, partial(self._show, view, trace))
            self._finish(reply, view, fitted)
        except ChatError:
            talk.transcript = transcript.mark_unanswered()
            raise
        finally:
            self.busy = False
            self._work.rest()

    def _show(self, view: ReplyView, trace: Trace, update: BlockUpdate) -> None:
        """One pass, on the screen; a finished block, in the journal too."""
        if self.trace != "off":
            trace.take(update)
            self._page.traced(trace, top=self.trace == "top")
        view.resize(self._page.console.width, self._page.console.height)
        self._page.show(view.update(update))
        if update.done:
            self._talk.journal(lambda session: session.block(update.token_ids, view.text))

    def _finish(self, reply: Reply, view: ReplyView, fitted: FittedPrompt) -> None:
        """Adopt a reply and show its figures."""
        talk = self._talk
        self._page.console.commit(view.finish(reply))
        talk.last_reply = reply
        stopped = reply.finish == "cancelled"
        if stopped and not reply.token_ids:
            talk.transcript = talk.transcript.mark_unanswered()
            self._page.note("Stopped before the first block was finished. /retry answers the message again.")
            return
        talk.transcript = talk.transcript.with_reply(
            view.text, reply.token_ids, stopped=stopped, left_out=len(fitted.left_out)
        )
        talk.journal(lambda session: session.reply(talk.transcript.messages[-1]))
        self._page.stats(reply, reply.prompt_len + len(reply.token_ids), fitted.limit)

    def _note_left_out(self, fitted: FittedPrompt, exchanges: int) -> None:
        if fitted.left_out:
            openings = ", ".join(f'"{group[0].content[:30]}"' for group in fitted.left_out[:3])
            more = ", ..." if len(fitted.left_out) > 3 else ""
            self._page.note(
                f"The conversation no longer fits {fitted.limit:,} tokens: the oldest {len(fitted.left_out)} of "
                f"{exchanges} exchanges are left out of the prompt ({openings}{more})."
            )


def with_seed(settings: GenerationSettings, drawn: int) -> GenerationSettings:
    """The settings with the seed that was drawn for this turn, if they sample and set none."""
    return dataclasses.replace(settings, seed=drawn) if settings.samples and settings.seed is None else settings
