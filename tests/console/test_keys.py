"""Keys on a real terminal: no sequence ends the program, types itself or sends a message that Enter did not send.

Cases are drawn; the seed is printed by a failure and can be set with KEYS_SEED.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from prompt_toolkit.input.ansi_escape_sequences import ANSI_SEQUENCES
from pty_screen import CTRL_BACKSLASH, CTRL_C, ENTER, PtyScreen, pasted

from chat.console.sequences import Key, Paste, SequenceReader
from chat.text.graphemes import next_boundary, previous_boundary

CHILD = Path(__file__).parent.parent / "support" / "console_child.py"
SEED = int(os.environ.get("KEYS_SEED") or random.randrange(10**6))

ACCENTED, FLAG, FAMILY, TONED = "e\u0301", "\U0001f1eb\U0001f1f7", "👩\u200d🚀", "👍🏽"
NEW_LINES = ("\n", "\x1b\r", "\x1b[13;2u", "\x1b[27;2;13~", "\x1b[13;5u", "\x1b[13;2:1u")
NOISE = (
    "\x1b[I",
    "\x1b[O",
    "\x1b[<0M",
    "\x1b[<35;10;12M",
    "\x1b[<0;1;1m",
    "\x1b[M !!",
    "\x1b[32;10;12M",
    "\x1b[31m",
    "\x1b[0;1;38;5;9m",
    "\x1b[24;80R",
    "\x1b[?62;22c",
    "\x1b[>1;10;0c",
    "\x1b[?997;1n",
    "\x1b[97;1:3u",
    "\x1b[57441;2u",
    "\x1b[97;9u",
    "\x1b[32;5u",
    "\x1b[1;1:3A",
    "\x1b[65;30;65;1;0;1_",
    "\x1b[13;28;13;0;0;1_",
    "\x1b]11;rgb:0000/0000/0000\x07",
    "\x1b]52;c;aGVsbG8=\x1b\\",
    "\x1bP>|a terminal\x1b\\",
    "\x1bP1$r0m\x1b\\",
    "\x1b_Gi=1;OK\x1b\\",
    "\x1b[?1;2$y",
    "\x1bOZ",
    "\x00",
    "\x9b",
)


class Keys(PtyScreen):
    """The child on a terminal, mute, with what was sent to it."""

    events_file: Path

    @property
    def events(self) -> list[str]:
        lines = self.events_file.read_text().splitlines() if self.events_file.exists() else []
        return [line for line in lines if line != "ready"]

    def wait_ready(self) -> None:
        """Wait until the next line is waited for."""
        self.wait_for(lambda _: self.events_file.exists() and self.events_file.read_text().endswith("ready\n"))

    def press(self, keys: str) -> None:
        """Keys in one read, however long."""
        data = keys.encode("utf-8", errors="surrogateescape")
        while data:
            data = data[os.write(self.master, data) :]


def running(folder: Path, **env: str) -> Keys:
    keys = Keys(
        [sys.executable, str(CHILD)],
        env={
            "PYTHONPATH": str(CHILD.parent.parent.parent),
            "XDG_STATE_HOME": str(folder / "state"),
            "FAKE_EVENTS": str(folder / "events"),
            "FAKE_HISTORY": str(folder / "history"),
            "FAKE_MUTE": "1",
            "EDITOR": "true",
            **env,
        },
    )
    keys.events_file = folder / "events"
    keys.wait_ready()
    return keys


@pytest.fixture(scope="module")
def mute(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    with running(tmp_path_factory.mktemp("keys")) as keys:
        yield keys


def drawn_noise(chance: random.Random) -> str:
    """A sequence that is no key: one that is known to come, or a made-up one."""
    if chance.random() < 0.6:
        return chance.choice(NOISE)
    numbers = ";".join(str(chance.randrange(300)) for _ in range(chance.randrange(4)))
    made = f"\x1b[{chance.choice('?>=')}{numbers}{chance.choice('hlncqtxyzJKLP')}"
    return made if made not in ANSI_SEQUENCES else ""


def drawn_draft(chance: random.Random) -> tuple[str, str]:
    """Keys, and the draft that they make."""
    pressed, draft = "x", "x"
    for _ in range(chance.randrange(1, 14)):
        kind = chance.random()
        if kind < 0.35:
            text = chance.choice(["word", " ", "中文", "é", ACCENTED, FLAG, FAMILY, TONED, "A1", "[31m", "~"])
            pressed, draft = pressed + text, draft + text
        elif kind < 0.75:
            pressed += drawn_noise(chance)
        elif kind < 0.85:
            pressed, draft = pressed + chance.choice(NEW_LINES), draft + "\n"
        elif kind < 0.93:
            text = chance.choice(["two\nlines", "ESC \x1b[31m", "中"])
            pressed, draft = pressed + pasted(text), draft + text
        elif len(draft) > 2:
            pressed, draft = pressed + "\x7f", draft[: previous_boundary(draft, len(draft))]
    return pressed + "x", draft + "x"


def check_drafts(keys: Keys, count: int) -> None:
    print(f"KEYS_SEED={SEED}, {count} drafts")
    chance = random.Random(SEED)
    before = len(keys.events)
    for number in range(count):
        pressed, draft = drawn_draft(chance)
        keys.wait_ready()
        keys.press(pressed + ENTER)
        keys.wait_for(lambda _, wanted=before + number + 1: len(keys.events) >= wanted, timeout=20)  # type: ignore[misc]
        assert keys.events[-1] == f"Submitted(text={draft!r}, live=False, edited=False)", (SEED, number, pressed)
    assert len(keys.events) == before + count


def test_drawn_keys_make_the_draft_that_a_terminal_user_expects(mute: Keys) -> None:
    check_drafts(mute, 150)


@pytest.mark.long
def test_thousands_of_drawn_drafts(mute: Keys) -> None:
    check_drafts(mute, 3000)


LETTERS = [chr(code) for code in range(32, 127)]
# Not among them: Enter in its forms sends, Ctrl-D on an empty line leaves, Ctrl-Z suspends.
KNOWN = [keys for keys in ANSI_SEQUENCES if not set(keys) & set("\r\x04\x1a") and "200~" not in keys]
ALT = ["\x1b" + letter for letter in "abcdefghijklmnopqrstuvwxyz0123456789-<>.#*/\\"]


def drawn_key(chance: random.Random) -> str:
    return chance.choice(
        [
            chance.choice(LETTERS),
            chance.choice(KNOWN),
            chance.choice(ALT),
            drawn_noise(chance),
            pasted(chance.choice(["a", "b\nc", "d\n" * 9])),
            "\x1b" + chance.choice(KNOWN),
            "\x18" + chance.choice(LETTERS + KNOWN),
        ]
    )


STATES = {
    "prompt": "",
    "draft": "some words" + "\x1b[13;2u" + "more",
    "search": "\x12",
    "menu": "/",
    "chip": pasted("line\n" * 20),
    "number": "\x1b-\x1b9",
}


def check_random_keys(keys: Keys, begin: str, count: int, chance: random.Random, *, vi: bool = False) -> None:
    """Press `count` random keys without Enter: nothing is sent, and the line works afterwards."""
    keys.wait_ready()
    before = len(keys.events)
    keys.press(begin)
    pressed = []
    for _ in range(count):
        pressed.append(drawn_key(chance))
        keys.press(pressed[-1])
    sentinel = f"alive{before}"
    for _ in range(3):  # what waits for another key, or takes the next one as it is, gets its rest first
        for key in (*(["\x1b"] if vi else []), CTRL_C, CTRL_C, CTRL_C):
            keys.press(key)
            time.sleep(0.15 if key == "\x1b" else 0.02)
        keys.press("\x15" + "i" * vi + sentinel)
        with suppress(AssertionError):
            keys.wait_for(lambda screen: f"› {sentinel}" in screen.text, timeout=3)
            break
    else:
        raise AssertionError(f"The line is dead: {SEED}, {begin!r}, {pressed}")
    assert len(keys.events) == before, (SEED, begin, pressed, keys.events[before:])
    keys.press(CTRL_C)


@pytest.mark.parametrize("state", STATES)
def test_random_keys_in_each_state_send_nothing_and_end_nothing(mute: Keys, state: str) -> None:
    print(f"KEYS_SEED={SEED}")
    check_random_keys(mute, STATES[state], 300, random.Random(f"{SEED} {state}"))
    mute.press(f"/echo {state}" + ENTER)
    mute.wait_for(lambda _: mute.events[-1:] == [f"Submitted(text='/echo {state}', live=False, edited=False)"])


def test_random_keys_while_it_is_busy(mute: Keys) -> None:
    mute.wait_ready()
    before = len(mute.events)
    mute.press("/stuck" + ENTER)
    mute.wait_for(lambda _: len(mute.events) == before + 1)
    chance = random.Random(SEED)
    for _ in range(300):
        key = drawn_key(chance)
        if not set(key) & {CTRL_C, CTRL_BACKSLASH}:
            mute.press(key)
    mute.press("\x1b[I" + CTRL_BACKSLASH)
    mute.wait_for(lambda _: "Abort()" in mute.events[before:], timeout=30)
    assert mute.events[before + 1 :] == ["Abort()"]
    mute.press(CTRL_C + CTRL_C)


@pytest.mark.long
@pytest.mark.parametrize("vi", [False, True])
def test_thousands_of_random_keys(tmp_path: Path, vi: bool) -> None:
    with running(tmp_path, **({"FAKE_VI": "1"} if vi else {})) as keys:
        for number in range(20):
            for state in STATES.values():
                check_random_keys(keys, state, 100, random.Random(SEED + number), vi=vi)


def test_random_keys_in_vi_mode_and_enter_sends_from_both_of_its_modes(tmp_path: Path) -> None:
    with running(tmp_path, FAKE_VI="1") as keys:
        check_random_keys(keys, "one two\x1b", 300, random.Random(SEED), vi=True)
        keys.wait_for(lambda screen: "alive" not in screen.text)
        keys.press("\x1b")
        time.sleep(0.3)
        keys.press("\x15ifrom normal mode\x1b" + ENTER)
        keys.wait_for(lambda _: any("from normal mode" in event for event in keys.events))


# The reader alone.


def read(*parts: str) -> list[str]:
    """What comes of parts that are read one after the other; pastes in brackets."""
    reader = SequenceReader(ANSI_SEQUENCES, clock=lambda: 0.0)
    found: list[Key | Paste] = []
    for part in parts:
        found += reader.feed(part)
    return [f"<{one.text}>" if isinstance(one, Paste) else one.text for one in [*found, *reader.flush()]]


@pytest.mark.parametrize("noise", NOISE)
def test_a_report_is_no_key_wherever_a_read_ends(noise: str) -> None:
    for cut in range(len(noise)):
        if noise.startswith("\x1b[M") and cut > 2:
            continue  # nothing tells a torn report of the oldest kind from typing
        assert read("a" + noise[:cut], noise[cut:] + "b") == ["a", "b"], (noise, cut)


def test_keys_of_the_keyboard_protocols_are_the_plain_keys() -> None:
    cases = {
        "\x1b[13;2u": "\n",
        "\x1b[27;2;13~": "\n",
        "\x1b[13u": "\r",
        "\x1b[97u": "a",
        "\x1b[97;2u": "A",
        "\x1b[97;5u": "\x01",
        "\x1b[27;5;99~": "\x03",
        "\x1b[9;2u": "\x1b[Z",
        "\x1b[127;5u": "\x17",
        "\x1b[57414u": "\r",
        "\x1b[57399u": "0",
        "\x1b[1;1:1A": "\x1b[A",
        "\x1b[1;5:2C": "\x1b[1;5C",
    }
    for pressed, plain in cases.items():
        assert read(pressed) == [plain], pressed
    assert read("\x1b[98;3u") == ["\x1b", "b"]


def test_pastes_are_whole_wherever_a_read_ends() -> None:
    text = pasted("a\x1b[31m\x1b[20\r\nb")
    for cut in range(len(text)):
        assert read(text[:cut], text[cut:] + "c") == ["<a\x1b[31m\x1b[20\r\nb>", "c"]
    assert read("\x1b[200~never ended", "\x03", "d") == ["\x03", "d"]


def test_a_lone_escape_is_a_key_and_a_lone_opener_is_none() -> None:
    assert read("\x1b") == ["\x1b"]
    assert read("\x1bf") == ["\x1b", "f"]
    assert read("\x1b]") == read("\x1b[") == []
    reader = SequenceReader(ANSI_SEQUENCES, clock=iter((0.0, 9.0)).__next__)
    assert [*reader.feed("\x1b[1;"), *reader.flush()] == []
    assert list(reader.feed("A")) == [Key("A")]


def test_a_control_string_without_an_end_is_over_at_the_next_control() -> None:
    assert read("\x1b]0;title\rx") == ["\r", "x"]
    assert read("\x1bPq\x03") == ["\x03"]


@pytest.mark.parametrize("one", [ACCENTED, FLAG, FAMILY, TONED, "각", "각", "❤\ufe0f", "न\u093f", "a"])
def test_what_is_seen_as_one_character_is_one(one: str) -> None:
    text = f"b{one}{one}c"
    assert next_boundary(text, 1) == 1 + len(one)
    assert previous_boundary(text, len(text) - 1) == 1 + len(one)
    assert previous_boundary(text, 1) == 0
