"""The journal of a conversation: what is on disk after any fault, and finding it again."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chat.sessions.folder import Sessions, find_session, history_path, sessions_folder
from chat.sessions.journal import read_journal
from chat.sessions.records import CheckpointRecord
from chat.sessions.session import Asked, Session
from chat.text.transcript import Message
from dist.errors import ChatError, UsageError
from dist.settings import GenerationSettings

ROOT = Path(__file__).resolve().parents[2]
ASKED = Asked(settings=GenerationSettings(add_eos_length=7).as_dict(), seed=5)
HELLO = "Hello w\u00f6rld"
REPLY = Message("assistant", "One two \U0001f600 three", (1, 2, 3, 4, 5, 2))


def started(folder: Path, name: str = "") -> Session:
    session = Session(folder, name=name, system="Be kind.", program="test")
    session.checkpoint(CheckpointRecord(time=1.0, path="/runs/global_step_3", step=3))
    return session


def one_turn(session: Session, question: str = HELLO) -> None:
    session.say(question, ASKED)
    session.tokens((1, 2), "One two ")
    session.tokens((3, 4, 5, 2), "\U0001f600 three")
    session.reply("stop", REPLY.content, {"forwards": 4})


def contents(session: Session) -> list[str]:
    return [message.content for message in session.transcript.messages]


def on_disk(session: Session) -> list[str]:
    """What a resumed session would hold."""
    transcript = read_journal(session.path.read_bytes()).tree.transcript()
    return [message.content for message in transcript.messages]


def last_kind(session: Session) -> str:
    return str(json.loads(session.path.read_bytes().splitlines()[-1])["kind"])


def age(session: Session, seconds: float) -> None:
    then = session.path.stat().st_mtime - seconds
    os.utime(session.path, (then, then))


def test_files_lie_in_the_state_folder() -> None:
    assert sessions_folder({"XDG_STATE_HOME": "/s"}) == Path("/s/dllm-chat/sessions")
    assert history_path({"HOME": "/h"}) == Path("/h/.local/state/dllm-chat/history")


def test_a_session_without_a_turn_leaves_nothing_unless_it_is_saved(tmp_path: Path) -> None:
    session = started(tmp_path / "sessions")
    session.set_system("Be brief.")
    session.close()
    assert list(tmp_path.iterdir()) == []
    saved = started(tmp_path / "sessions")
    saved.save("early")
    saved.close()
    again, _ = Session.resume(tmp_path / "sessions", "early")
    assert (again.tree.title, contents(again)) == ("early", ["Be kind."])
    again.close()


def test_a_conversation_comes_back_with_ids_and_checkpoint(tmp_path: Path) -> None:
    session = started(tmp_path)
    one_turn(session)
    session.close()
    again, said = Session.resume(tmp_path)
    assert (again.name, said) == (session.name, ())
    assert again.transcript.messages == (Message("system", "Be kind."), Message("user", HELLO), REPLY)
    made = again.tree.node(again.tree.head).made
    assert made is not None
    assert (made.checkpoint, made.stats) == (session.tree.checkpoints[0], {"forwards": 4})
    again.close()


def test_what_was_said_is_on_disk_before_anything_is_made(tmp_path: Path) -> None:
    session = started(tmp_path)
    session.say(HELLO, ASKED)
    assert on_disk(session)[-1] == HELLO
    session.tokens((1, 2), "One two")
    last = read_journal(session.path.read_bytes()).tree.transcript().messages[-1]
    assert last == Message("assistant", "One two", (1, 2), stopped=True)
    session.close()


def test_a_turn_s_start_and_end_are_synced_and_tokens_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = started(tmp_path)
    one_turn(session)
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(last_kind(session)))
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    session.say("again", ASKED)
    for number in range(18):
        now[0] += 0.2
        session.tokens((number,), "x")
    session.reply("stop", "x" * 18, {})
    assert synced == ["turn", "tokens", "tokens", "tokens", "reply"]
    session.close()


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    session = started(tmp_path / "sessions")
    one_turn(session)
    assert session.path.stat().st_mode & 0o777 == 0o600
    assert session.path.parent.stat().st_mode & 0o777 == 0o700
    session.close()


@pytest.mark.parametrize("tail", [b'{"kind":"tok', b"\0" * 500, b"\0\0\n\xff{}\n", b'{"kind":"tokens"}\n[1]\n'])
def test_a_damaged_end_is_cut_off_with_a_notice_and_the_session_goes_on(tmp_path: Path, tail: bytes) -> None:
    session = started(tmp_path)
    one_turn(session)
    session.close()
    whole = session.path.read_bytes()
    session.path.write_bytes(whole + tail)
    again, said = Session.resume(tmp_path)
    kept = session.path.with_name(f"{session.path.name}.cut")
    where = f", kept in {kept.name}" if b"\n" in tail else ""
    assert said == (f"The end of the journal was damaged: dropped {len(tail)} unreadable bytes{where}.",)
    assert kept.read_bytes() == tail if where else not kept.exists()
    one_turn(again, "more")
    again.close()
    assert again.path.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in again.path.read_bytes().splitlines())
    assert on_disk(again) == ["Be kind.", HELLO, REPLY.content, "more", REPLY.content]
    assert read_journal(again.path.read_bytes()).tree.notes[0].text == said[0]


def test_a_damaged_line_in_the_middle_costs_no_more_than_itself(tmp_path: Path) -> None:
    session = started(tmp_path)
    one_turn(session)
    session.close()
    first, *rest = session.path.read_bytes().splitlines(keepends=True)
    session.path.write_bytes(b"".join((first, b"\xff\xfe garbage\n", b'{"kind": "turn"}\n', b"[1]\n", *rest)))
    again, said = Session.resume(tmp_path)
    assert said == ("3 lines are damaged in the middle of the journal; the rest was read.",)
    assert contents(again) == contents(session)
    again.close()


def test_a_journal_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    session = started(tmp_path, "new")
    one_turn(session)
    session.close()
    data = session.path.read_bytes().replace(b'"version":2', b'"version":3') + b"half a li"
    session.path.write_bytes(data)
    with pytest.raises(ChatError, match="written by a newer version"):
        Session.resume(tmp_path)
    assert session.path.read_bytes() == data


def test_killed_at_once_a_session_still_holds_every_finished_token(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal; from pathlib import Path\n"
        "from chat.sessions.session import Asked, Session\n"
        f"session = Session(Path({str(tmp_path)!r}), name='killed')\n"
        "session.say('hello', Asked(settings={}))\n"
        "session.tokens((1, 2), 'so far')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    session, _ = Session.resume(tmp_path, "killed")
    assert contents(session) == ["hello", "so far"]
    session.close()


# Version 1.


def test_a_journal_of_version_1_is_rewritten_with_all_it_ever_held(tmp_path: Path) -> None:
    plain = [
        {"kind": "start", "version": 1, "time": 5.0, "facts": {"checkpoint": "/a", "step": 7}, "messages": []},
        {"kind": "turn", "message": {"role": "user", "content": "a"}, "settings": {"refine_iter": 2}},
        {"kind": "block", "token_ids": [1, 2], "keep": 0, "text": "A"},
        {"kind": "reply", "message": {"role": "assistant", "content": "A!", "token_ids": [1, 2, 3]}},
        {"kind": "transcript", "messages": []},
        {"kind": "turn", "message": {"role": "user", "content": "b"}, "settings": {}},
        {"kind": "block", "token_ids": [4], "keep": 0, "text": "B"},
    ]
    path = tmp_path / "old.jsonl"
    before = "".join(json.dumps(line) + "\n" for line in plain).encode() + b'{"kind": "repl'
    path.write_bytes(before)
    assert [(info.name, info.step, info.opening) for info in Sessions(tmp_path).latest()] == [("old", 7, "a")]
    session, said = Session.resume(tmp_path, "old")
    assert said == ("The session was in the format of version 1; that file is kept as old.jsonl.v1.",)
    assert (tmp_path / "old.jsonl.v1").read_bytes() == before
    assert contents(session) == ["b", "B"]
    assert session.transcript.messages[-1].stopped
    first = session.tree.leaves()[0]
    assert first.made is not None
    assert (first.text, first.made.token_ids, first.made.settings) == ("A!", (1, 2, 3), {"refine_iter": 2})
    assert [node.text for node in session.tree.leaves()] == ["A!", "B"]
    with pytest.raises(UsageError, match="open in another program"):
        Session.resume(tmp_path, "old")
    one_turn(session, "more")
    session.close()
    reading = read_journal(path.read_bytes())
    assert (reading.legacy, reading.skipped) == (False, 0)
    assert reading.tree.records == session.tree.records


# Finding one.


def test_the_latest_session_is_the_one_changed_last(tmp_path: Path) -> None:
    for number, seconds in enumerate((30, 10, 20)):
        session = started(tmp_path, f"s{number}")
        one_turn(session, question=f"question {number}")
        session.close()
        age(session, seconds)
    sessions = Sessions(tmp_path)
    assert [(one.name, one.step) for one in sessions.latest()] == [("s1", 3), ("s2", 3), ("s0", 3)]
    assert [one.opening for one in sessions.latest(limit=2)] == ["question 1", "question 2"]
    assert [one.name for one in sessions.latest(word="ION 2")] == ["s2"]
    assert [one.name for one in sessions.offered("s")] == ["s1", "s2", "s0"]
    assert [one.name for one in sessions.offered("s0")] == ["s0"]
    assert find_session(tmp_path).name == "s1.jsonl"
    assert find_session(tmp_path, "s0").name == "s0.jsonl"


def test_words_are_found_in_every_message_on_every_branch(tmp_path: Path) -> None:
    session = started(tmp_path, "poems")
    one_turn(session, 'A "quoted"\nline with \u00dcmlauts')
    session.go(0, "clear")
    one_turn(session, "other")
    session.close()
    other = started(tmp_path, "other")
    one_turn(other)
    other.close()
    sessions = Sessions(tmp_path)
    assert [(one.name, one.role, one.around) for one in sessions.find('"QUOTED"\nline')] == [
        ("poems", "user", 'A "quoted" line with \u00dcmlauts')
    ]
    assert [one.name for one in sessions.find("\u00fcMLAUTS")] == ["poems"]
    assert sorted(one.name for one in sessions.find("two")) == ["other", "poems", "poems"]
    assert not list(sessions.find("nowhere"))


@pytest.mark.slow
def test_2000_sessions_are_offered_in_20_ms_and_listed_in_a_second(tmp_path: Path) -> None:
    session = started(tmp_path, "one")
    one_turn(session)
    session.close()
    data = session.path.read_bytes()
    for number in range(2000):
        (tmp_path / f"s{number:04}.jsonl").write_bytes(data)
    best = {"first": 9.0, "offered": 9.0, "listed": 9.0}
    for number in range(5):
        sessions = Sessions(tmp_path)
        sessions.warm_up()  # as the program does while its user reads the first lines
        began = time.perf_counter()
        assert len(list(sessions.offered("s"))) == 50
        best["first"] = min(best["first"], time.perf_counter() - began)
        began = time.perf_counter()
        assert len(list(sessions.offered(f"s{number}"))) in (50, 0)
        offered = time.perf_counter()
        assert len(list(Sessions(tmp_path).latest(word="hello"))) == 2001
        best["offered"] = min(best["offered"], offered - began)
        best["listed"] = min(best["listed"], time.perf_counter() - offered)
    print(best)
    assert best["first"] < 0.020
    assert best["offered"] < 0.020
    assert best["listed"] < 1.0


def test_the_first_words_of_a_very_long_message_are_shown(tmp_path: Path) -> None:
    session = started(tmp_path)
    session.say('First "words" ' + "x" * 500_000, ASKED)
    session.close()
    (info,) = Sessions(tmp_path).latest()
    assert info.opening.startswith('First "words" xxx')


def test_a_journal_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    session = started(tmp_path, "poems")
    one_turn(session)
    session.close()
    age(session, 10)
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "nothing")
    assert [one.name for one in Sessions(tmp_path).latest()] == ["poems"]
    assert find_session(tmp_path).name == "poems.jsonl"


def test_a_missing_session_is_named_with_the_ones_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no session to resume\."):
        Session.resume(tmp_path / "none")
    session = started(tmp_path, "poems")
    one_turn(session)
    session.close()
    with pytest.raises(UsageError, match=r"There is no session named poem\. The latest is poems\."):
        Session.resume(tmp_path, "poem")


def test_a_session_can_be_named_while_it_is_written(tmp_path: Path) -> None:
    session = started(tmp_path)
    one_turn(session)
    session.save("poems")
    one_turn(session)
    session.close()
    assert [path.name for path in tmp_path.iterdir()] == ["poems.jsonl"]
    assert len(on_disk(session)) == 5


@pytest.mark.parametrize("name", ["a/b", "../x", ".hidden", "two words", "x" * 101])
def test_names_that_are_no_file_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="A session cannot be named"):
        started(tmp_path).save(name)


def test_a_taken_name_is_refused(tmp_path: Path) -> None:
    first, second = started(tmp_path, "poems"), started(tmp_path, "other")
    one_turn(first)
    one_turn(second)
    with pytest.raises(UsageError, match="A session named poems exists already"):
        second.save("poems")
    first.close()
    second.close()


def test_a_session_open_elsewhere_is_refused(tmp_path: Path) -> None:
    session = started(tmp_path, "poems")
    one_turn(session)
    with pytest.raises(UsageError, match=r"The session poems is open in another program\."):
        Session.resume(tmp_path)
    session.close()
    again, _ = Session.resume(tmp_path)
    again.close()


# A disk that refuses.


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """Files of this process cannot grow past `room` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


