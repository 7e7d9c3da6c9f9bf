"""The last message answered under several values of one setting, for `/compare`. The conversation stays as it is.

Every value answers the same prompt; the reply token by token (N = 0, greedy) is made too, to measure agreement by.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chat.conversation.answering import left_out_note, with_seed
from chat.conversation.page import Page
from chat.conversation.state import Talk
from chat.conversation.work import Work
from chat.sessions.session import Session
from chat.text.agreement import GREEDY, judged
from dist.errors import UsageError
from dist.protocol import BlockUpdate, Reply, Turn
from dist.settings import MAX_SEED, GenerationSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A reply to be made: how it is called, under which settings, to which prompt."""

    label: str
    settings: GenerationSettings
    prompt: tuple[int, ...]


class Comparing:
    """Makes the replies one after the other and shows them together."""

    def __init__(self, talk: Talk, work: Work, page: Page) -> None:
        self._talk = talk
        self._work = work
        self._page = page
        self._question = -1  # the message that `_kept` answer
        self._kept: dict[str, tuple[Reply, Candidate]] = {}

    def compare(self, name: str, values: Sequence[str]) -> None:
        """Answer the last message under each of the values. Raises ChatError before anything is made, or RankError.

        Stopped by the user, it shows what was finished by then.
        """
        if self._talk.transcript.last_question is None:
            raise UsageError("There is nothing to compare yet.", "/compare answers your last message again.")
        candidates = list(self._candidates(name, values))
        replies: dict[str, Reply] = {}
        try:
            for number, candidate in enumerate(candidates, 1):
                place = f"{candidate.label} ({number} of {len(candidates)})"
                if not self._page.redraws:
                    self._page.note(f"{place} ...")
                reply = self._reply(candidate, f"{place}: ")
                if reply.finish != "cancelled":
                    replies[candidate.label] = reply
                if self._work.to_stop:
                    break
        finally:
            self._work.rest()
        if replies:
            self._page.compared(list(judged(replies, self._talk.reply_text)))
            self._question = self._talk.tree.questions()[0].id
            asked = {candidate.label: candidate for candidate in candidates}
            self._kept = {label: (reply, asked[label]) for label, reply in replies.items()}
            self._page.note("/compare keep N goes on with one of them.")
        if len(replies) < len(candidates):
            self._page.note(f"Stopped: {len(replies)} of {len(candidates)} replies were made.")

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
        reply, candidate = self._kept[names[number - 1]]
        fitted = dataclasses.replace(
            self._talk.fitted(self._talk.transcript.without_reply()), token_ids=candidate.prompt
        )
        asked = dataclasses.replace(
            self._talk.asked(fitted, candidate.settings.seed or 0), settings=candidate.settings.as_dict()
        )
        text = self._talk.reply_text(reply.token_ids)

        def write(session: Session) -> None:
            session.ask_again(asked)
            session.tokens(reply.token_ids, text)
            session.reply(reply.finish, text, reply.stats.as_dict())

        self._talk.journal(write)
        self._talk.last_reply = reply
        self._talk.show_used(reply.prompt_len + len(reply.token_ids), fitted.limit)
        self._page.note(
            f"The conversation goes on with reply {number}, {candidate.label}. /undo and /branches lead back."
        )

    def _candidates(self, name: str, values: Sequence[str]) -> Iterator[Candidate]:
        """The replies to make, all checked; the greedy one has room for the longest of the others.

        What their prompt leaves out is said.
        """
        base, drawn = self._talk.settings, secrets.randbelow(MAX_SEED)
        question = self._talk.transcript.without_reply()
        settings = {value: with_seed(base.with_value(name, value), drawn) for value in values}
        greedy = dataclasses.replace(
            base,
            temperature=0.0,
            add_eos_length=0,
            refine_iter=1,
            max_new_tokens=max(one.max_new_tokens for one in settings.values()),
            max_length=max(one.max_length for one in settings.values()),
        )
        labelled = {**{f"{name} {value}": one for value, one in settings.items()}, GREEDY: greedy}
        # One prompt for all: what has room where there is least.
        prompts = (self._talk.fitted(question, one) for one in labelled.values())
        fitted = min(prompts, key=lambda prompt: len(prompt.token_ids))
        if fitted.left_out:
            self._page.note(left_out_note(fitted, question))
        for label, one in labelled.items():
            yield Candidate(label=label, settings=one, prompt=fitted.token_ids)

    def _reply(self, candidate: Candidate, doing: str) -> Reply:
        turn = Turn(
            prompts=(candidate.prompt,),
            settings=candidate.settings,
            placeholder=self._talk.tokenizer.eos_id,
            stop_ids=self._talk.tokenizer.stop_ids,
        )
        view = self._page.reply_view(self._talk.reply_text)

        def show(update: BlockUpdate) -> None:
            self._page.console.show_live(view.update(update).draw)

        return self._work.reply(turn, lambda: candidate.settings, show, doing)
