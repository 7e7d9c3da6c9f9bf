"""Imports what a model needs, and as little else as may be, while a GPU is woken. Knows no checkpoint.

Of several ranks each imports before it meets the others: if one waited for another's imports and then began its
own, a start would take twice as long.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

# transformers imports these where it finds them, for what no text model needs; together they take seconds.
UNUSED = ("sklearn", "scipy", "torchvision", "torchaudio", "pandas", "librosa", "accelerate")
# torch's compiler, which is never used here and takes as long to import as half of transformers.
COMPILER = "torch._dynamo"
INDEXING = f"{COMPILER}._trace_wrapped_higher_order_op"


def import_libraries(*, spare: bool = True) -> None:
    """torch and transformers, ready to build a model. `spare` False also lets transformers have what it likes."""
    import torch

    if torch.cuda.is_available():
        threading.Thread(target=_wake_gpu, name="wake-gpu", daemon=True).start()
    with _lean_imports() if spare else nullcontext():
        # What every causal model imports, and with it much of what is absent meanwhile.
        import transformers.generation.utils
        import transformers.modeling_utils
        import transformers.models.auto.modeling_auto
        import transformers.models.auto.tokenization_auto  # noqa: F401


@contextmanager
def _lean_imports() -> Iterator[None]:
    """While it lasts, importing transformers leaves out what a model that only answers does not need."""
    with _absent(UNUSED), _compiler_put_off(), _no_distributed(), _quick_look():
        yield


def _wake_gpu() -> None:
    """A process's first use of a GPU takes most of a second, in which Python is free."""
    import torch

    torch.empty(1, device=torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))))


@contextmanager
def _absent(names: tuple[str, ...]) -> Iterator[None]:
    """While it lasts, these packages are not to be found, unless they have been imported already."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        # Python's own way to say that a module cannot be imported.
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name, ()) is None:
                del sys.modules[name]


class CompilerStandIn(ModuleType):
    """In place of torch's compiler while other libraries only mark functions for it.

    Whoever asks for more gets the compiler itself.
    """

    def allow_in_graph(self, function: Any) -> Any:
        return function

    assume_constant_result = allow_in_graph

    def disable(self, function: Any = None, *args: Any, **named: Any) -> Any:
        return (lambda marked: marked) if function is None else function

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_compiler(), name)


class TransformGetItemToIndex:
    """The compiler's class of this name, which some masks are made with; imported where that happens."""

    def __new__(cls) -> Any:
        return importlib.import_module(INDEXING).TransformGetItemToIndex()


@contextmanager
def _compiler_put_off() -> Iterator[None]:
    """While it lasts, importing torch's compiler is put off until something of it is used."""
    if COMPILER in sys.modules:
        yield
        return
    import torch

    compiler = CompilerStandIn(COMPILER)
    indexing = ModuleType(INDEXING)
    indexing.TransformGetItemToIndex = TransformGetItemToIndex  # type: ignore[attr-defined]
    sys.modules |= {COMPILER: compiler, INDEXING: indexing}
    torch._dynamo = compiler
    try:
        yield
    finally:
        _stand_ins_away()


def _stand_ins_away() -> None:
    import torch

    if isinstance(sys.modules.get(COMPILER), CompilerStandIn):
        del sys.modules[COMPILER], sys.modules[INDEXING], torch._dynamo


def _compiler() -> ModuleType:
    """The compiler itself, in place of the stand-in."""
    _stand_ins_away()
    return importlib.import_module(COMPILER)


@contextmanager
def _no_distributed() -> Iterator[None]:
    """While it lasts, torch says that it knows no other processes: transformers leaves out what it trains with."""
    import torch.distributed as torch_dist

    is_available = torch_dist.is_available
    torch_dist.is_available = lambda: False
    try:
        yield
    finally:
        torch_dist.is_available = is_available
        asked = sys.modules.get("transformers.utils.import_utils")
        getattr(getattr(asked, "is_torch_distributed_available", None), "cache_clear", lambda: None)()


@contextmanager
def _quick_look() -> Iterator[None]:
    """While it lasts, transformers takes less time to find what it and the environment hold; it finds the same.

    On its own it reads all its modules of models, twice and line by line, and the files of every installed package.
    """
    finder = _Quickened()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Quickened:
    """Finds the module with which transformers looks around, and makes it faster as it is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == "transformers.utils.import_utils" else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_quickened(module: Any) -> None:
            everything = importlib.metadata.packages_distributions
            importlib.metadata.packages_distributions = lambda: _Distributions(everything)
            try:
                execute(module)
            finally:
                importlib.metadata.packages_distributions = everything
            walk, exported = module.create_import_structure_from_path, module.fetch__all__
            module.create_import_structure_from_path = cache(getattr(walk, "__wrapped__", walk))
            module.fetch__all__ = lambda text: exported(text[max(text.rfind("\n__all__") + 1, 0) :])

        spec.loader.exec_module = execute_quickened  # type: ignore[method-assign]
        return spec


class _Distributions(dict[str, list[str]]):
    """The distributions that a package comes from: one of the same name, else as `everything` lists them."""

    def __init__(self, everything: Callable[[], Mapping[str, list[str]]]) -> None:
        super().__init__()
        self._everything = cache(everything)

    def __missing__(self, package: str) -> list[str]:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return self._everything()[package]
        return [package]

    def get(self, package: str, default: Any = None) -> Any:
        return self._everything().get(package, default)
