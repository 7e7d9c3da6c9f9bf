"""run_chat.sh: what it starts, in which Python, what it hands back. A fake `python` records how it is called."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest
from fake_machine import NO_PACKAGES, ONE, ROOT, Machine, full, torchrun

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="the fakes are for a machine without GPUs"),
]


@pytest.mark.parametrize(
    ("arguments", "started"),
    [
        ([], ONE),
        (["auto"], ONE),
        (["1", "a ckpt"], [*ONE, "--checkpoint_dir=a ckpt"]),
        (["a ckpt"], [*ONE, "--checkpoint_dir=a ckpt"]),
        (["--prompt", "Hi there"], [*ONE, "--prompt", "Hi there"]),
        (["2", "--prompt", ""], [*torchrun(2), "--prompt", ""]),
        (["08", "c"], [*torchrun(8), "--checkpoint_dir=c"]),
        (["4", "c", "Solve:\n25 * 4 = ?"], [*torchrun(4), "--checkpoint_dir=c", "--prompt=Solve:\n25 * 4 = ?"]),
        (["c", "-n", "2", "--prompts_file", "p"], [*ONE, "--checkpoint_dir=c", "-n", "2", "--prompts_file", "p"]),
        (["c", "-3 + 5 = ?", "--n", "2"], [*ONE, "--checkpoint_dir=c", "--prompt=-3 + 5 = ?", "--n", "2"]),
    ],
)
def test_arguments_become_one_process_or_torchrun(
    machine: Machine, arguments: list[str], started: list[str]
) -> None:
    run = machine.start(*arguments)
    assert (run.returncode, run.stdout) == (0, "a reply\n")
    if started[:2] == ONE:
        assert [call["arguments"] for call in machine.calls("-m", "chat")] == [started]
    else:
        (folder,) = machine.runs.iterdir()
        (call,) = machine.calls("-m", "chat.start.launch")
        assert call["arguments"] == ["-m", "chat.start.launch", str(folder / "torchrun.log"), *started]


def test_the_script_may_be_called_through_links(machine: Machine) -> None:
    bin_folder = machine.folder / "bin"
    bin_folder.mkdir()
    (bin_folder / "first").symlink_to(machine.project / "run_chat.sh")
    (bin_folder / "chat").symlink_to("first")
    command = ["bash", str(bin_folder / "chat"), "1", "ckpt"]
    run = subprocess.run(command, env=machine.variables(), capture_output=True, text=True, cwd=machine.folder)
    assert (run.returncode, run.stdout) == (0, "a reply\n")


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (["0"], "COUNT cannot be 0. It is the number of processes: 1 to 9999, or auto.\n"),
        (["123456789", "c"], "COUNT cannot be 123456789. It is"),
        (
            ["2", "c", "several", "words"],
            "Unexpected argument: words. COUNT, CHECKPOINT and PROMPT come first, then options",
        ),
    ],
)
def test_arguments_that_cannot_be_are_refused_before_anything_runs(
    machine: Machine, arguments: list[str], reported: str
) -> None:
    run = machine.start(*arguments)
    assert (run.returncode, run.stdout, machine.calls()) == (2, "", [])
    assert run.stderr.startswith(reported)


def test_bad_options_are_refused_before_anything_is_set_up(machine: Machine) -> None:
    machine.fake["verdict"] = {"active": NO_PACKAGES}
    assert machine.start("--bogus").returncode == 2
    assert not machine.venv.exists()


@pytest.mark.parametrize("option", ["--help", "--version", "-h"])
def test_help_needs_no_packages(machine: Machine, option: str) -> None:
    machine.fake["verdict"] = {"active": NO_PACKAGES}
    assert machine.start(option).stdout == "a reply\n"
    assert not machine.venv.exists()
    assert not machine.runs.exists()


def test_several_hosts_are_handed_to_torchrun(machine: Machine) -> None:
    machine.start("4", "c", NNODES="2", NODE_RANK="1", MASTER_ADDR="10.0.0.1", MASTER_PORT="1234")
    (call,) = machine.calls("-m", "chat.start.launch")
    assert call["arguments"][3:] == ["4", "--checkpoint_dir=c"]
    where = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
    assert {name: call["environment"][name] for name in where} == where


def test_the_ranks_share_the_cores_unless_set_otherwise(machine: Machine) -> None:
    cores = len(os.sched_getaffinity(0))
    machine.start("1", "c")
    environment = machine.calls("-m", "chat")[0]["environment"]
    assert environment.pop("DLLM_LAUNCHER_PID").isdigit()
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONSAFEPATH": "1"}
    threads = {"OMP_NUM_THREADS": str(cores), "GOMP_SPINCOUNT": "1000", "OMP_WAIT_POLICY": None}
    one_host = dict.fromkeys(("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"))
    compiled = dict.fromkeys(("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"))
    assert environment == offline | threads | one_host | compiled
    machine.start("999", "c")
    assert machine.calls("-m", "chat.start.launch")[0]["environment"]["OMP_NUM_THREADS"] == "1"
    machine.start("1", "c", OMP_WAIT_POLICY="ACTIVE")
    environment = machine.calls("-m", "chat")[0]["environment"]
    assert (environment["OMP_WAIT_POLICY"], environment["GOMP_SPINCOUNT"]) == ("ACTIVE", None)
    machine.start("1", "c", OMP_NUM_THREADS="7")
    assert machine.calls("-m", "chat")[0]["environment"]["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize(
    ("found", "given", "wanted"),
    [
        ("missing", {"PYTHONDONTWRITEBYTECODE": "1"}, (None, "cache/dllm-chat/compiled")),
        ("there", {"PYTHONDONTWRITEBYTECODE": "1"}, ("1", None)),
        ("missing", {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": "/mine"}, ("1", "/mine")),
        ("missing", {}, (None, None)),
    ],
)
def test_compiled_files_that_an_image_leaves_out_are_kept(
    machine: Machine, found: str, given: dict[str, str], wanted: tuple[str | None, str | None]
) -> None:
    machine.fake["version"] = found
    machine.start("1", "c", **given)
    environment = machine.calls(*ONE)[0]["environment"]
    kept = environment["PYTHONPYCACHEPREFIX"]
    assert environment["PYTHONDONTWRITEBYTECODE"] == wanted[0]
    assert (kept and kept.removeprefix(f"{machine.folder}/")) == wanted[1]


# What comes back.


@pytest.mark.parametrize(
    ("count", "code", "status"), [("1", 0, 0), ("1", 3, 3), ("2", 1, 4), ("2", 1, 130), ("2", 1, 5)]
)
def test_rank_0s_own_exit_code_is_handed_back(machine: Machine, count: str, code: int, status: int) -> None:
    machine.fake |= {"code": code, "status": status}
    run = machine.start(count, "c")
    assert (run.returncode, run.stdout) == (status, "a reply\n")
    assert "left no word" not in run.stderr


@pytest.mark.parametrize("count", ["1", "2"])
def test_a_run_that_ends_without_a_word_is_a_dead_rank(machine: Machine, count: str) -> None:
    machine.fake["code"] = 1
    run = machine.start(count, "c")
    assert run.returncode == 5
    assert "rank 0 left no word of why. Its log ends: RuntimeError: out of luck\n" in run.stderr
    (folder,) = machine.runs.iterdir()
    assert f"The logs are in {folder}\n" in run.stderr


def start_sleeping(machine: Machine, act: str) -> subprocess.Popen[str]:
    machine.fake["act"] = act
    command = ["bash", str(machine.project / "run_chat.sh"), "1", "c"]
    run = subprocess.Popen(
        command, env=machine.variables(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert run.stderr is not None
    while run.stderr.readline() != "loading\n":
        assert run.poll() is None
    return run


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_run_at_once(machine: Machine, number: signal.Signals, code: int) -> None:
    run = start_sleeping(machine, "sleep")
    began = time.monotonic()
    run.send_signal(number)
    assert (run.communicate(timeout=20)[1], run.returncode) == ("", code)
    assert time.monotonic() - began < 3


def test_a_run_that_does_not_end_is_killed_after_5_seconds(machine: Machine) -> None:
    run = start_sleeping(machine, "stubborn")
    began = time.monotonic()
    run.send_signal(signal.SIGINT)
    assert (run.communicate(timeout=20)[1], run.returncode) == ("", 130)
    assert 4 < time.monotonic() - began < 9


def test_the_newest_20_run_folders_are_kept_and_those_of_living_runs(machine: Machine) -> None:
    alive = machine.runs / f"20200101-000000-{os.getpid()}"
    old = [machine.runs / f"202001{day:02}-000000-999999{day:02}" for day in range(2, 28)]
    for folder in (alive, *old):
        folder.mkdir(parents=True)
    machine.start("1", "c")
    assert alive.exists()
    assert [folder.exists() for folder in old] == [False] * (len(old) - 19) + [True] * 19
    assert len(list(machine.runs.iterdir())) == 21


def test_a_state_folder_that_cannot_be_written_is_no_obstacle(machine: Machine) -> None:
    (machine.folder / "state").write_text("a file")
    machine.fake["status"] = 4
    assert machine.start("1", "c").returncode == 4


def test_an_environment_without_home_is_no_obstacle(machine: Machine) -> None:
    variables = machine.variables()
    del variables["HOME"]
    command = ["bash", str(machine.project / "run_chat.sh"), "1", "c"]
    assert subprocess.run(command, env=variables, capture_output=True).returncode == 0


def test_a_relative_state_folder_is_ignored_as_the_program_ignores_it(machine: Machine) -> None:
    assert machine.start("1", "c", XDG_STATE_HOME="relative").returncode == 0
    assert len(list((machine.folder / ".local/state/dllm-chat/logs").iterdir())) == 1
    assert not (machine.folder / "relative").exists()


def test_the_step_that_the_user_agreed_to_is_opened_in_place_of_the_run(machine: Machine) -> None:
    machine.fake["complete"] = "/runs/a b/global_step_3"
    machine.start("1", "/runs/a b", "hello")
    assert machine.calls(*ONE)[0]["arguments"] == [
        *ONE,
        "--checkpoint_dir=/runs/a b",
        "--prompt=hello",
        "--checkpoint_dir=/runs/a b/global_step_3",
    ]


def test_a_closed_stdin_is_no_obstacle(machine: Machine) -> None:
    command = f'bash "{machine.project}/run_chat.sh" 1 c <&-'
    run = subprocess.run(["bash", "-c", command], env=machine.variables(), capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "a reply\n")


def test_the_terminal_is_put_back_whatever_the_program_left(machine: Machine) -> None:
    machine.fake |= {"act": "raw", "code": 1}
    shell = f'stty -a >before; bash "{machine.project}/run_chat.sh" 1 c; stty -a >after; echo done'
    run = pexpect.spawn(
        "bash", ["-c", shell], env=full(machine), cwd=str(machine.folder), encoding="utf-8", timeout=20
    )
    run.expect("done")
    run.expect(pexpect.EOF)
    run.close()
    before, after = ((machine.folder / name).read_text() for name in ("before", "after"))
    assert " icanon " in before
    assert before == after


# The real launcher.

STUB = """
import os, sys
rank = os.environ["RANK"]
os.write(2, f"rank {rank} err\\n".encode())
if rank == "0":
    print("in:", sys.stdin.read().strip(), flush=True)
    sys.exit(3)
