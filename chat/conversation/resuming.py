"""What is shown of a conversation that is taken up again: its last exchange, marked as it is. Changes nothing."""

from __future__ import annotations

from chat.conversation.page import Page
from chat.sessions.tree import CUT, Node, Tree
from chat.text.transcript import USER


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
            return "[stopped] /retry answers the message again."
        case "error":
            return "[cut] An error ended this reply. /retry answers the message again."
        case finish if finish == CUT:
            return "[cut] The program ended before this reply did. /retry answers the message again."
    return ""
