"""The slash commands that move about in what was said. None of them loses anything: /branches leads everywhere."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from chat.commands.row import Value, ago, command, exchanges, first_word, unquoted, whole_number
from chat.sessions.nodes import Node
from chat.sessions.tree import Tree
from chat.text.transcript import ASSISTANT, SYSTEM, USER
from dist.counted import counted
from dist.errors import UsageError

if TYPE_CHECKING:
    from chat.conversation.repl import Repl

SHOWN_QUESTIONS = 10
SHOWN_EXCHANGES = 10
BEGINNING = 60  # characters of a message that is only named
FIRST_WORDS = 50


@command(
    "system", "/system [TEXT]", "show or replace the system prompt (- removes it)", example="/system Be brief."
)
def system(repl: Repl, argument: str) -> None:
    present = repl.talk.transcript.system
    if not argument:
        repl.note(f"The system prompt is: {present}" if present else "There is no system prompt.")
        return
    repl.talk.set_system("" if argument == "-" else argument)
    said = "removed" if argument == "-" else "replaced"
    fate = repl.talk.system_fate if argument != "-" else None
    repl.note(f"The system prompt is {said}." if fate is None else f"The system prompt has no effect: {fate}")


@command("clear", "/clear", "start over; the system prompt stays, and /redo takes it back")
def clear(repl: Repl, argument: str) -> None:
    gone = len(repl.talk.transcript.exchanges)
    repl.talk.clear()
    repl.note(
        f"Cleared {exchanges(gone)}. /redo brings {'it' if gone == 1 else 'them'} back." if gone else "Cleared."
    )


@command("undo", "/undo [N]", "take back the last exchange, or the last N", example="/undo 2")
def undo(repl: Repl, argument: str) -> None:
    n = whole_number(argument, "/undo")
    questions = repl.talk.tree.questions()
    if not questions:
        raise UsageError("There is nothing to undo.")
    taken = min(n, len(questions))
    repl.talk.undo(questions[taken - 1])
    left = len(questions) - taken
    repl.note(
        f"Took back {exchanges(taken)}; {exchanges(left) if left else 'none'} left. "
        f"{'It' if taken == 1 else 'The last'} began: {_beginning(questions[0].text)}"
    )


@command("redo", "/redo", "take the last /undo or /clear back")
def redo(repl: Repl, argument: str) -> None:
    repl.talk.redo()
    there = len(repl.talk.transcript.exchanges)
    repl.note(f"Back again: {exchanges(there)}. Last is: {_beginning(repl.talk.transcript.last_question or '')}")


@command("retry", "/retry", "answer the last message again")
def retry(repl: Repl, argument: str) -> None:
    repl.answering.say_again()


def _beginning(text: str) -> str:
    """The first words of a message, on one line."""
    plain = " ".join(text.split())
    return plain if len(plain) <= BEGINNING else f"{plain[: BEGINNING - 3]}..."


def _questions(repl: Repl, word: str) -> Iterable[Value]:
    """The user's messages by number, the last one first."""
    shown = repl.talk.tree.questions()[:SHOWN_QUESTIONS]
    return ((str(n), _beginning(node.text)) for n, node in enumerate(shown, 1))


@command("continue", "/continue", "continue a reply that was stopped, cut off, or reached its length limit")
def continue_(repl: Repl, argument: str) -> None:
    repl.answering.go_on()


@command(
    "prefill",
    "/prefill [TEXT|-]",
    'what the next reply begins with (double quotes keep spaces: "at the end "; - removes it)',
    example="/prefill Sure, here",
)
def prefill(repl: Repl, argument: str) -> None:
    if argument:
        repl.talk.prefill = "" if argument == "-" else unquoted(argument)
    now = repl.talk.prefill or repl.talk.settings.prefill
    repl.note(f"The next reply begins with: {now}" if now else "The next reply has no prefill.")


def _edited(repl: Repl, word: str) -> Iterable[Value]:
    return (*_questions(repl, word), ("reply", "the last reply; the model goes on from your text"))


