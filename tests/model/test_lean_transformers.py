"""What transformers is spared when it is imported changes nothing of what it finds."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dist.model.lean_transformers import IMPORT_UTILS, INSTALLED_AS, Distributions, KeptNames, _Finder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Definer:
    """In place of transformers' function; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, module_path: Any, prefix: str | None = None) -> Any:
        self.calls += 1
        given = Path(module_path)
        names = {path.stem for path in (given.parent if given.suffix else given).rglob("*.py")}
        return {frozenset({"torch"}): {f"{prefix}.{name}": {name} for name in names}}


def small(folder: Path) -> Path:
    models = folder / "transformers" / "models"
    (models / "one").mkdir(parents=True)
    (models / "one" / "modeling_one.py").write_text("class One: ...")
    return models


def add_a_file(models: Path) -> None:
    (models / "one" / "more.py").write_text("")


def write_to_a_file(models: Path) -> None:
    path = models / "one" / "modeling_one.py"
    path.write_text(path.read_text() + "\nclass Two: ...")


def write_as_many_bytes(models: Path) -> None:
    path = models / "one" / "modeling_one.py"
    before = path.stat()
    path.write_text(path.read_text().replace("One", "Two"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def test_names_are_read_once_for_all_processes(tmp_path: Path) -> None:
    models, define = small(tmp_path), Definer()
    first = KeptNames(define)(str(models), prefix="models")
    assert (KeptNames(define)(models, prefix="models"), define.calls) == (first, 1)
    assert KeptNames(define)(models / "__init__.py") == define(models)
    assert KeptNames(define)(models, "models") == define(models, "models")  # as it is not asked today


@pytest.mark.parametrize("change", [add_a_file, write_to_a_file, write_as_many_bytes])
def test_names_are_read_again_after_a_change(tmp_path: Path, change: Callable[[Path], None]) -> None:
    models, define = small(tmp_path), Definer()
    KeptNames(define)(models)
    change(models)
    assert (KeptNames(define)(models), define.calls) == (Definer()(models), 2)
    assert len(list((tmp_path / "cache" / "dllm-chat").iterdir())) == 1  # what is outdated goes


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"\xfb\x01"), lambda path: path.write_bytes(b"")])
def test_a_damaged_file_counts_as_none(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    models, define = small(tmp_path), Definer()
    found = KeptNames(define)(models)
    (kept,) = (tmp_path / "cache" / "dllm-chat").iterdir()
    damage(kept)
    assert (KeptNames(define)(models), define.calls) == (found, 2)


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    models, define = small(tmp_path), Definer()
    assert KeptNames(define)(models) == KeptNames(define)(models) == define(models)


@pytest.mark.parametrize("text", ["answer = 42", "answer = 42\ndef define_import_structure(path): return {}"])
def test_a_transformers_of_another_kind_is_imported_as_it_is(tmp_path: Path, text: str) -> None:
    (tmp_path / "import_utils.py").write_text(text)
    spec = _Finder().find_spec(IMPORT_UTILS, [str(tmp_path)])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.answer == 42
    assert "def" not in text or module.define_import_structure(small(tmp_path)) == {}
    assert _Finder().find_spec(IMPORT_UTILS, [str(tmp_path / "nowhere")]) is None


@pytest.mark.parametrize("prefix", [None, "models"])
def test_transformers_own_names_are_kept_as_they_are(prefix: str | None) -> None:
    from transformers.utils import import_utils

    define = import_utils.define_import_structure
    define = getattr(define, "_define", define)  # where this process was spared already
    models = Path(import_utils.__file__).parents[1] / "models"
    read = KeptNames(define)(models, prefix=prefix)
    assert read == KeptNames(define)(models, prefix=prefix) == define(models, prefix=prefix)
    assert any("modeling_qwen2" in str(names) for names in read.values())


def test_packages_are_found_as_among_all() -> None:
    everything, asked = importlib.metadata.packages_distributions(), []

    def all_of_them() -> Any:
        asked.append(1)
        return everything

    found = Distributions(all_of_them)
    present = [name for name in ("torch", "tokenizers", "safetensors", *INSTALLED_AS) if name in everything]
    assert {name: _named(found[name]) for name in present} == {name: _named(everything[name]) for name in present}
    assert found.get("no_such_package", "none") == "none"
    assert not asked
    with pytest.raises(KeyError):
        found["no_such_package"]
    assert importlib.util.find_spec("pkg_resources") is None or found.get("pkg_resources") == everything.get(
        "pkg_resources"
    )


def _named(distributions: list[str]) -> list[str]:
    """Without what is written in several ways."""
    return [name.lower().replace("_", "-") for name in distributions][:1]
