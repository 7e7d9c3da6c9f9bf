"""A message answered: what the model makes goes to the journal, to the screen, and into the conversation.

Knows no key and no command.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

from chat.conversation.answer import Answer
from chat.conversation.divergence import Margins, divergence
from chat.conversation.going_on import Begun, edited, going_on
from chat.conversation.page import Page
from chat.conversation.state import Talk
from chat.conversation.work import Work
from chat.loading.trial import Trial, trial_turn
from chat.screen.draw import ReplyView
from chat.sessions.nodes import Made, Node
from chat.sessions.session import Asked
from chat.text.prompt import FittedPrompt
from chat.text.thinking import ThinkingText, opens_thinking
from chat.text.trace import Trace
from chat.text.transcript import Transcript
from dist.errors import ChatError, PromptError, UsageError
from dist.protocol import BlockUpdate, Reply, Turn
from dist.settings import MAX_SEED

# Whether every pass is written into the scrollback; "top" with the candidates of what it changed.
TraceMode = Literal["off", "on", "top"]
TEMPLATE_END = 8  # tokens in which a template that begins the thinking itself does so
AS_IT_WAS = "The conversation is as it was."

# Writes down what is asked, and moves the conversation there.
Begin = Callable[[Asked], None]


class Answering:
    """Answers messages of one conversation, one at a time. `trace` may change in the middle of a reply."""

    def __init__(self, talk: Talk, work: Work, page: Page) -> None:
        self._talk = talk
        self._work = work
        self._page = page
        self._overflow_said = False
        self.trace: TraceMode = "off"

    @property
    def busy(self) -> bool:
        """Whether a reply is being made, so that changed settings count from its next block on."""
        return self._work.busy

    def say(self, text: str) -> None:
        """Answer a new message. Raises ChatError; the message then stays, unanswered, unless it was refused."""
        self._answer(
            self._talk.transcript.with_user(text),
            lambda asked: self._talk.journal(lambda session: session.say(text, asked)),
        )

    def say_instead(self, question: Node, text: str) -> None:
        """Answer a message in the place of an earlier one, from which the conversation goes on.

        If nothing of the reply gets finished, everything stays as it was. Raises ChatError.
        """
        tree = self._talk.tree
        before = tree.transcript(question.parent).with_system(tree.system())
        self._answer(
            before.with_user(text),
            lambda asked: self._talk.journal(lambda session: session.say(text, asked, instead_of=question.id)),
            self._talk.reply_to(question),
        )

    def say_again(self) -> None:
        """Answer the last message again; if nothing gets finished, the reply before stays. Raises ChatError."""
        if not self._talk.tree.questions():
            raise UsageError("There is nothing to answer again.")
        self._answer(
            self._talk.transcript.without_reply(),
            lambda asked: self._talk.journal(lambda session: session.ask_again(asked)),
            self._talk.reply_to(self._talk.tree.questions()[0]),
            again=True,
        )

    def go_on(self, text: str | None = None, reply: Node | None = None) -> None:
        """Continue an incomplete reply, by default the last one; with `text`, continue from that in its place.

        If nothing more gets finished, everything stays as it was. Raises ChatError.
        """
        talk = self._talk
        reply = reply or talk.last_reply_node
        if reply is None or reply.made is None:
            hint = "/retry answers the last message." if talk.tree.questions() else ""
            raise UsageError("There is no reply to continue.", "", hint)
        if reply.parent != talk.tree.questions()[0].id:
            raise UsageError("The conversation has moved on from that reply.", "", "/branches leads back to it.")
        same = talk.same_tokenizer(reply.made)
        if text is None:
            begun = going_on(reply, talk.tokenizer, talk.settings, same_tokenizer=same)
        else:
            begun = edited(reply, text, talk.tokenizer, same_tokenizer=same)
        asked = talk.tree.transcript(reply.parent).with_system(talk.tree.system()).for_model()
        self._answer(
            asked.without_oldest(begun.left_out),
            lambda asked: talk.journal(lambda session: session.ask_again(asked)),
            reply.made,
            begun=begun,
        )

    def _answer(
        self,
        transcript: Transcript,
        begin: Begin,
        earlier: Made | None = None,
        *,
        again: bool = False,
        begun: Begun | None = None,
    ) -> None:
        """Answer the last message of `transcript`; `begin` makes it the conversation.

        `earlier` is the reply that this one takes the place of: a draft, and `again` what it is compared with if
        another checkpoint made it. The reply goes on from `begun`, or begins with the prefill.
        """
        talk = self._talk
        if begun is None:
            fitted = talk.fitted(transcript, replace(talk.settings, prefill=talk.prefill or talk.settings.prefill))
            begun = Begun(token_ids=fitted.begun, before=len(fitted.begun))
        else:
            fitted = talk.fitted(transcript, goes_on=begun.token_ids)
        self._say_left_out(fitted, transcript)
        drawn = secrets.randbelow(MAX_SEED) if begun.seed is None else begun.seed
        seed = drawn if talk.settings.seed is None else talk.settings.seed
        asked = talk.asked(fitted, seed)
        begin(replace(asked, left_out=asked.left_out + begun.left_out, continues=begun.continues))
        answer = Answer(talk, begun)
        try:
            if talk.undecided:
                measured = self._measured(fitted.token_ids)
                answer.note_settings()
                if not measured:
                    answer.fail()
                    self._say_nothing_finished(answer)
                    return
            self._reply(answer, fitted, seed, earlier, again=again)
        except ChatError:
            answer.fail()
            if answer.withdrawn:
                self._page.note(AS_IT_WAS)
            raise
        finally:
            self._work.rest()

    def _reply(self, answer: Answer, fitted: FittedPrompt, seed: int, earlier: Made | None, *, again: bool) -> None:
        """Make the reply that the journal has begun."""
        talk, begun = self._talk, answer.start
        compared = earlier if again and earlier is not None and talk.loaded_since(earlier) else None
        # Rounding can decide in 16 bits.
        margins = Margins() if compared is not None and talk.rounds else None
        turn = Turn(
            prompts=(fitted.token_ids,),
            settings=answer.settings(seed),
            placeholder=talk.tokenizer.eos_id,
            stop_ids=talk.tokenizer.stop_ids,
            trace=self.trace == "top" or margins is not None,
            earlier=(earlier.token_ids,) if earlier is not None and talk.same_tokenizer(earlier) else (),
            begun=(begun.token_ids,) if begun.token_ids else (),
        )
        begins = talk.tokenizer.decode(fitted.token_ids[-TEMPLATE_END:], False)
        thinking = ThinkingText(inside=opens_thinking(begins))
        view = self._page.reply_view(talk.reply_text, answer.text, thinking)
        if begun.token_ids:
            self._page.console.commit(view.begin(seen=begun.continues is not None))
        trace = self._page.trace(talk.reply_text)
        show = partial(self._show, answer, view, trace, margins)
        reply = self._work.reply(turn, partial(answer.settings, seed), show)
        self._finish(reply, answer, view, fitted)
        made = talk.tree.node(talk.tree.head).made
        if compared is not None and made is not None and answer.has_tokens:
            self._page.note(divergence(compared, made, talk.reply_text, margins))

    def _measured(self, prompt: tuple[int, ...]) -> bool:
        """Try out on a first block how this checkpoint is to be refined; whether the user let it finish."""
        talk, updates = self._talk, list[BlockUpdate]()
        turn = trial_turn(prompt, talk.settings, talk.tokenizer.eos_id)
        try:
            self._work.reply(turn, lambda: turn.settings, updates.append, "measuring refinement: ")
        except PromptError:
            # The reply itself will say what is wrong.
            return True
        if self._work.to_stop:
            return False
        trial = Trial.of_block(updates, talk.tokenizer.stop_ids)
        self._page.note(talk.decide(trial, self._work.auto_length))
        return True

    def _say_nothing_finished(self, answer: Answer) -> None:
        what_now = AS_IT_WAS if answer.withdrawn else "/retry answers the message again."
        self._page.note(f"Stopped before anything was finished. {what_now}")

    def _say_left_out(self, fitted: FittedPrompt, transcript: Transcript) -> None:
        """Say what the prompt has no room for, once; exports and /context tell it of every turn."""
        if fitted.left_out and not self._overflow_said:
            self._page.note(f"{left_out_note(fitted, transcript)} /context shows what each next turn leaves out.")
        self._overflow_said = bool(fitted.left_out)

    def _show(
        self, answer: Answer, view: ReplyView, trace: Trace, margins: Margins | None, update: BlockUpdate
    ) -> None:
        """One pass: what it finished goes to the journal first, then to the screen."""
        answer.take(update)
        if margins is not None:
            margins.take(update)
        if self.trace != "off":
            trace.take(update)
            self._page.traced(trace, top=self.trace == "top")
        view.resize(self._page.console.width, self._page.console.height)
        self._page.show(view.update(update))

    def _finish(self, reply: Reply, answer: Answer, view: ReplyView, fitted: FittedPrompt) -> None:
        """Adopt a reply and show its figures."""
        answer.end(reply)
        self._page.console.commit(view.finish(reply))
        self._talk.last_reply = reply
        if answer.has_tokens:
            used = reply.prompt_len + len(reply.token_ids)
            self._talk.show_used(used, fitted.limit)
            self._page.stats(reply, used, fitted.limit)
        else:
            self._say_nothing_finished(answer)


def left_out_note(fitted: FittedPrompt, transcript: Transcript) -> str:
    """Which exchanges of `transcript` its prompt has no room for, in words."""
    openings = ", ".join(f'"{group[0].content[:30]}"' for group in fitted.left_out[:3])
    more = ", ..." if len(fitted.left_out) > 3 else ""
    return (
        f"The conversation no longer fits {fitted.limit:,} tokens: the oldest {len(fitted.left_out)} of "
        f"{len(transcript.for_model().exchanges)} exchanges are left out of the prompt ({openings}{more})."
    )
