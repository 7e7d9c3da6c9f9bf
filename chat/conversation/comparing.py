"""The last message answered in several ways, for `/compare`. The conversation stays as it is.

Either under several values of one setting, next to the reply token by token (N = 0, greedy), or by several
checkpoints in turn, next to the first one's. All answer the same prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from chat.conversation.candidates import Candidate, Made, by_checkpoints, folders_of, under
from chat.conversation.divergence import Margins
from chat.conversation.page import Page
from chat.conversation.state import Talk
from chat.conversation.visiting import Visit
from chat.conversation.work import Work
from chat.sessions.session import Session
from chat.text.agreement import GREEDY, judged
from dist.errors import PromptError, UsageError
from dist.protocol import BlockUpdate, Turn


class Comparing:
    """Makes the replies one after the other and shows them together."""

    def __init__(self, talk: Talk, work: Work, page: Page) -> None:
        self._talk = talk
        self._work = work
        self._page = page
        self._question = -1  # the message that `_kept` answer
        self._kept: dict[str, Made] = {}

    def compare(self, name: str, values: Sequence[str]) -> None:
        """Answer the last message under each of the values. Raises ChatError before anything is made, or RankError.

        Stopped by the user, it shows what was finished by then.
        """
        self._check_there_is_a_question()
        candidates = list(under(self._talk, self._page, name, values))
        made: dict[str, Made] = {}
        try:
            self._make(candidates, len(candidates), made)
        finally:
            self._work.rest()
        self._show(made, len(candidates), GREEDY, "greedy")

    def compare_steps(self, words: Sequence[str]) -> None:
        """Have each of the checkpoints answer the last message, one alone next to the present one.

        The present one answers again afterwards, whatever happens. Raises ChatError before anything is made,
        RankError, or WeightsLost. An error of one checkpoint is shown, and the others still answer.
        """
        self._check_there_is_a_question()
        folders = folders_of(self._talk, words)
        made: dict[str, Made] = {}
        with Visit(self._talk, self._page) as visit:
            self._work.begin()
            try:
                candidates = by_checkpoints(self._talk, self._work, self._page, visit, folders, made)
                self._make(candidates, len(folders), made)
            finally:
                self._work.rest()
            first = next(iter(made), "")
            self._show(made, len(folders), first, first)
            if first and made[first].asked.settings.refine_iter != "auto":
                self._page.note(
                    "At fixed R replies can also differ by their passes; at refine_iter auto, only by the weights."
                )

    @property
    def kept(self) -> Sequence[str]:
        """What the replies of the last comparison are called, in order; none if the conversation has moved on."""
        questions = self._talk.tree.questions()
        return tuple(self._kept) if questions and questions[0].id == self._question else ()

    def keep(self, number: int) -> None:
        """Go on with a reply of the last comparison, as another branch. Raises UsageError if there is none."""
        names = self.kept
        if not 1 <= number <= len(names):
            what = f"It made {len(names)}." if names else "/compare answers your last message again."
            raise UsageError(f"There is no reply {number} of a comparison to keep.", what)
        kept = self._kept[names[number - 1]]
        reply, candidate = kept.reply, kept.asked
        asked = dataclasses.replace(
            self._talk.asked(candidate.prompt, candidate.settings.seed or 0), settings=candidate.settings.as_dict()
        )
        text = self._talk.reply_text(reply.token_ids, candidate.settings.stop)

        def write(session: Session) -> None:
            if candidate.by is not None:
                session.checkpoint(candidate.by)
            session.ask_again(asked)
            session.tokens(reply.token_ids, text)
            session.reply(reply.finish, text, reply.stats.as_dict())
            if candidate.by is not None:
                session.checkpoint(self._talk.checkpoint_record())

        self._talk.journal(write)
        self._talk.last_reply = reply
        self._talk.show_used(reply.prompt_len + len(reply.token_ids), candidate.prompt.limit)
        self._page.note(
            f"The conversation goes on with reply {number}, {candidate.label}. /undo and /branches lead back."
        )

    def _check_there_is_a_question(self) -> None:
        if self._talk.transcript.last_question is None:
            raise UsageError("There is nothing to compare yet.", "/compare answers your last message again.")

    # Making and showing it.

    def _make(self, candidates: Iterable[Candidate], count: int, made: dict[str, Made]) -> None:
        """Make the replies one after the other, until the user wants it stopped."""
        for candidate in candidates:
            place = f"{candidate.label} ({candidate.number} of {count})"
            if not self._page.redraws:
                self._page.note(f"{place} ...")
            try:
                one = self._reply(candidate, f"{place}: ")
            except PromptError as error:
                if candidate.by is None:
                    raise
                self._page.error(error)
                continue
            if one.reply.finish != "cancelled":
                made[candidate.label] = one
            if self._work.to_stop:
                break

    def _show(self, made: Mapping[str, Made], count: int, against: str, called: str) -> None:
        replies = {label: one.reply for label, one in made.items()}
        if replies:
            prompt = next(iter(made.values())).asked.prompt.token_ids
            others = [label for label, one in made.items() if one.asked.prompt.token_ids != prompt]
            compared = [
                one
                if one.differs is None
                else dataclasses.replace(one, margin=made[one.label].margins.at(one.differs))
                for one in judged(replies, self._talk.reply_text, against, others)
            ]
            self._page.compared(compared, called)
            if others:
                self._page.note(f"Not comparable: the prompt of {', '.join(others)} differs from {called}'s.")
            self._question = self._talk.tree.questions()[0].id
            self._kept = dict(made)
            self._page.note("/compare keep N goes on with one of them.")
        if len(replies) < count:
            stopped = "Stopped: " if self._work.to_stop else ""
            self._page.note(f"{stopped}{len(replies)} of {count} replies were made.")

    def _reply(self, candidate: Candidate, doing: str) -> Made:
        turn = Turn(
            prompts=(candidate.prompt.token_ids,),
            settings=candidate.settings,
            placeholder=candidate.placeholder,
            stop_ids=candidate.stop_ids,
            trace=candidate.trace,
            earlier=candidate.earlier,
            begun=(candidate.prompt.begun,) if candidate.prompt.begun else (),
        )
        view, margins = self._page.reply_view(self._talk.reply_text), Margins()

        def show(update: BlockUpdate) -> None:
            margins.take(update)
            if update.finish is None:  # what is compared is the text without what ended it
                self._page.console.show_live(view.update(update).draw)

        reply = self._work.reply(turn, lambda: candidate.settings, show, doing)
        return Made(reply=reply, asked=candidate, margins=margins)
