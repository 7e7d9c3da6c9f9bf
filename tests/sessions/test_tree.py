"""The tree of a conversation: what its commands do to it, and that its journal says the same, whatever was done."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import jsonschema
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import chat.sessions
from chat.sessions.export import Target, conversation_of, export
from chat.sessions.journal import read_journal
from chat.sessions.records import CheckpointRecord
from chat.sessions.reimport import import_session
from chat.sessions.session import Asked, Session
from chat.sessions.tree import Tree
from chat.text.transcript import ASSISTANT, USER

SCHEMA = jsonschema.Draft202012Validator(
    json.loads((Path(chat.sessions.__file__).parent / "journal.schema.json").read_text())
)
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # shrinking takes minutes
ASKED = Asked(settings={"refine_iter": 2, "temperature": 0.5}, seed=7, left_out=1, prompt_len=3, prompt="0" * 16)

texts = st.one_of(
    st.text(max_size=12), st.sampled_from(["```\ncode\n```", "| a |\n|---|", "\x1b[31m\r\n\0", "世界 😀"])
)
chunks = st.lists(st.tuples(st.lists(st.integers(0, 99), min_size=1, max_size=3), texts), max_size=3)
endings = st.sampled_from(["stop", "length", "cancelled", "error", "killed"])
numbers = st.integers(0, 5)
commands = st.one_of(
    st.tuples(st.just("say"), texts, chunks, endings),
    st.tuples(st.just("retry"), chunks, endings),
    st.tuples(st.just("edit"), numbers, texts, chunks, endings),
    st.tuples(st.just("undo"), numbers),
    st.tuples(st.just("branch"), numbers),
    st.tuples(st.just("system"), texts),
    st.sampled_from([("clear",), ("redo",), ("load",), ("save",), ("resume",)]),
)


class Person:
    """Does to a session what commands do. `said` is all that was ever said, by node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.session = Session(folder, system="Be kind.", program="test")
        self.said: dict[int, str] = {}

    def do(self, command: tuple) -> None:
        getattr(self, command[0])(*command[1:])

    def _reply(self, parts: list, ending: str) -> None:
        text = ""
        for ids, piece in parts:
            self.session.tokens(ids, piece)
            text += piece
            self.session.setting("refine_iter", len(text))
        if parts and ending != "killed":
            self.session.reply(ending, text + "!", {"forwards": 3})
        else:
            self.session.no_reply()

    def say(self, text: str, parts: list, ending: str) -> None:
        self.session.say(text, ASKED)
        self._reply(parts, ending)

    def retry(self, parts: list, ending: str) -> None:
        if self.session.tree.questions():
            self.session.ask_again(ASKED)
            self._reply(parts, ending)

    def edit(self, n: int, text: str, parts: list, ending: str) -> None:
        questions = self.session.tree.questions()
        if n < len(questions):
            self.session.say(text, ASKED, instead_of=questions[n].id)
            self._reply(parts, ending)

    def undo(self, n: int) -> None:
        questions = self.session.tree.questions()
        if n < len(questions):
            self.session.go(questions[n].parent, "undo")

    def branch(self, n: int) -> None:
        leaves = self.session.tree.leaves()
        if n < len(leaves):
            self.session.go(leaves[n].id, "branch")

    def clear(self) -> None:
        self.session.go(0, "clear")

    def redo(self) -> None:
        if self.session.tree.undone:
            self.session.go(self.session.tree.undone[-1], "redo")

    def system(self, text: str) -> None:
        self.session.set_system(text)

    def load(self) -> None:
        self.session.checkpoint(CheckpointRecord(time=1.0, path="/runs/step", step=3, stop_ids=(2,)))

    def save(self) -> None:
        self.session.save()

    def resume(self) -> None:
        if self.session.on_disk:
            self.session.close()
            self.session, said = Session.resume(self.folder, self.session.name)
            assert said == ()


def state(tree: Tree) -> tuple:
    """All that a tree says."""
    return (
        tree.records,
        list(tree.nodes()),
        tree.head,
        tree.transcript(),
        tree.undone,
        tree.title,
        tree.checkpoints,
        [node.id for node in tree.leaves()],
    )


@pytest.mark.slow
@given(script=st.lists(commands, max_size=12))
@settings(max_examples=60, deadline=None, phases=PHASES)
def test_journal_to_session_to_journal_is_a_fixed_point(script: list[tuple]) -> None:
    with tempfile.TemporaryDirectory() as home:
        person = Person(Path(home) / "sessions")
        for command in script:
            system, head = person.session.tree.system(), person.session.tree.head
            person.do(command)
            tree = person.session.tree
            # What was said stays, and can be reached from a leaf.
            person.said = {**{node.id: node.text for node in tree.nodes() if node.role != "system"}, **person.said}
            reached = {node.id: node.text for leaf in tree.leaves() for node in tree.path(leaf.id)}
            assert person.said.items() <= reached.items()
            if command[0] in ("undo", "clear", "edit", "retry", "say", "redo", "resume"):
                assert tree.system() == system or (command[0] == "redo" and tree.head != head)
            if person.session.on_disk:
                data = person.session.path.read_bytes()
                reading = read_journal(data)
                assert (reading.sound, reading.skipped) == (len(data), 0)
                assert state(reading.tree) == state(tree)
        if person.session.on_disk:
            for line in person.session.path.read_bytes().splitlines():
                SCHEMA.validate(json.loads(line))
            person.session.close()
            data = person.session.path.read_bytes()
            again = Session.of_records(Path(home), "copy", read_journal(data).tree.records)
            again.close()
            assert again.path.read_bytes() == data
            assert state(again.tree) == state(person.session.tree)
            if person.session.tree.questions():
                exported = Target(f"{home}/again.json")
                export(exported, conversation_of(person.session.tree, "again", exported))
                session, _ = import_session(Path(home) / "imported", exported.name, "test")
                session.close()
                assert session.path.read_bytes() == data
        person.session.close()