STEPS = {
    "turn": lambda session: session.say("next", ASKED),
    "tokens": lambda session: session.tokens((7,), "text that is longer than what is left"),
    "setting": lambda session: session.setting("refine_iter", 1),
    "reply": lambda session: session.reply("stop", "done, in many words that need some room", {}),
    "head": lambda session: session.go(session.tree.questions()[0].parent, "undo"),
    "system": lambda session: session.set_system("Be brief, and say it in a way that needs room."),
    "checkpoint": lambda session: session.checkpoint(CheckpointRecord(time=2.0, path="/runs/other")),
    "title": lambda session: session.save("a-name-that-takes-more-room-than-there-is"),
    "note": lambda session: session.note("something that is to be known later"),
}


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("fault", ["full", "deleted", "no folder"])
def test_whatever_record_the_disk_refuses_saving_is_resumed(tmp_path: Path, kind: str, fault: str) -> None:
    folder = tmp_path / "sessions"
    session = started(folder)
    one_turn(session)
    if kind in ("tokens", "setting", "reply"):
        session.say("open", ASKED)
        session.tokens((6,), "begun ")
    size = session.path.stat().st_size
    if fault == "full":
        with full_disk(size + 20):
            STEPS[kind](session)
            assert session.fault.endswith(f"{os.strerror(errno.ENOSPC)}.")  # a part was written, and taken back
            missing = session.unsaved
            session.note("more")
            assert session.unsaved == missing + 1 > 1
        assert session.path.stat().st_size == size
    else:
        session.path.unlink()
        if fault == "no folder":
            folder.rmdir()
            folder.write_text("a file in its place")
        STEPS[kind](session)
        assert bool(session.fault) == (fault == "no folder")
        folder.unlink() if fault == "no folder" else None
    session.note("and on")
    assert (session.fault, session.unsaved) == ("", 0)
    session.close()
    assert read_journal(session.path.read_bytes()).tree.records == session.tree.records


def test_a_read_only_folder_is_said_and_saving_begins_when_it_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def read_only(path: object, flags: int, *rest: object, **more: object) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real_open(path, flags, *rest, **more)  # type: ignore[arg-type]

    session = started(tmp_path / "sessions")
    monkeypatch.setattr(os, "open", read_only)
    one_turn(session)
    assert session.fault.endswith(f"{os.strerror(errno.EROFS)}.")
    assert session.unsaved > 4
    monkeypatch.undo()
    one_turn(session)
    assert (session.fault, session.unsaved) == ("", 0)
    session.close()
    assert len(on_disk(session)) == 5


def test_what_is_missing_is_written_when_the_session_is_closed(tmp_path: Path) -> None:
    session = started(tmp_path)
    one_turn(session)
    with full_disk(session.path.stat().st_size):
        one_turn(session, "unsaved")
        assert session.unsaved == 4
    session.close()
    assert on_disk(session)[-2:] == ["unsaved", REPLY.content]
