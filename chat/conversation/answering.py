"""A message answered: the model's passes go to the screen and the journal, the reply into the conversation.

Knows no key and no command.
"""

from __future__ import annotations

import dataclasses
import secrets
from functools import partial
from typing import Literal

from chat.conversation.page import Page
from chat.conversation.state import Talk
from chat.conversation.work import Work
from chat.screen.draw import ReplyView
from chat.text.prompt import FittedPrompt
from chat.text.trace import Trace
from chat.text.transcript import Transcript
from dist.errors import ChatError, RankError
from dist.protocol import BlockUpdate, Reply, Turn
from dist.settings import MAX_SEED, GenerationSettings

# Whether every pass is written into the scrollback; "top" with the candidates of what it changed.
TraceMode = Literal["off", "on", "top"]
AS_IT_WAS = "The conversation is as it was."


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

    def answer(self, transcript: Transcript, before: Transcript | None = None) -> None:
        """Answer the last message of `transcript`, which becomes the conversation. Raises ChatError.

        `before` is put back in its place if nothing of the reply gets finished; None: the message stays unanswered.
        """
        talk = self._talk
        fitted = talk.fitted(transcript)
        if fitted.left_out:
            self._page.note(left_out_note(fitted, transcript))
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
        made_under = turn.settings.as_dict()
        talk.journal(lambda session: session.turn(transcript, made_under, tentative=before is not None))
        view, trace = self._page.reply_view(talk.reply_text), self._page.trace(talk.reply_text)
        self.busy = True
        try:
            reply = self._work.reply(turn, settings, partial(self._show, view, trace))
            self._finish(reply, view, fitted, before)
        except ChatError as error:
            # Where the ranks fall apart, the blocks in the journal are all that is left of the reply.
            if before is None or (isinstance(error, RankError) and view.text):
                talk.transcript = transcript.mark_unanswered()
            else:
                talk.adopt(before)
                self._page.note(AS_IT_WAS)
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

    def _finish(self, reply: Reply, view: ReplyView, fitted: FittedPrompt, before: Transcript | None) -> None:
        """Adopt a reply and show its figures."""
        talk = self._talk
        self._page.console.commit(view.finish(reply))
        talk.last_reply = reply
        stopped = reply.finish == "cancelled"
        if stopped and not reply.token_ids:
            if before is not None:
                talk.adopt(before)
                self._page.note(f"Stopped before the first block was finished. {AS_IT_WAS}")
                return
            talk.transcript = talk.transcript.mark_unanswered()
            self._page.note("Stopped before the first block was finished. /retry answers the message again.")
            return
        talk.transcript = talk.transcript.with_reply(
            view.text, reply.token_ids, stopped=stopped, left_out=len(fitted.left_out)
        )
        talk.journal(lambda session: session.reply(talk.transcript.messages[-1]))
        self._page.stats(reply, reply.prompt_len + len(reply.token_ids), fitted.limit)


def left_out_note(fitted: FittedPrompt, transcript: Transcript) -> str:
    """Which exchanges of `transcript` its prompt has no room for, in words."""
    openings = ", ".join(f'"{group[0].content[:30]}"' for group in fitted.left_out[:3])
    more = ", ..." if len(fitted.left_out) > 3 else ""
    return (
        f"The conversation no longer fits {fitted.limit:,} tokens: the oldest {len(fitted.left_out)} of "
        f"{len(transcript.for_model().exchanges)} exchanges are left out of the prompt ({openings}{more})."
    )


def with_seed(settings: GenerationSettings, drawn: int) -> GenerationSettings:
    """The settings with the seed that was drawn for this turn, if they sample and set none."""
    return dataclasses.replace(settings, seed=drawn) if settings.samples and settings.seed is None else settings