@given(script=st.lists(commands, min_size=1, max_size=5), share=st.floats(0, 1))
@settings(max_examples=40, deadline=None, phases=PHASES)
def test_a_journal_cut_at_any_byte_keeps_all_its_whole_lines(script: list[tuple], share: float) -> None:
    with tempfile.TemporaryDirectory() as home:
        person = Person(Path(home))
        for command in script:
            person.do(command)
        person.session.save("cut")
        person.session.close()
        whole = person.session.path.read_bytes()
        cut = round(share * len(whole))
        kept = whole[:cut].count(b"\n")
        reading = read_journal(whole[:cut])
        assert reading.tree.records == person.session.tree.records[:kept]
        assert reading.sound == whole[:cut].rfind(b"\n") + 1
        person.session.path.write_bytes(whole[:cut])
        if kept:
            session, said = Session.resume(Path(home), "cut")
            assert bool(said) == (not whole[:cut].endswith(b"\n"))
            session.say("and on", ASKED)
            session.close()
            assert read_journal(session.path.read_bytes()).tree.records == session.tree.records


def conversation(tree: Tree) -> list[str]:
    return [node.text for node in tree.path() if node.role in (USER, ASSISTANT)]


def exchange(session: Session, question: str, reply: str = "") -> None:
    session.say(question, ASKED)
    session.tokens((1, 2), reply or question.upper())
    session.reply("stop", reply or question.upper(), {})


def test_undo_redo_and_branches_move_the_head_and_nothing_is_lost(tmp_path: Path) -> None:
    session = Session(tmp_path)
    for word in "abc":
        exchange(session, word)
    first = session.tree.head
    session.go(session.tree.questions()[1].parent, "undo")
    assert conversation(session.tree) == ["a", "A"]
    session.go(session.tree.questions()[0].parent, "undo")
    assert conversation(session.tree) == []
    session.go(session.tree.undone[-1], "redo")
    session.go(session.tree.undone[-1], "redo")
    assert (session.tree.head, session.tree.undone) == (first, [])
    session.go(session.tree.questions()[1].parent, "undo")
    exchange(session, "d")
    assert session.tree.undone == []
    assert [node.text for node in session.tree.leaves()] == ["C", "D"]
    session.go(first, "branch")
    assert conversation(session.tree) == ["a", "A", "b", "B", "c", "C"]
    session.close()


def test_a_retry_or_an_edit_without_a_token_counts_for_nothing_and_with_one_it_counts(tmp_path: Path) -> None:
    session = Session(tmp_path)
    exchange(session, "a")
    exchange(session, "b")
    for begin in (
        lambda: session.ask_again(ASKED),
        lambda: session.say("changed", ASKED, instead_of=session.tree.questions()[1].id),
    ):
        before = conversation(session.tree)
        begin()
        assert conversation(read_journal(session.path.read_bytes()).tree) == before
        session.no_reply()
        assert conversation(session.tree) == before
        begin()
        session.tokens((9,), "new")
        assert conversation(read_journal(session.path.read_bytes()).tree)[-1] == "new"
        session.no_reply()
        assert conversation(session.tree)[-1] == "new"
        assert session.transcript.messages[-1].stopped
    assert conversation(session.tree) == ["changed", "new"]
    assert [node.text for node in session.tree.leaves()] == ["B", "new", "changed", "new"]
    session.close()


def test_replies_know_what_made_them(tmp_path: Path) -> None:
    session = Session(tmp_path)
    session.checkpoint(CheckpointRecord(time=1.0, path="/runs/a", step=1))
    exchange(session, "a")
    session.checkpoint(CheckpointRecord(time=2.0, path="/runs/b", step=2))
    session.say("b", Asked(settings={"temperature": 0.0, "refine_iter": 2}))
    session.tokens((1, 2, 3), "B")
    session.setting("refine_iter", 1)
    session.tokens((4,), "!")
    session.reply("length", "B!", {"forwards": 4})
    session.close()
    tree = read_journal(session.path.read_bytes()).tree
    first, second = (node.made for node in tree.path() if node.made is not None)
    assert (first.checkpoint.step, first.settings["temperature"], first.turn.seed) == (1, 0.5, 7)
    assert (second.checkpoint.step, second.settings) == (2, {"temperature": 0.0, "refine_iter": 1})
    assert [(one.at, one.name, one.value) for one in second.changes] == [(3, "refine_iter", 1)]
    assert (second.finish, second.stats, second.token_ids) == ("length", {"forwards": 4}, (1, 2, 3, 4))
