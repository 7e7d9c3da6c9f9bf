"""A conversation taken up again: its settings, what differs from when it was made, its last exchange."""

from __future__ import annotations

from collections.abc import Sequence

from chat.conversation.page import Page
from chat.conversation.provenance import differences, settings_of, unknown_settings
from chat.conversation.state import Talk
from chat.sessions.nodes import CUT, Node
from chat.sessions.reimport import import_session, is_file_to_import
from chat.sessions.session import Session
from chat.sessions.tree import Tree
from chat.text.transcript import USER
from dist.counted import counted
from dist.errors import UsageError

# Origins of settings.
COMMAND_LINE, OF_SESSION = "command line", "the session"


def resume(talk: Talk, page: Page, name: str) -> None:
    """Go on with another session, the latest if `name` is empty; raises ChatError if there is none."""
    present = talk.session.name
    if name == present:
        raise UsageError(f"The session {name} is the current one.", hint="/sessions lists the others.")
    if not name:
        others = (info.name for info in talk.sessions.latest() if info.name != present)
        name = next(others, "")
        if not name:
            raise UsageError("There is no other session to resume.")
    folder = talk.sessions.folder
    if is_file_to_import(name):
        program = talk.tree.session.program if talk.tree.session is not None else ""
        session, said = import_session(folder, name, program)
    else:
        session, said = Session.resume(folder, name)
    talk.session.close()
    talk.session = session
    take_up(talk, page, said)


def take_up(talk: Talk, page: Page, said: Sequence[str] = ()) -> None:
    """Go on with the session that `talk` holds now: its settings, and what differs from when it was made.

    `said` holds notices about its file.
    """
    for text in said:
        page.note(text)
    last = next((node.made for node in reversed(talk.tree.path()) if node.made is not None), None)
    made = settings_of(last.settings) if last is not None else {}
    taken = {name: value for name, value in made.items() if talk.origins.get(name) != COMMAND_LINE}
    talk.adopt_settings(taken, OF_SESSION)
    record = talk.checkpoint_record()
    talk.journal(lambda session: session.checkpoint(record))
    page.note(f"Session {talk.session.name}, {counted(len(talk.transcript.exchanges), 'exchange')}.")
    if last is None:
        return
    for name, value in made.items():
        now = getattr(talk.settings, name)
        if now != value:
            page.note(f"{name} is {now} (command line); the session used {value}.")
    for name, value in unknown_settings(last.settings):
        page.note(f"The session used {name} {value}, which this version does not know.")
    for difference in differences(last.checkpoint, record) if last.checkpoint is not None else ():
        page.note(difference)


WAYS_ON = "/continue goes on with it, /retry answers the message again."


def show_end(page: Page, tree: Tree) -> None:
    """The last exchange, and what can be done about a reply that is missing or not whole."""
    path = tree.path()
    question = next((node for node in reversed(path) if node.role == USER), None)
    if question is None:
        return
    page.echo(question.text)
    reply = next((node for node in reversed(path) if node.made is not None and node.parent == question.id), None)
    if reply is not None:
        page.markdown(reply.text)
    state = how_it_ended(reply)
    if state:
        page.note(state)


def how_it_ended(reply: Node | None) -> str:
    """What is to be known of a reply, or of a message without one, and what to do; "" if there is nothing."""
    if reply is None or reply.made is None:
        return "[unanswered] /retry answers this message."
    match reply.made.finish:
        case "cancelled":
            return f"[stopped] {WAYS_ON}"
        case "length":
            return f"[cut] The reply reached its length limit. {WAYS_ON}"
        case "error":
            return f"[cut] An error ended this reply. {WAYS_ON}"
        case finish if finish == CUT:
            return f"[cut] The program ended before this reply did. {WAYS_ON}"
    return ""
