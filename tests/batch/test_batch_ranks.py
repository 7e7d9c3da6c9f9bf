"""Runs over prompt files on real ranks: killed, interrupted, gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# What a clock said, and how much of a prompt was read with another one's.
BY_CHANCE = ("ttft_s", "decode_s", "tokens_per_s", "prefill_forwards")

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


class Launched:
    """`python -m chat` over two ranks, writing results to a file."""

    def __init__(self, checkpoint: Path, prompts: Path, output: Path, run_dir: Path) -> None:
        self.growing = output if output.suffix == ".jsonl" else output.with_name(output.name + ".partial")
        self.run_dir = run_dir
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "chat"),
            *("--checkpoint_dir", str(checkpoint), "--prompts_file", str(prompts), "--output_file", str(output)),
            *("--add_eos_length", "3", "--refine_iter", "2", "--max_new_tokens", "24", "--dtype", "float32"),
            *("--batch_size", "8"),
        ]
        environment = {**os.environ, "DLLM_RUN_DIR": str(run_dir), "OMP_NUM_THREADS": "1"}
        self.launcher = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait_for_results(self, count: int) -> None:
        end = time.monotonic() + 120
        while not self.growing.exists() or self.growing.read_bytes().count(b"\n") < count:
            assert time.monotonic() < end, "no results within two minutes"
            assert self.launcher.poll() is None, "the run ended early"
            time.sleep(0.02)

    def follower(self) -> int:
        """The process id of rank 1."""
        children = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children").read_text().split()
        (found,) = (pid for pid in children if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
        return int(found)

    def end(self) -> tuple[int, str, str]:
        """Rank 0's exit code, and the launcher's stdout and stderr."""
        out, err = self.launcher.communicate(timeout=300)
        return int((self.run_dir / "status").read_text()), out, err


Launch = Callable[[Path], Launched]


@pytest.fixture
def launch(tiny_checkpoint: Callable[[str, int], Path], tmp_path: Path) -> Launch:
    checkpoint = tiny_checkpoint("fsdp1", 2)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"Question {number}: what is {number} * 4?\n" for number in range(200)))
    count = iter(range(9))
    return lambda output: Launched(checkpoint, prompts, output, tmp_path / f"run{next(count)}")


def results(path: Path) -> list[dict[str, Any]]:
    """The results, without what depends on the clock and on which prompts shared a batch."""
    text = path.read_text()
    found = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    for record in found:
        record["stats"] = {name: value for name, value in record["stats"].items() if name not in BY_CHANCE}
    return list(found)


def test_after_the_death_of_a_follower_a_rerun_gives_the_results_of_an_undisturbed_run(
    launch: Launch, tmp_path: Path
) -> None:
    undisturbed, disturbed = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    assert launch(undisturbed).end()[:2] == (0, "")
    killed = launch(disturbed)
    killed.wait_for_results(60)
    os.kill(killed.follower(), signal.SIGKILL)
    code, out, err = killed.end()
    assert (code, out) == (5, "")
    assert "Rank 1" in err
    assert 60 <= len(results(disturbed)) < 200
    assert launch(disturbed).end()[0] == 0
    assert results(disturbed) == results(undisturbed)
    assert len(results(disturbed)) == 200


def test_ctrl_c_keeps_what_is_done_on_all_ranks(launch: Launch, tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    interrupted = launch(output)
    interrupted.wait_for_results(20)
    # What a terminal does: the launcher gets the signal and hands it to every rank.
    interrupted.launcher.send_signal(signal.SIGINT)
    assert interrupted.end()[:2] == (130, "")
    assert not output.exists()
    kept = interrupted.growing.read_text().splitlines()
    assert json.loads(kept[-1])["finish_reason"] in ("cancelled", "length", "stop")
    assert launch(output).end()[0] == 0
    assert len(results(output)) == 200
    assert {record["finish_reason"] for record in results(output)} <= {"length", "stop"}
