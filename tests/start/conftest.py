"""A machine of its own for each test of the start script."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake_machine import ROOT, TOOLS, Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    (made.project / "chat/start").mkdir(parents=True)
    for name in (
        "run_chat.sh",
        "chat/start/environment.sh",
        "chat/start/constraints.txt",
        "chat/start/check_python.py",
    ):
        shutil.copy(ROOT / name, made.project / name)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in TOOLS.split():
        (tools / tool).symlink_to(shutil.which(tool) or f"/nowhere/{tool}")
    made.add_python("active")
    return made
