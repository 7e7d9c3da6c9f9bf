"""Runs over prompt files on real ranks: killed, interrupted, gone on with."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prompt_files import SETTINGS, STOPS, finished, is_complete, results, wait_for_results, write_prompts
from steps import add_step

ROOT = Path(__file__).parents[2]
# How many ranks, and how the model is spread over them.
LAYOUTS = [(2, "auto"), (2, "fsdp"), (4, "copies:2"), (3, "copies:2")]

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]


class Launched:
    """`python -m chat` over some ranks, writing results to a file."""

    def __init__(
        self,
        checkpoint: Path,
        prompts: Path,
        output: Path,
        run_dir: Path,
        size: int,
        parallel: str,
        more: tuple[str, ...] = (),
        stops: tuple[str, ...] = STOPS,
    ) -> None:
        self.growing = output if output.suffix == ".jsonl" else output.with_name(output.name + ".partial")
        self.run_dir = run_dir
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={size}"),
            *("-m", "chat", "--parallel", parallel),
            *("--checkpoint_dir", str(checkpoint), "--prompts_file", str(prompts), "--output_file", str(output)),
            *(*SETTINGS, *stops, *more),
        ]
        environment = {**os.environ, "DLLM_RUN_DIR": str(run_dir), "OMP_NUM_THREADS": "1"}
        self.launcher = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait_for_results(self, count: int) -> None:
        wait_for_results(self.growing, count, lambda: self.launcher.poll() is None)

    def process(self, rank: int) -> int:
        """A rank's process id."""
        children = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children").read_text().split()
        (found,) = (pid for pid in children if b"\0RANK=%d\0" % rank in Path(f"/proc/{pid}/environ").read_bytes())
        return int(found)

    def end(self) -> tuple[int | None, str, str]:
        """Rank 0's exit code if it has left one, and the launcher's stdout and stderr."""
        out, err = self.launcher.communicate(timeout=300)
        status = self.run_dir / "status"
        assert status.exists() or self.launcher.returncode
        return int(status.read_text()) if status.exists() else None, out, err


Launch = Callable[..., Launched]


@pytest.fixture
def launch(tiny_checkpoint: Callable[[str, int], Path], tmp_path: Path) -> Launch:
    checkpoint = tmp_path / "run"
    shutil.copytree(tiny_checkpoint("fsdp1", 2), checkpoint)
    add_step(checkpoint, 3, 7)
    prompts = write_prompts(tmp_path / "prompts.txt")
    count = iter(range(9))

    def launch(output: Path, size: int = 2, parallel: str = "auto", more: tuple[str, ...] = ()) -> Launched:
        run_dir = tmp_path / f"run{next(count)}"
        run_dir.mkdir()
        return Launched(checkpoint, prompts, output, run_dir, size, parallel, more)

    return launch


# What happens to a run, the exit code that rank 0 leaves (None: it has left none) and words that say why.
FAULTS = {
    "a follower is killed": (5, "was killed"),
    "rank 0 is killed": (None, ""),
    "Ctrl-C": (130, "Interrupted"),
    "the disk is full": (1, "cannot be written"),
}


def befall(run: Launched, size: int, fault: str) -> None:
    if fault == "Ctrl-C":
        # What a terminal does: the launcher gets the signal and hands it to every rank.
        run.launcher.send_signal(signal.SIGINT)
    elif fault == "the disk is full":
        room = run.growing.stat().st_size + 500
        resource.prlimit(run.process(0), resource.RLIMIT_FSIZE, (room, room))
    else:
        os.kill(run.process(0 if fault == "rank 0 is killed" else size - 1), signal.SIGKILL)


@pytest.mark.drawn
@pytest.mark.parametrize("steps", [(), (3, 7)])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("size", "parallel"), LAYOUTS)
def test_after_any_fault_a_rerun_on_one_rank_completes_the_file(
    launch: Launch, tmp_path: Path, size: int, parallel: str, fault: str, steps: tuple[int, ...]
) -> None:
    output = tmp_path / "r.jsonl"
    more = ("--steps", ",".join(map(str, steps))) if steps else ()
    broken = launch(output, size, parallel, more)
    broken.wait_for_results(24)
    befall(broken, size, fault)
    code, out, err = broken.end()
    assert (code, out) == (FAULTS[fault][0], ""), err
    assert FAULTS[fault][1] in err
    kept = finished(output)
    assert 24 <= len(kept) < 200 * max(1, len(steps))
    # In another layout, which makes the same. The prompt that is too long is a result, too.
    assert launch(output, 1, more=more).end()[0] == 4
    made = results(output)
    is_complete(made, kept, steps)
    assert not steps or [one["token_ids"] for one in made[:200]] != [one["token_ids"] for one in made[200:]]


@pytest.mark.long
def test_all_layouts_make_the_same(launch: Launch, tmp_path: Path) -> None:
    found = {}
    for number, (size, parallel) in enumerate([(1, "auto"), *LAYOUTS]):
        output = tmp_path / f"{number}.jsonl"
        assert launch(output, size, parallel).end()[:2] == (4, "")
        found[size, parallel] = results(output)
    alone = found.pop((1, "auto"))
    assert len(alone) == 200
    for layout, made in found.items():
        assert made == alone, layout


@pytest.mark.long
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
    assert launch(output).end()[0] == 4
    assert len(results(output)) == 200
    assert {record["finish_reason"] for record in results(output)} <= {"length", "stop", "error"}
