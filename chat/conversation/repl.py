"""The conversation: read a line, dispatch it or answer it, repeat. Knows no key and no drawing.

Everything runs on the main thread; what the user does in the middle of a reply is looked at once per pass.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

from chat.console.events import Failed, Leave, Submitted, command_word
from chat.conversation.answering import Answering
from chat.conversation.comparing import Comparing
from chat.conversation.inbox import Inbox
from chat.conversation.page import Page
from chat.conversation.replaying import Replaying
from chat.conversation.resuming import show_end
from chat.conversation.state import Talk
from chat.conversation.watching import Watching
from chat.conversation.why import why
from chat.conversation.work import Work
from chat.sessions.nodes import Node
from chat.sessions.session import Session
from dist.decode.engine import Engine
from dist.errors import ChatError, PromptError, RankError, WeightsLost


class Dispatch(Protocol):
    """Runs a command line, which begins with a slash. Raises ChatError."""

    def __call__(self, repl: Repl, line: str, *, live: bool = False) -> None: ...


# How long the program waits at the prompt before it tries again what the disk refused.
SAVE_AGAIN_S = 2.0
LEAVING_WORDS = ("exit", "quit")


class Repl:
    """One conversation: what it holds (`talk`), what it says (`page`), how messages are answered (`answering`)."""

    def __init__(self, *, engine: Engine, page: Page, talk: Talk, dispatch: Dispatch) -> None:
        self.page = page
        self.talk = talk
        self._engine = engine
        self._dispatch = dispatch
        self._inbox = Inbox(page.console.events, self._run_live)
        self._work = work = Work(engine, self._inbox, self.page)
        self.answering = Answering(self.talk, work, self.page)
        self.comparing = Comparing(self.talk, work, self.page)
        self.watching = Watching(self.talk, self.answering, self.page)
        self.replaying = Replaying(self.talk, work, self.page)
        self.why = partial(why, self.talk, work, self.page)
        self._edited: Node | None = None  # the message, or reply, that the next line takes the place of
        self._asked_to_leave = False
        self._silent = False

    # The loop.

    def run(self) -> None:
        """Hold the conversation until the user leaves. Raises RankError if the ranks fall apart, WeightsLost."""
        while not self._inbox.leaving:
            self.page.console.set_busy(False)
            event = self._inbox.next(SAVE_AGAIN_S if self.talk.session.fault else None)
            if event is None:
                self.talk.journal(Session.save_again)
            elif isinstance(event, Submitted):
                self._take(event)
            elif isinstance(event, Leave):
                self.leave()
            elif isinstance(event, Failed):
                if not isinstance(event.error, EOFError):
                    raise event.error
                self.leave()
        self.watching.off()
        self.talk.close()

    def _take(self, event: Submitted) -> None:
        """Run a command or answer a message; an error is shown and the conversation goes on."""
        is_command = command_word(event.text) is not None
        if event.text.lower() in LEAVING_WORDS and not event.edited:
            self._leave_if_meant(event.text)
            return
        self._asked_to_leave = False
        edited = self._edited if event.edited and not is_command else None
        self._edited = None
        present = self.talk.transcript
        try:
            self.page.echo(event.text)
            if is_command:
                self._dispatch(self, event.text)
            elif edited is not None and edited.made is not None:
                self.answering.go_on(event.text, edited)
            elif edited is not None:
                self.answering.say_instead(edited, event.text)
            else:
                self.answering.say(event.text)
        except (RankError, WeightsLost):
            raise
        except ChatError as error:
            self.page.error(error)
            if edited is not None:  # what is sent next is still the edit
                self._edited = edited
                self.page.console.edit(event.text)
            elif isinstance(error, PromptError) and not is_command and self.talk.transcript == present:
                self.page.console.put_back(event.text)

    def _leave_if_meant(self, word: str) -> None:
        """A bare word that other programs end by: the second one in a row ends this one."""
        self.page.echo(word)
        if self._asked_to_leave:
            self.leave()
            return
        self._asked_to_leave = True
        self.note(f"To leave, send {word} once more, or /quit. To send it to the model, put a space in front.")

    def _run_live(self, line: str) -> None:
        """Run a command in the middle of a reply."""
        try:
            self._dispatch(self, line, live=True)
        except ChatError as error:
            self.page.error(error)

    # What commands and the program ask for.

    def edit(self, message: Node) -> None:
        """Put a message of the user's, or a reply, into the input line; sending it goes on from there."""
        self._edited = message
        self.page.console.edit(message.text)

    def suggest(self, line: str) -> None:
        """Put a line into the input line, to be changed or sent."""
        self._edited = None
        self.page.console.edit(line)

    @property
    def cached_tokens(self) -> int:
        """Tokens that the next prompt need not read again, if it begins with them."""
        return self._engine.cached_tokens

    def later(self, line: str) -> None:
        """Run a line when the present reply is done."""
        self._inbox.later(line)

    def leave(self) -> None:
        """End the conversation after the present command."""
        self._inbox.leaving = True

    def note(self, text: str) -> None:
        """Say something to the user."""
        self.page.note(text)

    def show_conversation(self) -> None:
        """The end of a conversation that is taken up again."""
        show_end(self.page, self.talk.tree)

    def show_silence(self, text: str) -> None:
        """Say that a rank gives no sign of life; `""` when it does again. May be called from any thread."""
        if self.page.redraws:
            self.page.status(text)
        elif not text or not self._silent:
            self.page.note(text or "All ranks answer again.")
        self._silent = bool(text)

    def watch_quiet(self) -> None:
        """Say so if no pass has ended for some seconds. May be called from any thread."""
        self._work.watch_quiet()
