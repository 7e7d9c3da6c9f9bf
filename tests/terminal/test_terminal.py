"""Whose streams are whose, and the terminal put back after any death."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from pty_screen import CTRL_Z, ENTER, PtyScreen

from chat.terminal.mode import is_stopped, key_mode, launcher_pid, line_mode, without_signals
from chat.terminal.streams import describe_streams, say, text_waits

TESTS = Path(__file__).parents[1]
CHILD = TESTS / "support" / "console_child.py"
BASH = ["bash", "--norc", "--noprofile", "-i"]

NOISY = """
import os, sys
from chat.terminal.streams import open_streams
streams = open_streams()
print("library chatter"); os.system("echo chatter of a child; echo more >&2")
print(os.read(0, 10) if streams.rank else "", file=sys.stderr)
streams.replies.write(f"reply of {streams.rank}\\n")
streams.notices.write(f"notice of {streams.rank}\\n")
"""


def run_rank(tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(TESTS.parent), "XDG_STATE_HOME": str(tmp_path), **env}
    for name in ("RANK", "DLLM_RUN_DIR", "DLLM_STDERR"):
        if name not in env:
            environ.pop(name, None)
    return subprocess.run(
        [sys.executable, "-c", NOISY], env=environ, input="typed", capture_output=True, text=True, check=True
    )


def logs(tmp_path: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in tmp_path.glob("dllm-chat/logs/*/*")}


def test_rank_0_speaks_and_chatter_goes_to_its_log(tmp_path: Path) -> None:
    done = run_rank(tmp_path)
    assert (done.stdout, done.stderr) == ("reply of 0\n", "notice of 0\n")
    log = logs(tmp_path)["rank0.log"]
    assert all(words in log for words in ("library chatter", "chatter of a child", "more"))


def test_a_follower_is_silent_and_reads_nothing(tmp_path: Path) -> None:
    done = run_rank(tmp_path, RANK="2")
    assert (done.stdout, done.stderr) == ("", "")
    log = logs(tmp_path)["rank2.log"]
    assert "reply of 2" in log and "b''" in log and "typed" not in log


def test_the_run_folder_and_the_notices_can_be_named(tmp_path: Path) -> None:
    done = run_rank(tmp_path, DLLM_RUN_DIR=str(tmp_path / "run"), DLLM_STDERR=str(tmp_path / "err"))
    assert done.stderr == ""
    assert (tmp_path / "err").read_text() == "notice of 0\n"
    assert (tmp_path / "run" / "rank0.log").exists()


def test_logs_lie_in_the_home_folder_where_the_state_folder_is_named_by_a_relative_path(tmp_path: Path) -> None:
    run_rank(tmp_path, XDG_STATE_HOME="relative", HOME=str(tmp_path))
    assert list(logs(tmp_path / ".local" / "state")) == ["rank0.log"]
    assert not Path("relative").exists()


def test_only_the_latest_log_folders_are_kept(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / "dllm-chat" / "logs" / f"20200101-0000{number:02}-1").mkdir(parents=True)
    run_rank(tmp_path)
    left = sorted(path.name for path in (tmp_path / "dllm-chat" / "logs").iterdir())
    assert len(left) == 20 and left[0] == "20200101-000011-1"


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("chat.terminal.streams", "torch transformers rich prompt_toolkit"),
        ("chat.console.plain", "torch transformers rich prompt_toolkit"),
        ("chat.console.app", "torch transformers rich"),
        ("chat.screen.draw", "torch transformers prompt_toolkit pygments"),
    ],
)
def test_what_a_person_waits_for_imports_nothing_heavy(module: str, heavy: str) -> None:
    code = f"import sys, {module}; print([name for name in {heavy.split()!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=TESTS.parent
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("environ", "encoding", "expected"),
    [
        ({"TERM": "xterm"}, "utf-8", (True, False, False)),
        ({"TERM": "xterm", "NO_COLOR": "1"}, "utf-8", (False, False, False)),
        ({"TERM": "xterm", "ACCESSIBLE": "1"}, "utf-8", (True, True, True)),
        ({"TERM": "xterm"}, "iso8859-1", (True, True, False)),
        ({"TERM": "dumb"}, "utf-8", (False, True, True)),
        ({}, "utf-8", (False, True, True)),
        ({"TERM": "xterm", "LC_ALL": "C", "LANG": "en_US.UTF-8"}, "utf-8", (True, True, False)),
        ({"TERM": "xterm", "LC_CTYPE": "C.UTF-8", "LANG": "C"}, "utf-8", (True, False, False)),
    ],
)
def test_the_environment_decides_what_can_be_shown(
    environ: dict[str, str], encoding: str, expected: tuple[bool, ...], tmp_path: Path
) -> None:
    master, slave = os.openpty()
    with os.fdopen(slave, "w", encoding=encoding) as replies, os.fdopen(master, "rb", buffering=0):
        streams = describe_streams(
            rank=0, run_dir=tmp_path, keyboard_fd=slave, replies=replies, notices=io.StringIO(), environ=environ
        )
        assert (streams.color, streams.ascii, streams.plain) == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "xterm", "ACCESSIBLE": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_progress_is_drawn_on_a_terminal_wherever_replies_go(
    environ: dict[str, str], expected: bool, tmp_path: Path
) -> None:
    master, slave = os.openpty()
    pipe = {"rank": 0, "run_dir": tmp_path, "keyboard_fd": os.open(os.devnull, os.O_RDONLY), "environ": environ}
    with os.fdopen(slave, "w") as notices, os.fdopen(master, "rb", buffering=0):
        assert (
            describe_streams(**pipe, replies=io.TextIOWrapper(io.BytesIO()), notices=notices).progress == expected
        )
    assert not describe_streams(**pipe, replies=io.TextIOWrapper(io.BytesIO()), notices=io.StringIO()).progress
    os.close(pipe["keyboard_fd"])


def test_a_notice_stands_in_lines_of_its_own_broken_at_words(tmp_path: Path) -> None:
    with PtyScreen(["sleep", "60"], columns=30) as screen, os.fdopen(os.dup(screen.slave), "w") as notices:
        pipe = io.TextIOWrapper(io.BytesIO())
        streams = describe_streams(
            rank=0, run_dir=tmp_path, keyboard_fd=0, replies=pipe, notices=notices, environ={"TERM": "xterm"}
        )
        notices.write("\rLoading 12 of 80 files")
        say(streams, "Shard 3 of 4 is missing: /a/long/path.\n\nCopy it.")
        screen.wait_for("Copy it.")
        assert screen.text == "Shard 3 of 4 is missing:\n/a/long/path.\n\nCopy it."


def test_modes_change_what_they_say_and_nothing_else() -> None:
    master, slave = os.openpty()
    try:
        before = termios.tcgetattr(slave)
        keys = key_mode(before)
        lflag = termios.ISIG | termios.ICANON | termios.ECHO | termios.IEXTEN
        assert keys[3] == before[3] & ~lflag
        assert keys[0] == before[0] & ~(termios.IXON | termios.ICRNL)
        assert keys[1:3] == before[1:3]
        assert without_signals(before)[3] == before[3] & ~termios.ISIG
        assert line_mode(before)[6][termios.VEOL] == b"\x03"
        assert before == termios.tcgetattr(slave)
    finally:
        os.close(master)
        os.close(slave)


def test_the_launcher_is_the_start_script_or_torchrun_or_the_program() -> None:
    assert launcher_pid({"DLLM_LAUNCHER_PID": "12", "TORCHELASTIC_RUN_ID": "x"}) == 12
    assert launcher_pid({"TORCHELASTIC_RUN_ID": "x"}) == os.getppid()
    assert launcher_pid({}) == os.getpid()


# The guard, and jobs.


def child_env(tmp_path: Path) -> dict[str, str]:
    return {
        "PYTHONPATH": str(TESTS.parent),
        "XDG_STATE_HOME": str(tmp_path),
        "FAKE_HISTORY": str(tmp_path / "history"),
    }


@pytest.mark.drawn
@pytest.mark.parametrize("killing", ["process", "group"])
def test_the_terminal_is_put_back_after_kill_9(tmp_path: Path, killing: str) -> None:
    with PtyScreen([sys.executable, str(CHILD)], env=child_env(tmp_path)) as talk:
        talk.wait_for("Ctrl-D leaves")
        assert talk.mode != talk.mode_before
        (os.kill if killing == "process" else os.killpg)(talk.process.pid, signal.SIGKILL)
        talk.wait_for(lambda screen: screen.mode == screen.mode_before)
        talk.wait_for(lambda screen: screen.raw.rfind(b"\x1b[?2004l") > screen.raw.rfind(b"\x1b[?2004h"))
        assert talk.raw.rindex(b"\x1b[?7h") > talk.raw.rindex(b"\x1b[?7l")
        talk.wait_for(lambda _: guards(talk) == [])


def test_the_guard_ends_with_the_program(tmp_path: Path) -> None:
    with PtyScreen([sys.executable, str(CHILD)], env=child_env(tmp_path)) as talk:
        talk.wait_for("Ctrl-D leaves")
        assert len(guards(talk)) == 1
        talk.send("\x04")
        talk.wait_end()
        talk.wait_for(lambda _: guards(talk) == [])


def guards(talk: PtyScreen) -> list[int]:
    """Guards that hold this terminal."""
    found = []
    terminal = os.ttyname(talk.slave)
    for folder in Path("/proc").iterdir():
        try:
            named = b"dllm-chat-guard" in (folder / "cmdline").read_bytes()
            if folder.name.isdigit() and named and os.readlink(folder / "fd" / "1") == terminal:  # noqa: PTH115
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.drawn
@pytest.mark.parametrize("launcher", ["direct", "detached"])
def test_ctrl_z_suspends_the_job_and_fg_brings_it_back(tmp_path: Path, launcher: str) -> None:
    """`detached`: as under torchrun, the program is in another session than the script that the shell knows."""
    script = tmp_path / "start"
    script.write_text(
        f"export DLLM_LAUNCHER_PID=$$\nsh -c 'setsid {sys.executable} {CHILD}; exit' <&0 &\n"
        f"echo $! >{tmp_path}/torchrun\n"
        "while true; do wait $! && break; sleep 0.05; done\n"
    )
    command = f"{sys.executable} {CHILD}" if launcher == "direct" else f"bash {script}"
    with PtyScreen(BASH, env={**child_env(tmp_path), "PS1": "shell$ "}) as shell:
        shell.wait_for("shell$")
        shell.send(f"{command}\n")
        shell.wait_for("Ctrl-D leaves")
        mode = shell.mode
        shell.send("draft")
        shell.wait_for("› draft")
        shell.send(CTRL_Z)
        shell.wait_for("Stopped")
        shell.wait_for(lambda screen: screen.text.endswith("shell$"))
        assert "› draft" not in shell.text
        shell.send("echo at the $((1 + 1))nd prompt\n")
        shell.wait_for("at the 2nd prompt")
        # In torchrun's place: the ranks' store must go on.
        if launcher == "detached":
            torchrun = int((tmp_path / "torchrun").read_text())
            assert is_stopped(os.getpgid(torchrun)) and not is_stopped(torchrun)
        time.sleep(0.2)
        shell.send("fg\n")
        shell.wait_for("› draft")
        shell.wait_for(lambda screen: screen.mode == mode)
        shell.send("\x15/echo back" + ENTER)
        shell.wait_for("\n/echo back")


def test_after_ctrl_z_and_fg_ctrl_c_is_a_key_at_once(tmp_path: Path) -> None:
    with PtyScreen(BASH, env={**child_env(tmp_path), "PS1": "shell$ "}) as shell:
        shell.wait_for("shell$")
        shell.send(f"{sys.executable} {CHILD}\n")
        shell.wait_for("Ctrl-D leaves")
        mode = shell.mode
        for _ in range(2):
            shell.send(CTRL_Z)
            shell.wait_for(lambda screen: screen.text.endswith("shell$"))
            shell.send("fg\n")
            began = time.monotonic()
            shell.wait_for(lambda screen: screen.mode == mode)
            # A fixed wait of a second was what ended the program.
            assert time.monotonic() - began < 0.9
            shell.send("\x03")
            shell.wait_for("Ctrl-D or /quit leaves.")
            shell.send("x\x7f")
        shell.send("/echo back" + ENTER)
        shell.wait_for("\n/echo back")


def test_ctrl_z_works_where_nothing_can_be_redrawn(tmp_path: Path) -> None:
    with PtyScreen(BASH, env={**child_env(tmp_path), "PS1": "shell$ ", "ACCESSIBLE": "1"}) as shell:
        shell.wait_for("shell$")
        shell.send(f"{sys.executable} {CHILD}\n")
        shell.wait_for("\n>")
        shell.send(CTRL_Z)
        shell.wait_for("Stopped")
        shell.wait_for(lambda screen: screen.text.endswith("shell$"))
        shell.send("fg\n")
        shell.wait_for(lambda screen: screen.text.endswith("\n>"))
        shell.send("/echo back\n")
        shell.wait_for("\n/echo back")


def test_text_waits_in_a_pipe_or_a_file_that_holds_some(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    reading, writing = os.pipe()
    with (tmp_path / "file").open("rb") as file, Path(os.devnull).open() as nothing:
        assert text_waits(file.fileno()) and not text_waits(nothing.fileno()) and not text_waits(reading)
        os.write(writing, b"x")
        os.close(writing)
        assert text_waits(reading)
        file.seek(1)
        assert not text_waits(file.fileno()) and not text_waits(999)
    os.close(reading)
