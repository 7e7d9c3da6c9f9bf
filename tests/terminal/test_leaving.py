"""The program ends in bounded time, whatever a library or a closed stream does."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from program import READY_S, ROOT, environment
from ranks import torchrun

from chat.terminal.lifeline import LEAVE_S

STUCK = str(ROOT / "tests" / "support" / "stuck_close.py")
SHORT = ("--max_new_tokens", "8", "--add_eos_length", "7", "--refine_iter", "2")


def run_child(code: str, **more) -> tuple[int, float]:
    """The exit code of `code`, and how long it took from its first line of output to its end."""
    imports = "from chat.terminal.lifeline import *\nfrom chat.terminal.process import *\nimport sys, time\n"
    program = f"{imports}print(flush=True)\n{code}"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **more
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        began = time.monotonic()
        return child.wait(60), time.monotonic() - began


def test_a_process_that_does_not_end_in_time_ends_itself_with_its_exit_code():
    code, seconds = run_child("end_within(0.2, 7); time.sleep(600)")
    assert code == 7
    assert 0.2 <= seconds < 30


def test_a_library_that_holds_the_interpreters_lock_cannot_keep_the_process():
    code, seconds = run_child("import ctypes; end_within(0.2, 7); ctypes.PyDLL(None).sleep(600)")
    assert code == 1
    assert seconds < 30


@pytest.mark.drawn
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_group_that_is_never_left_does_not_keep_the_program(tmp_path, tiny_checkpoint, ranks):
    arguments = ["--checkpoint_dir", str(tiny_checkpoint("fsdp1", 2)), "--prompt", "Solve: 25 * 4 = ?", *SHORT]
    command = [sys.executable, STUCK] if ranks == 1 else torchrun(ranks, STUCK)
    with subprocess.Popen(
        [*command, *arguments],
        env=environment(tmp_path, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}", DLLM_RUN_DIR=str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        reply = run.stdout.readline()
        began = time.monotonic()
        code = run.wait(READY_S)
    assert reply
    assert code == 0
    assert LEAVE_S - 1 < time.monotonic() - began < LEAVE_S + 15
    assert (tmp_path / "status").read_text() == "0\n"
    # The log says where each rank stood.
    assert all("in close" in (tmp_path / f"rank{rank}.log").read_text() for rank in range(ranks))


# Every way in which the lifeline is made to speak while nobody listens: its text and its tick fail.
DEAF = """
import os, signal
from pathlib import Path
def fail(*_): raise BrokenPipeError
lifeline = Lifeline(say=fail, run_dir=Path({folder!r}))
lifeline.put_back = fail
lifeline.on_tick = fail
lifeline.start()
{act}
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM)", 130),
        ("os.kill(os.getpid(), signal.SIGHUP)", 130),
        ("os.kill(os.getpid(), signal.SIGINT)", 130),
        ("lifeline.ask_abort()", 130),
        ("time.sleep(1.5); lifeline.end_after_rank_failure()", 5),
    ],
)
def test_the_lifeline_ends_the_program_though_its_message_cannot_be_written(tmp_path: Path, act, expected):
    code, seconds = run_child(DEAF.format(folder=str(tmp_path), act=act))
    assert code == expected
    assert seconds < 30
    assert (tmp_path / "status").read_text() == f"{expected}\n"
