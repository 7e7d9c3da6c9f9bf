"""Fixtures shared by the tests."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import random
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from checkpoint_cases import ADAPTED, RARE, REST, USUAL
from checkpoints import CASES, can_make, make_checkpoints, run_root

import chat.demo
from chat.demo.prepare import missing_packages

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not torch.cuda.is_available():
    # Before anything imports Triton, which reads it where a kernel is defined.
    os.environ["TRITON_INTERPRET"] = "1"

# A test file is `real` if it says so, or if it uses a support module that starts processes.
REAL = re.compile(
    r"^(from|import) (program|pty_screen|ranks\w*|deaths|namespaces|on_hosts)\b|^pytestmark = [^=]*\.real\b", re.M
)
SLOW = re.compile(r"^pytestmark = [^=]*\.slow\b", re.M)

TinyCheckpoint = Callable[[str, int], Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also what takes minutes, and every case of drawn tests")
    parser.addoption("--fast", action="store_true", help="only what is neither `real` nor `slow`")
    parser.addoption(
        "--draw", type=int, help="the seed by which drawn tests choose their case (printed at the start)"
    )


def pytest_configure(config: pytest.Config) -> None:
    # Workers of one run inherit the seed, and so draw the same cases.
    given = config.getoption("--draw")
    os.environ["TESTS_DRAW"] = str(
        given if given is not None else os.environ.get("TESTS_DRAW", secrets.randbelow(10**6))
    )


def pytest_report_header(config: pytest.Config) -> str:
    return "every case" if config.getoption("--all") else f"drawn cases: --draw {os.environ['TESTS_DRAW']}"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files that `--fast` leaves out are not even imported."""
    if not config.getoption("--fast") or not collection_path.match("test_*.py"):
        return None
    text = collection_path.read_text()
    return True if REAL.search(text) or SLOW.search(text) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what starts ranks, the program or a terminal as `real`; keep one case of drawn tests, no long ones."""
    real = {path for path in {item.path for item in items} if REAL.search(path.read_text())}
    kinds: dict[str, list[pytest.Item]] = {}
    for item in items:
        assert isinstance(item, pytest.Function)
        if item.path in real or "demo_checkpoint" in item.fixturenames:
            item.add_marker("real")
        kinds.setdefault(f"{item.module.__name__}.{item.originalname}", []).append(item)
    if config.getoption("--all"):
        return
    left_out = ["long", "real", "slow"] if config.getoption("--fast") else ["long"]
    dropped = {item for item in items if any(map(item.get_closest_marker, left_out))}
    for name, cases in kinds.items():
        if cases[0].get_closest_marker("drawn"):
            kept = random.Random(f"{os.environ['TESTS_DRAW']} {name}").choice(cases)
            dropped |= {case for case in cases if case is not kept}
    config.hook.pytest_deselected(items=[item for item in items if item in dropped])
    items[:] = [item for item in items if item not in dropped]


@pytest.fixture(scope="session")
def tiny_checkpoint(request: pytest.FixtureRequest) -> TinyCheckpoint:
    """`tiny_checkpoint(layout, world_size)`: run root of a checkpoint that verl wrote; never change it, copy it.

    Layouts: `checkpoints.CASES`. The step folder is `global_step_3` (for FSDP2 with an `actor/` folder in it), and
    `reference/` beside it holds the same model as safetensors. Made at first use, many in one go, and kept in
    pytest's cache folder under a name that changes with the versions and with tests/support/checkpoints.py.
    """
    cache = request.config.cache
    assert cache is not None

    def checkpoint(layout: str, world_size: int) -> Path:
        base = cache.mkdir(f"checkpoints-{_fingerprint()}")
        with _alone_in(base):
            if not run_root(base, layout, world_size).exists():
                batch = next((some for some in (USUAL, RARE, ADAPTED, REST) if (layout, world_size) in some), [])
                wanted = {*filter(lambda case: can_make(case[0]), batch), (layout, world_size)}
                make_checkpoints(base, sorted(case for case in wanted if not run_root(base, *case).exists()))
        return run_root(base, layout, world_size)

    return checkpoint


@pytest.fixture(scope="session")
def demo_checkpoint(request: pytest.FixtureRequest) -> Path:
    """The embedded model, really prepared (a minute, once; kept in pytest's cache folder). Never change it."""
    absent = missing_packages()
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")
    cache = request.config.cache
    assert cache is not None
    folder = Path(chat.demo.__file__).parent
    sources = [
        folder / f"{name}.py"
        for name in ("__init__", "prepare", "expand", "adapter", "tokenizer", "shard", "finish")
    ]
    sources.append(folder / "adapter.safetensors")
    fingerprint = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    home = cache.mkdir(f"demo-{fingerprint}")
    command = [sys.executable, "-m", "chat.demo"]
    environment = os.environ | {"XDG_DATA_HOME": str(home), "PYTHONPATH": str(Path(__file__).parent.parent)}
    with _alone_in(home):
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return Path(run.stdout.strip())


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One process at a time: the tests run side by side and share what is made there."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fingerprint() -> str:
    versions = []
    for package in ("torch", "transformers", "verl", "peft"):
        try:
            versions.append(f"{package}={importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} missing")
    source = (Path(__file__).parent / "support" / "checkpoints.py").read_text()
    return hashlib.sha256("\n".join([*versions, *CASES, source]).encode()).hexdigest()[:12]
