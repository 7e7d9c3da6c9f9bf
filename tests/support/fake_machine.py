"""A machine on which the start script finds the Pythons, GPUs and tools that a test gives it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# All that the scripts need besides Python; anything else missing from a small machine would show here.
TOOLS = "bash cat cksum date dirname env find flock grep head mkdir mktemp nproc readlink rm sleep stty tail tr wc"
NO_PACKAGES = "no\tpackages\tit lacks torch"


@dataclass
class Machine:
    """A machine of its own: a project folder, a PATH of few tools, a fake `python` in front."""

    folder: Path
    fake: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def project(self) -> Path:
        return self.folder / "my project"

    @property
    def venv(self) -> Path:
        return self.project / ".venv"

    @property
    def log(self) -> Path:
        return self.folder / "calls.jsonl"

    @property
    def runs(self) -> Path:
        return self.folder / "state" / "dllm-chat" / "logs"

    def add_python(self, environment: str) -> Path:
        """A Python in `environment`/bin; its bin folder."""
        place = self.folder / environment / "bin"
        place.mkdir(parents=True)
        program = place / "python"
        body = (
            f'FAKE_SELF="${{BASH_SOURCE[0]}}" exec {sys.executable} -S -E {ROOT}/tests/support/fake_python.py "$@"'
        )
        program.write_text(f"#!{shutil.which('bash')}\n{body}\n")
        program.chmod(0o755)
        return place

    def variables(self, **more: str) -> dict[str, str]:
        return {
            "PATH": f"{self.folder}/active/bin:{self.folder}/tools",
            "HOME": str(self.folder),
            "XDG_STATE_HOME": str(self.folder / "state"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "CUDA_VISIBLE_DEVICES": "",
            "FAKE": json.dumps(self.fake),
            "FAKE_LOG": str(self.log),
            **self.environment,
            **more,
        }

    def start(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        self.log.unlink(missing_ok=True)
        command = ["bash", str(self.project / "run_chat.sh"), *arguments]
        return subprocess.run(command, env=self.variables(**more), capture_output=True, text=True, cwd=self.folder)

    def calls(self, *begin: str) -> list[dict[str, Any]]:
        """The recorded calls whose arguments begin with `begin`, in order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        records: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return [record for record in records if record["arguments"][: len(begin)] == list(begin)]

    def installed(self) -> list[str]:
        """What each pip call installed."""
        calls = [call["arguments"] for call in self.calls("-I", "-m", "pip", "install")]
        constraints = str(self.project / "chat/start/constraints.txt")
        return [" ".join(words[words.index(constraints) + 1 :]) for words in calls]


def add_gpus(machine: Machine, *, count: int = 2, driver: str = "580.95.05") -> None:
    program = machine.folder / "tools" / "nvidia-smi"
    lines = "\n".join(f"GPU {index}: NVIDIA H100" for index in range(count))
    program.write_text(f"#!{shutil.which('bash')}\n[[ $1 == -L ]] && echo '{lines}' || echo {driver}\n")
    program.chmod(0o755)
    machine.environment["CUDA_VISIBLE_DEVICES"] = "all"


# The beginning of the command that is started.
ONE = ["-m", "chat"]


def torchrun(count: int) -> list[str]:
    """The launcher's arguments behind its log."""
    return [str(count)]


def full(machine: Machine) -> Any:
    environment: Mapping[str, str] = machine.variables(TERM="xterm")
    return dict(environment)