"""


def test_torchruns_banner_goes_to_a_log_while_ranks_keep_their_streams(machine: Machine) -> None:
    for folder in ("chat", "dist"):
        shutil.copytree(
            ROOT / folder,
            machine.project / folder,
            ignore=shutil.ignore_patterns("demo", "__pycache__"),
            dirs_exist_ok=True,
        )
    (machine.project / "chat" / "__main__.py").write_text(STUB)
    log = machine.folder / "torchrun.log"
    command = [sys.executable, "-m", "chat.start.launch", str(log), *torchrun(2)]
    environment = machine.variables() | {"PATH": os.environ["PATH"], "PYTHONPATH": str(machine.project)}
    run = subprocess.run(
        command, env=environment, cwd=machine.folder, input="typed", capture_output=True, text=True
    )
    assert run.returncode == 1
    assert run.stdout == "in: typed\n"
    assert sorted(run.stderr.splitlines()) == ["rank 0 err", "rank 1 err"]
    assert "ChildFailedError" in log.read_text()
    assert log.read_text().count("had begun early") == 2


def test_the_embedded_model_answers_a_prompt_on_two_ranks(demo_checkpoint: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_DATA_HOME": str(demo_checkpoint.parent.parent),
        "XDG_STATE_HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    environment.pop("VIRTUAL_ENV", None)
    question = ["--prompt", "What is the capital of France?", "--temperature", "0"]
    command = ["bash", str(ROOT / "run_chat.sh"), "2", *question]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "The capital of France is Paris.\n"), run.stderr
    assert run.stderr.startswith(f"Starting 2 processes with {Path(sys.executable).parent}/python ")
