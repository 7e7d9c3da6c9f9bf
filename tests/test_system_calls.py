"""What conda's Python lacks is had all the same, and fails as the real thing does."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from dist.system_calls import memfd_create, pidfd_open

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(params=["built in", "not built in"], autouse=True)
def _python(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "not built in":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
        monkeypatch.delattr(os, "memfd_create", raising=False)


def test_a_process_is_readable_once_it_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        watched = pidfd_open(process.pid)
        assert not os.get_inheritable(watched)
        assert not select.select([watched], [], [], 0)[0]
        process.communicate(b"\n")
        assert select.select([watched], [], [], 10)[0]
    with pytest.raises(ProcessLookupError):
        pidfd_open(process.pid)
    os.close(watched)


def test_memory_has_a_size_and_no_name() -> None:
    memory = memfd_create("some")
    os.ftruncate(memory, 100)
    assert os.fstat(memory).st_size == 100
    assert not os.get_inheritable(memory)
    with pytest.raises(OSError, match="Invalid argument"):
        memfd_create("x" * 300)
    os.close(memory)


@pytest.mark.parametrize("name", ["pidfd_open", "memfd_create", "P_PIDFD"])
def test_nothing_else_asks_python_for_them(name: str) -> None:
    files = [path for room in ("chat", "dist") for path in (ROOT / room).rglob("*.py")]
    assert files
    assert {path.name for path in files if f"os.{name}" in path.read_text()} <= {"system_calls.py"}
