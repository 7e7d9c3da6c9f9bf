"""Spares transformers what it does over again in every process that imports it. Knows no model.

It lists every package that is installed to learn the versions of a few, and reads the text of all its model files,
twice, to learn which names they export. On a machine with many packages both take about as long as everything
else that it imports. Packages are looked up one by one here, and what the files export is kept in the user's cache
for as long as no file there changes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import marshal
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

IMPORT_UTILS = "transformers.utils.import_utils"
# Packages that transformers asks for and that are imported by another name than they are installed by.
INSTALLED_AS = {"PIL": "pillow", "bs4": "beautifulsoup4", "sklearn": "scikit-learn", "yaml": "PyYAML"}
# With the number of its form.
KEPT = "transformers-names-1"

Everything = Callable[[], Mapping[str, list[str]]]


@contextmanager
def spared() -> Iterator[None]:
    """While it lasts, an import of transformers is short."""
    everything = importlib.metadata.packages_distributions
    finder = _Finder()
    importlib.metadata.packages_distributions = lambda: Distributions(everything)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        importlib.metadata.packages_distributions = everything


class Distributions(dict[str, list[str]]):
    """{package: what it was installed as}, looked up when asked for; `everything` gives all at once."""

    def __init__(self, everything: Everything) -> None:
        self._everything = functools.cache(everything)

    def __missing__(self, package: str) -> list[str]:
        name = INSTALLED_AS.get(package, package)
        try:
            importlib.metadata.version(name)
            self[package] = [name]
        except importlib.metadata.PackageNotFoundError:
            self[package] = self._everything()[package]
        return self[package]

    def get(self, package: str, default: Any = None) -> Any:
        if package not in self and importlib.util.find_spec(package) is None:
            return default
        try:
            return self[package]
        except KeyError:
            return default


class _Finder:
    """Finds transformers' module that reads its files, and lets it keep what it read."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != IMPORT_UTILS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        loader = spec.loader if spec is not None else None
        if loader is not None:
            execute = loader.exec_module

            def execute_and_keep(module: ModuleType) -> None:
                execute(module)
                define = getattr(module, "define_import_structure", None)
                if define is not None:
                    module.define_import_structure = KeptNames(define)  # type: ignore[attr-defined]

            loader.exec_module = execute_and_keep  # type: ignore[method-assign]
        return spec


class KeptNames:
    """What `define` finds below a path; of transformers' models what it found before, if no file has changed."""

    def __init__(self, define: Callable[..., Any]) -> None:
        self._define = define
        self._states: dict[Path, str] = {}

    def __call__(self, module_path: Any, *more: Any, **named: Any) -> Any:
        folder = Path(module_path)
        folder = folder.parent if folder.suffix else folder
        prefix = named.get("prefix", "")
        # A transformers that asks otherwise gets its answer from its own function.
        if (folder.parent.name, folder.name) != ("transformers", "models") or more or set(named) - {"prefix"}:
            return self._define(module_path, *more, **named)
        state = self._states.get(folder) or self._states.setdefault(folder, _state(folder))
        kept = _cache_folder() / "-".join(filter(None, (KEPT, state, prefix)))
        # marshal knows sets, as JSON does not, and its files are Python's own for this version.
        with suppress(OSError, ValueError, EOFError, TypeError):
            return marshal.loads(kept.read_bytes())
        found = self._define(module_path, **named)
        with suppress(OSError, ValueError):
            _keep(kept, marshal.dumps(found), state)
        return found


def _state(folder: Path) -> str:
    """A digest that changes with any file of Python below the folder, and with Python itself."""
    digest = hashlib.sha256(f"{sys.version_info} {folder}".encode())
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.endswith(".py"):
                found = Path(place, name).stat()
                digest.update(f"{place}/{name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _keep(path: Path, data: bytes, state: str) -> None:
    """Write the file whole or not at all, in place of those of other states."""
    path.parent.mkdir(parents=True, exist_ok=True)
    outdated = [one for one in path.parent.glob(f"{KEPT}-*") if state not in one.name]
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as out:
        out.write(data)
    Path(name).replace(path)
    for one in outdated:
        one.unlink(missing_ok=True)


def _cache_folder() -> Path:
    """The user's cache folder of this program."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if given.startswith("/") else Path.home() / ".cache") / "dllm-chat"
