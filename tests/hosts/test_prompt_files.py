"""A prompt file on two hosts, one of which goes: a rerun completes it, every line once and in order.

A host that dies says nothing to anybody: its cable is cut, then all that runs on it is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from namespaces import Hosts, obstacle
from program import ROOT, environment
from prompt_files import SETTINGS, STOPS, finished, is_complete, results, wait_for_results, write_prompts

pytestmark = [pytest.mark.timeout(600), pytest.mark.long]

WHY_NOT = obstacle()
if WHY_NOT is not None:
    pytestmark.append(pytest.mark.skip(reason=WHY_NOT))

# Ranks on each host, and how the model is spread over all of them.
LAYOUTS = [(1, "copies"), (1, "fsdp"), (2, "copies:2"), (3, "copies:2")]
# What happens, and the exit code on host 0 (None: it is gone).
FAULTS = {"host 1 dies": 5, "host 0 dies": None, "the cable is cut": 5, "Ctrl-C": 130}
ANSWER_S = 9


class Run:
    """The start script on both hosts, over a prompt file. A context manager; nothing is left of it."""

    def __init__(self, folder: Path, checkpoint: Path, ranks: int, parallel: str) -> None:
        self.hosts = Hosts(2)
        self.folder = folder
        self.output = folder / "r.jsonl"
        prompts = write_prompts(folder / "prompts.txt")
        self.words = [
            *("bash", str(ROOT / "run_chat.sh"), str(ranks), str(checkpoint), "--prompts_file", str(prompts)),
            *("--output_file", str(self.output), *SETTINGS, *STOPS),
        ]
        self.more = ["--parallel", parallel, "--answer_timeout", str(ANSWER_S)]

    def __enter__(self) -> Run:
        self.hosts.__enter__()
        self.said = [(self.folder / f"said{host}").open("w+") for host in (0, 1)]
        # Node 1 first: it waits for node 0.
        self.scripts = [self._script(host) for host in (1, 0)][::-1]
        return self

    def _script(self, host: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.hosts.command(host, *self.words, *self.more),
            env=environment(self.folder / f"home{host}", **self.hosts.variables(host)),
            stdin=subprocess.DEVNULL,
            stdout=self.said[host],
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __exit__(self, *_: object) -> None:
        for host, script in enumerate(self.scripts):
            self.hosts.kill_all(host)
            script.wait()
            self.said[host].close()
        self.hosts.__exit__(None, None, None)

    def befall(self, fault: str) -> None:
        if fault == "Ctrl-C":  # what a terminal does
            os.killpg(self.scripts[0].pid, signal.SIGINT)
            return
        host = 0 if fault == "host 0 dies" else 1
        self.hosts.cut(host)
        if fault != "the cable is cut":
            self.hosts.kill_all(host)

    def words_of(self, host: int) -> str:
        return (self.folder / f"said{host}").read_text()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("ranks", "parallel"), LAYOUTS)
def test_after_a_host_has_gone_a_rerun_completes_the_file(
    tmp_path: Path, tiny_checkpoint, ranks: int, parallel: str, fault: str
) -> None:
    with Run(tmp_path, tiny_checkpoint("fsdp1", 2), ranks, parallel) as run:
        wait_for_results(run.output, 24, lambda: run.scripts[0].poll() is None, 240)
        run.befall(fault)
        began = time.monotonic()
        codes = [script.wait(120) for script in run.scripts]
        print(f"{fault}: over on both hosts after {time.monotonic() - began:.1f} s, exit codes {codes}")
        if FAULTS[fault] is not None:
            assert codes[0] == FAULTS[fault], run.words_of(0)
        if fault == "host 0 dies":
            assert codes[1] == 5, run.words_of(1)
        kept = finished(run.output)
        assert 24 <= len(kept) < 200
    # Where one host is left, one rank makes the rest.
    again = [*run.words[:2], "1", *run.words[3:]]
    rerun = subprocess.run(again, env=environment(tmp_path / "home2"), stdin=subprocess.DEVNULL, timeout=300)
    assert rerun.returncode == 4
    is_complete(results(run.output), kept)
