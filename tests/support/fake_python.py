"""Stands in for `python` in the tests of run_chat.sh: records how it was called and does what FAKE says.

FAKE is JSON: verdict (of check_python.py, by the name of the folder two above this program), version, pip_fails
(a word of the arguments), can_prepare, demo_ready, code and status (of the chat), act (`sleep`, `stubborn`, `raw`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

NAMES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "HF_HUB_OFFLINE",
    "TOKENIZERS_PARALLELISM",
    "DLLM_LAUNCHER_PID",
    "PYTHONSAFEPATH",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPYCACHEPREFIX",
    "NNODES",
    "NODE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)


def main() -> int:
    fake = json.loads(os.environ["FAKE"])
    own = Path(os.environ["FAKE_SELF"])
    arguments = sys.argv[1:]
    environment = {name: os.environ.get(name) for name in NAMES}
    record = {"python": own.parent.parent.name, "arguments": arguments, "environment": environment}
    with Path(os.environ["FAKE_LOG"]).open("a") as log:
        log.write(json.dumps(record) + "\n")

    if arguments[0].endswith("check_python.py"):
        verdicts = fake.get("verdict", {})
        default = "yes\t3.11.7\t2.13.0"
        print(verdicts.get(own.parent.parent.name + " gpu" * ("--gpu" in arguments), default))
        return 0
    if arguments[0] == "-c":
        print(fake.get("version", "3.11"))
        return 0
    arguments = [word for word in arguments if word != "-I"][1:]
    return run_module(arguments[0], arguments[1:], fake, own)


def run_module(module: str, arguments: list[str], fake: dict[str, object], own: Path) -> int:
    if module == "venv":
        (Path(arguments[-1]) / "bin").mkdir(parents=True)
        shutil.copy(own, Path(arguments[-1]) / "bin" / "python")
        return 0
    if module == "pip":
        failing = fake.get("pip_fails")
        if arguments != ["--version"] and failing in arguments:
            print(f"ERROR: No matching distribution found for {failing}")
            return 1
        return 0
    if module == "chat.start.preflight":
        print("checkpoint" if any(word.startswith("--checkpoint") for word in arguments) else "demo")
        if "complete" in fake:
            print(fake["complete"])
        return 2 if "--bogus" in arguments else 0
    if module == "chat.demo":
        answers = {("--check",): "demo_ready", ("--can-prepare",): "can_prepare"}
        name = answers.get(tuple(arguments))
        return 0 if name is None or fake.get(name, True) else 1
    return chat(fake)


def chat(fake: dict[str, object]) -> int:
    print("a reply")
    print("a notice", file=sys.stderr)
    act = fake.get("act")
    if act == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if act == "raw":
        subprocess.run(["stty", "raw", "-echo"], check=True)
    if act in ("sleep", "stubborn"):
        print("loading", file=sys.stderr, flush=True)
        time.sleep(60)
    run_dir = Path(os.environ["DLLM_RUN_DIR"])
    (run_dir / "rank0.log").write_text("first line\nRuntimeError: out of luck\n")
    if "status" in fake:
        (run_dir / "status").write_text(str(fake["status"]))
    return int(str(fake.get("code", 0)))


if __name__ == "__main__":
    sys.exit(main())
