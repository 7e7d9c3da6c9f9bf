"""Imports what a model needs, and as little else as may be, while a GPU is woken. Knows no checkpoint.

Of several ranks each imports before it meets the others: if one waited for another's imports and then began its
own, a start would take twice as long.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

from dist.model.lean_transformers import spared

# transformers imports these where it finds them, for what no text model needs; together they take seconds.
UNUSED = ("sklearn", "scipy", "torchvision", "torchaudio", "pandas", "librosa", "accelerate")
# torch's compiler, which is never used here and takes as long to import as half of transformers.
COMPILER = "torch._dynamo"
INDEXING = f"{COMPILER}._trace_wrapped_higher_order_op"


def wake_gpu() -> None:
    """Begin, without torch, what a process's first use of its GPU takes most of a second for. Returns at once."""
    threading.Thread(target=_open_context, name="wake-gpu", daemon=True).start()


def _open_context() -> None:
    """The driver, and the context that torch will find there. ctypes leaves Python free meanwhile."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:  # no GPU, or of another make
        return
    device, context = ctypes.c_int(), ctypes.c_void_p()
    # Where one of them fails, torch will say why.
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), int(os.environ.get("LOCAL_RANK", "0"))):
        return
    driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)


def import_libraries(*, spare: bool = True) -> None:
    """torch and transformers, ready to build a model. `spare` False also lets transformers have what it likes."""
    import torch

    if torch.cuda.is_available():
        threading.Thread(target=_first_use, name="first-use", daemon=True).start()
    with _lean_imports() if spare else nullcontext():
        # What every causal model imports, and with it much of what is absent meanwhile.
        import transformers.generation.utils
        import transformers.modeling_utils
        import transformers.models.auto.modeling_auto
        import transformers.models.auto.tokenization_auto  # noqa: F401


@contextmanager
def _lean_imports() -> Iterator[None]:
    """While it lasts, importing transformers leaves out what a model that only answers does not need."""
    with _absent(UNUSED), _compiler_put_off(), _no_distributed(), spared():
        yield


def _first_use() -> None:
    """What torch sets up when it first uses a GPU."""
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