@command(
    "edit",
    "/edit [N|reply]",
    "change your last message, the N-th last, or the last reply, and continue from there",
    values=first_word(_edited),
    example="/edit 2",
)
def edit(repl: Repl, argument: str) -> None:
    if argument == "reply":
        reply = repl.talk.last_reply_node
        if reply is None:
            raise UsageError("There is no reply to edit.")
        repl.note("On Enter the model goes on from the reply as you edited it; Ctrl-C cancels.")
        repl.edit(reply)
        return
    n = whole_number(argument, "/edit")
    questions = repl.talk.tree.questions()
    if not questions:
        raise UsageError("There is nothing to edit.")
    if n > len(questions):
        raise UsageError(f"/edit cannot take {n}.", f"You have sent {counted(len(questions), 'message')}.")
    repl.note(
        f"Message {len(questions) - n + 1} of {len(questions)}: Enter sends it and goes on from there "
        "(/branches leads back to what followed); Ctrl-C cancels."
    )
    repl.edit(questions[n - 1])


def _leaves(repl: Repl, word: str) -> Iterable[Value]:
    return ((number, f"{words} ({about})") for number, words, about in _rows(repl.talk.tree))


def _rows(tree: Tree) -> list[tuple[str, str, str]]:
    """Every branch: its number, the first words that the present one has not, its age and checkpoint."""
    present = {node.id for node in tree.path()}
    rows = []
    for number, leaf in enumerate(tree.leaves(), 1):
        path = tree.path(leaf.id)
        own = next((node for node in path if node.id not in present), path[-1])
        here = ""
        if any(node.id == tree.head for node in path):
            here = "here, " if leaf.id == tree.head else "goes on from here, "
        beside = next((one for one in tree.path() if (one.parent, one.role) == (own.parent, own.role)), own)
        rows.append((str(number), _first_words(own, beside), f"{here}{ago(time.time() - leaf.time)}{_maker(leaf)}"))
    return rows


def _first_words(node: Node, beside: Node) -> str:
    """The beginning of a message; of one that begins as another does, from where they differ on."""
    differs = (at for at, (mine, other) in enumerate(zip(node.text, beside.text)) if mine != other)
    same = 0 if node.id == beside.id else next(differs, min(len(node.text), len(beside.text)))
    at = node.text.rfind(" ", 0, same) + 1 if same > FIRST_WORDS // 2 else 0
    rest = " ".join(node.text[at : at + 4 * FIRST_WORDS].split())
    words = (("... " if at else "") + rest)[:FIRST_WORDS] if rest else "the same, but it ends earlier"
    return {USER: words, ASSISTANT: f"reply: {words}", SYSTEM: f"system prompt: {words}"}[node.role]


def _maker(leaf: Node) -> str:
    checkpoint = leaf.made.checkpoint if leaf.made is not None else None
    if checkpoint is None:
        return ""
    return f", {checkpoint.path}" if checkpoint.step is None else f", step {checkpoint.step}"


@command(
    "branches",
    "/branches [N]",
    "all branches of the conversation; with a number, continue from that one",
    values=first_word(_leaves),
    example="/branches 2",
)
def branches(repl: Repl, argument: str) -> None:
    tree = repl.talk.tree
    leaves = tree.leaves()
    if not argument:
        if not leaves:
            repl.note("There are no messages yet.")
            return
        repl.page.table(_rows(tree), head=("branch", "begins to differ with", "last"))
        return
    n = whole_number(argument, "/branches")
    if n > len(leaves):
        raise UsageError(f"There is no branch {n}.", f"There are {len(leaves)}.", "/branches lists them.")
    repl.talk.go_to(leaves[n - 1])
    repl.show_conversation()
    repl.note(f"On branch {n}: {exchanges(len(repl.talk.transcript.exchanges))}.")


@command(
    "history", "/history [N]", "the last exchanges of this conversation, 10 or N of them", example="/history 20"
)
def history(repl: Repl, argument: str) -> None:
    n = whole_number(argument, "/history", default=SHOWN_EXCHANGES)
    groups = repl.talk.transcript.exchanges
    if not groups:
        repl.note("There are no messages yet.")
        return
    if len(groups) > n:
        repl.note(f"{exchanges(len(groups) - n)} before these.")
    for group in groups[-n:]:
        for message in group:
            repl.page.message(message)
