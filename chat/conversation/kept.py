"""A conversation in its session: where it is, what of it is on disk, how it is continued. Knows no model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from chat.conversation.page import Page
from chat.sessions.export import Target, conversation_of, export
from chat.sessions.nodes import ROOT, Node
from chat.sessions.session import Session
from chat.sessions.tree import Tree
from chat.text.transcript import Transcript
from dist.counted import counted
from dist.errors import ChatError, UsageError


class Kept:
    """What was said, and its journal; what happens to that is said on the page.

    `how_to_continue` gives the command that resumes a session of some name; `announce` is handed what to tell a
    user whose program was killed.
    """

    def __init__(
        self,
        page: Page,
        session: Session,
        how_to_continue: Callable[[str], str],
        announce: Callable[[str], None],
    ) -> None:
        self.session = session
        self._page = page
        self._how_to_continue = how_to_continue
        self._announce = announce
        self._announced = ""
        self._fault = ""  # what was said of saving

    def show_toolbar(self) -> None:
        """Called when what the toolbar shows of the session has changed."""

    def head_moved(self) -> None:
        """Called after every change of the journal: the conversation may be somewhere else now."""

    @property
    def tree(self) -> Tree:
        """All that was said, on all branches."""
        return self.session.tree

    @property
    def transcript(self) -> Transcript:
        """What was said on the present branch."""
        return self.session.transcript

    # Where the conversation is.

    def undo(self, question: Node) -> None:
        """Go back to before a message of the user's."""
        self.journal(lambda session: session.go(question.parent, "undo"))

    def clear(self) -> None:
        """Go back to before everything; the system prompt stays."""
        self.journal(lambda session: session.go(ROOT, "clear"))

    def redo(self) -> None:
        """Take the last undo or clear back. Raises UsageError if there is none."""
        if not self.tree.undone:
            raise UsageError("There is nothing to redo.", "", "/branches lists everything that was said.")
        self.journal(lambda session: session.go(session.tree.undone[-1], "redo"))

    def go_to(self, leaf: Node) -> None:
        """Go on from the end of another branch."""
        self.journal(lambda session: session.go(leaf.id, "branch"))

    def set_system(self, text: str) -> None:
        """Another system prompt from here on, none if it is empty."""
        self.journal(lambda session: session.set_system(text))

    # Files.

    def export(self, argument: str) -> Path:
        """Write the conversation, or a range of it, to a file; raises ChatError."""
        target = Target(argument)
        return export(target, conversation_of(self.tree, self.session.name, target))

    def save(self, name: str = "") -> None:
        """Put the session on disk, under a name if one is given; raises ChatError."""
        self.journal(lambda session: session.save(name))

    def journal(self, write: Callable[[Session], None]) -> None:
        """Write to the journal; a disk that refuses ends no conversation, but is said, and so is its end."""
        write(self.session)
        self.head_moved()
        if self.session.on_disk and self._announced != self.session.name:
            self._announced = self.session.name
            self._announce(f"Session {self.session.name}. Continue:\n  {self._how_to_continue(self.session.name)}")
        if bool(self.session.fault) == bool(self._fault):
            return
        self._fault = self.session.fault
        if self._fault:
            self._page.error(
                ChatError(
                    "The conversation is not being saved.",
                    self._fault,
                    "What is missing is written as soon as that works. /export FILE writes it elsewhere.",
                )
            )
        else:
            self._page.note("The conversation is saved again, with everything that was missing.")
        self.show_toolbar()

    @property
    def farewell(self) -> str:
        """How the conversation is continued later, and what of it is lost; "" if nothing was said."""
        lines = []
        if self.session.on_disk:
            said = counted(len(self.transcript.exchanges), "exchange")
            how = self._how_to_continue(self.session.name)
            lines.append(f"Session {self.session.name}, {said}. Continue:\n  {how}")
        if self.session.unsaved:
            missing = counted(self.session.unsaved, "record")
            lines.append(f"Not saved: {missing} of this conversation. {self.session.fault}")
        return "\n".join(lines)

    def close(self) -> None:
        """Let go of the journal, and say how to continue and what is not on disk."""
        self.session.close()
        if self.farewell:
            self._page.note(self.farewell)
