"""Lets other checkpoints answer for a while, then brings back the one before, whatever happens. Knows no reply.

Only one model is ever held: each checkpoint's weights are read where the last one's are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from chat.conversation.page import Page
from chat.conversation.provenance import checkpoint_record
from chat.conversation.state import Talk
from chat.loading.checkpoints import Adopted
from chat.sessions.records import CheckpointRecord
from chat.text.tokenizer import ChatTokenizer
from dist.errors import ChatError, CheckpointError, RankError, WeightsLost


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A checkpoint that answers for a while. `record` is what the journal says of it."""

    tokenizer: ChatTokenizer
    use_template: bool
    record: CheckpointRecord


class Visit:
    """Used in a `with`; entering raises CheckpointError, with nothing changed, if the way back is not open."""

    def __init__(self, talk: Talk, page: Page) -> None:
        self._talk = talk
        self._page = page
        self._home = Path(talk.facts.checkpoint).absolute()
        # Whose weights answer now: None where reading failed and nothing is whole.
        self._here: Path | None = self._home
        self._guest: Adopted | None = None

    def __enter__(self) -> Visit:
        facts = self._talk.facts
        try:
            digest = self._talk.checkpoints.check(self._home)
        except CheckpointError as error:
            raise CheckpointError(
                f"{facts.who} could not be brought back afterwards.", f"{error.what} {error.why}", error.hint
            ) from error
        if "" not in (digest, facts.digest) and digest != facts.digest:
            raise CheckpointError(
                f"{facts.who} could not be brought back afterwards.",
                f"{self._home} has changed since it was loaded.",
                "/load loads what is there now.",
            )
        return self

    def go_to(self, folder: Path, doing: str) -> Guest:
        """Have the weights in `folder` answer. Raises ChatError with the last ones still answering, WeightsLost."""
        talk = self._talk
        if folder != self._here:
            try:
                self._guest = talk.fetch(str(folder), doing)
            except WeightsLost:
                self._here = None
                raise
            self._here = folder
        if self._guest is None or folder == self._home:
            return Guest(tokenizer=talk.tokenizer, use_template=talk.use_template, record=talk.checkpoint_record())
        guest = self._guest
        record = checkpoint_record(guest.facts, guest.tokenizer, use_template=guest.use_template)
        return Guest(tokenizer=guest.tokenizer, use_template=guest.use_template, record=record)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Raises WeightsLost if no weights are left to answer."""
        if self._here == self._home or isinstance(error, RankError):
            return
        talk, before = self._talk, self._talk.facts
        self._page.console.set_stoppable(False)
        try:
            adopted = talk.fetch(str(self._home), f"reloading {before.who.lower()}: ")
        except RankError:
            raise
        except WeightsLost as lost:
            raise talk.lost(lost) from lost
        except ChatError as problem:
            self._stay(problem)
        else:
            if "" not in (before.digest, adopted.facts.digest) and before.digest != adopted.facts.digest:
                talk.adopt(adopted)
                self._page.note(f"{self._home} changed on disk in the meantime. What is there now answers.")

    def _stay(self, problem: ChatError) -> None:
        """There is no way back: the last guest goes on answering, and the user is shown that it does."""
        if self._here is None or self._guest is None:
            raise self._talk.lost(WeightsLost(problem.what, problem.why)) from problem
        self._talk.adopt(self._guest)
        self._page.error(problem)
        self._page.note(f"{self._talk.facts.who} answers from here on: {self._talk.facts.checkpoint}")
