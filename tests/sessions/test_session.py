"""The journal of a conversation: what is on disk after any cut, and finding it again."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chat.sessions.journal import read_journal
from chat.sessions.session import Session, find_session, history_path, list_sessions, sessions_folder
from chat.text.transcript import Message, Transcript
from dist.errors import ChatError, UsageError
from dist.settings import GenerationSettings

SETTINGS = GenerationSettings(add_eos_length=7).as_dict()
START = Transcript().with_system("Be kind.")
HELLO = "Hello w\u00f6rld"
REPLY = Message("assistant", "One two \U0001f600 three", (1, 2, 3, 4, 5, 2))


def started(folder: Path, name: str = "") -> Session:
    return Session(folder, name=name, transcript=START, facts={"step": 3})


def one_turn(session: Session, before: Transcript = START, question: str = HELLO) -> Transcript:
    asked = before.with_user(question)
    session.turn(asked, SETTINGS)
    session.block((1, 2), "One two \ufffd")
    session.block((3, 4, 5, 2), "One two \U0001f600 three")
    session.reply(REPLY)
    return asked.with_reply(REPLY.content, REPLY.token_ids)


def contents(transcript: Transcript) -> list[str]:
    return [message.content for message in transcript.messages]


def age(session: Session, seconds: float) -> None:
    then = session.path.stat().st_mtime - seconds
    os.utime(session.path, (then, then))


def test_files_lie_in_the_state_folder() -> None:
    assert sessions_folder({"XDG_STATE_HOME": "/s"}) == Path("/s/dllm-chat/sessions")
    assert history_path({"HOME": "/h"}) == Path("/h/.local/state/dllm-chat/history")


def test_a_session_without_a_turn_leaves_nothing(tmp_path: Path) -> None:
    session = started(tmp_path / "sessions")
    session.replace(Transcript())
    session.set_facts({})
    session.close()
    assert list(tmp_path.iterdir()) == []


def test_a_conversation_comes_back_with_ids_and_facts(tmp_path: Path) -> None:
    session = started(tmp_path)
    one_turn(session)
    session.close()
    again, restored = Session.resume(tmp_path)
    assert again.name == session.name
    assert restored.transcript.messages == (Message("system", "Be kind."), Message("user", HELLO), REPLY)
    assert restored.facts == {"step": 3}
    again.close()


def test_a_retry_or_an_edit_counts_from_its_first_finished_block_on(tmp_path: Path) -> None:
    session = started(tmp_path)
    before = one_turn(session)
    session.turn(START.with_user("changed"), SETTINGS, tentative=True)
    assert read_journal(session.path.read_bytes()).transcript == before
    session.block((1, 2), "One two")
    assert contents(read_journal(session.path.read_bytes()).transcript) == ["Be kind.", "changed", "One two"]
    session.reply(REPLY)
    after = read_journal(session.path.read_bytes()).transcript
    assert contents(after) == ["Be kind.", "changed", REPLY.content]
    one_turn(session, after, "more")
    assert contents(read_journal(session.path.read_bytes()).transcript)[1:4:2] == ["changed", "more"]
    session.close()


def test_what_was_said_is_on_disk_before_anything_is_generated(tmp_path: Path) -> None:
    session = started(tmp_path)
    session.turn(START.with_user(HELLO), SETTINGS)
    assert read_journal(session.path.read_bytes()).transcript.messages[-1].content == HELLO
    session.block((1, 2), "One two")
    restored = read_journal(session.path.read_bytes()).transcript
    assert restored.messages[-1] == Message("assistant", "One two", (1, 2), stopped=True)
    session.close()


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    session = started(tmp_path / "sessions")
    one_turn(session)
    assert session.path.stat().st_mode & 0o777 == 0o600
    assert session.path.parent.stat().st_mode & 0o777 == 0o700
    session.close()


def test_a_journal_cut_at_any_byte_loses_at_most_its_unfinished_line(tmp_path: Path) -> None:
    session = started(tmp_path)
    one_turn(session)
    session.replace(Transcript().with_system("Be brief.").with_user("q").with_reply("r"))
    session.turn(Transcript().with_system("Be brief.").with_user("q").with_reply("r").with_user("again"), SETTINGS)
    session.close()
    whole = session.path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 0x0A]
    expected = {end: read_journal(whole[:end]) for end in (0, *ends)}
    assert len({contents(restored.transcript).__repr__() for restored in expected.values()}) == 7
    for cut in range(len(whole) + 1):
        last_end = max(end for end in (0, *ends) if end <= cut)
        assert read_journal(whole[:cut]) == expected[last_end]


def test_a_cut_journal_is_gone_on_with_at_its_last_whole_line(tmp_path: Path) -> None:
    session = started(tmp_path)
    one_turn(session)
    session.close()
    whole = session.path.read_bytes()
    session.path.write_bytes(whole[:-5])
    again, restored = Session.resume(tmp_path)
    assert restored.transcript.messages[-1].stopped
    one_turn(again, restored.transcript, "more")
    again.close()
    lines = session.path.read_bytes().splitlines()
    assert all(json.loads(line) for line in lines)
    transcript = read_journal(session.path.read_bytes()).transcript
    assert contents(transcript) == ["Be kind.", HELLO, REPLY.content, "more", REPLY.content]
    assert [message.stopped for message in transcript.messages] == [False, False, True, False, False]


def test_a_message_without_a_finished_block_is_marked_unanswered(tmp_path: Path) -> None:
    session = started(tmp_path)
    session.turn(START.with_user(HELLO), SETTINGS)
    session.turn(START.with_user(HELLO).with_user("again"), SETTINGS)
    session.close()
    messages = read_journal(session.path.read_bytes()).transcript.messages
    assert [(message.content, message.unanswered) for message in messages[1:]] == [
        (HELLO, True),
        ("again", True),
    ]


def lines_of(session: Session) -> list[str]:
    return [json.loads(line)["kind"] for line in session.path.read_bytes().splitlines()]


def test_a_plain_conversation_is_journaled_by_its_turns_alone(tmp_path: Path) -> None:
    session = started(tmp_path)
    before = one_turn(session)
    before = one_turn(session, before)
    session.turn(before.with_user("a"), SETTINGS)
    session.turn(before.with_user("a").with_user("b"), SETTINGS)
    session.close()
    turn = ["turn", "block", "block", "reply"]
    assert lines_of(session) == ["start", *turn, *turn, "turn", "turn"]
    again, restored = Session.resume(tmp_path)
    one_turn(again, restored.transcript, "more")
    again.close()
    assert lines_of(session)[-5:] == ["turn", *turn]


@pytest.mark.parametrize("cut_short", [False, True])
def test_a_retried_or_edited_message_is_in_the_journal_once(tmp_path: Path, cut_short: bool) -> None:
    session = started(tmp_path)
    answered = one_turn(session, one_turn(session))
    if cut_short:
        answered = answered.with_user("failed")
        session.turn(answered, SETTINGS)
        session.block((1,), "an error came after this")
    retried = answered.without_last().with_user("edited")
    session.turn(retried, SETTINGS)
    session.reply(REPLY)
    session.close()
    restored = read_journal(session.path.read_bytes()).transcript
    assert restored == retried.with_reply(REPLY.content, REPLY.token_ids)


def test_a_message_that_got_no_reply_can_be_asked_again(tmp_path: Path) -> None:
    session = started(tmp_path)
    asked = one_turn(session).with_user("slow")
    session.turn(asked, SETTINGS)
    again = asked.mark_unanswered().without_reply()
    session.turn(again, SETTINGS)
    session.reply(REPLY)
    session.close()
    restored = read_journal(session.path.read_bytes()).transcript
    assert contents(restored) == ["Be kind.", HELLO, REPLY.content, "slow", REPLY.content]
    assert not any(message.unanswered for message in restored.messages)


def test_what_changes_before_the_first_turn_is_its_start(tmp_path: Path) -> None:
    session = started(tmp_path)
    session.replace(Transcript().with_system("Be brief."))
    one_turn(session, Transcript().with_system("Be brief."))
    session.close()
    assert lines_of(session)[:2] == ["start", "turn"]
    assert contents(read_journal(session.path.read_bytes()).transcript)[0] == "Be brief."


def test_an_unreadable_line_costs_no_more_than_itself(tmp_path: Path) -> None:
    session = started(tmp_path)
    one_turn(session)
    session.close()
    lines = session.path.read_bytes().splitlines(keepends=True)
    broken = b"".join((lines[0], b"\xff\xfe garbage\n", b'{"kind": "turn"}\n', b"[1]\n", *lines[1:]))
    assert read_journal(broken) == read_journal(b"".join(lines))


def test_a_long_reply_s_journal_grows_with_its_length_not_its_square(tmp_path: Path) -> None:
    session = started(tmp_path)
    session.turn(START.with_user(HELLO), SETTINGS)
    text = ""
    for number in range(500):
        text += f"word{number} "
        session.block((number,), text)
    session.close()
    assert session.path.stat().st_size < 500 * 100
    assert read_journal(session.path.read_bytes()).transcript.messages[-1].content == text


def test_killed_at_once_a_session_still_holds_every_finished_line(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal; from pathlib import Path\n"
        "from chat.sessions.session import Session; from chat.text.transcript import Transcript\n"
        f"session = Session(Path({str(tmp_path)!r}), name='killed')\n"
        "session.turn(Transcript().with_user('hello'), {})\n"
        "session.block((1, 2), 'so far')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    session, restored = Session.resume(tmp_path, "killed")
    assert contents(restored.transcript) == ["hello", "so far"]
    session.close()


def test_the_latest_session_is_the_one_changed_last(tmp_path: Path) -> None:
    names = []
    for number, seconds in enumerate((30, 10, 20)):
        session = started(tmp_path, f"s{number}")
        one_turn(session, question=f"question {number}")
        session.close()
        age(session, seconds)
        names.append(session.name)
    listed = list_sessions(tmp_path)
    assert [one.name for one in listed] == ["s1", "s2", "s0"]
    assert [one.opening for one in listed] == ["question 1", "question 2", "question 0"]
    assert {one.exchanges for one in listed} == {1}
    assert find_session(tmp_path).name == "s1.jsonl"
    assert find_session(tmp_path, "s0").name == "s0.jsonl"


def test_a_journal_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    session = started(tmp_path, "poems")
    one_turn(session)
    session.close()
    age(session, 10)
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "nothing")
    assert [one.name for one in list_sessions(tmp_path)] == ["poems"]
    assert find_session(tmp_path).name == "poems.jsonl"


def test_a_missing_session_is_named_with_the_ones_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no session to go on with\."):
        Session.resume(tmp_path / "none")
    session = started(tmp_path, "poems")
    one_turn(session)
    session.close()
    with pytest.raises(UsageError, match=r"There is no session named poem\. The latest are poems\."):
        Session.resume(tmp_path, "poem")


def test_a_session_can_be_named_while_it_is_written(tmp_path: Path) -> None:
    session = started(tmp_path)
    session.rename("before")
    after = one_turn(session)
    session.rename("poems")
    one_turn(session, after)
    session.close()
    assert [path.name for path in tmp_path.iterdir()] == ["poems.jsonl"]
    assert len(read_journal((tmp_path / "poems.jsonl").read_bytes()).transcript.exchanges) == 2


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "two words", "x" * 101])
def test_names_that_are_no_file_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="A session cannot be named"):
        started(tmp_path).rename(name)


def test_a_taken_name_is_refused(tmp_path: Path) -> None:
    first, second = started(tmp_path, "poems"), started(tmp_path, "other")
    one_turn(first)
    one_turn(second)
    with pytest.raises(UsageError, match="There is a session named poems already"):
        second.rename("poems")
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


def test_a_full_disk_is_said_once_and_the_conversation_goes_on(tmp_path: Path) -> None:
    session = started(tmp_path)
    session.turn(START.with_user(HELLO), SETTINGS)
    size = session.path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
        with pytest.raises(ChatError, match="The conversation is no longer being saved"):
            session.block((1,), "a text that is longer than what is left")
        session.block((2,), "more")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    session.close()
    assert session.path.stat().st_size == size
    assert contents(read_journal(session.path.read_bytes()).transcript) == ["Be kind.", HELLO]


def test_a_folder_that_cannot_be_made_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    session = started(tmp_path / "file" / "sessions")
    with pytest.raises(ChatError, match=os.strerror(errno.ENOTDIR)):
        session.turn(START.with_user(HELLO), SETTINGS)
    session.reply(REPLY)
