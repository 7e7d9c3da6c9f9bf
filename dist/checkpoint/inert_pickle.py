"""A restricted unpickler: turns the pickles that torch writes into plain records. Runs no code from the file.

Only OrderedDict, the tuple of sizes, dtypes and this module's own rebuild functions come to life. Every other
class or function that a pickle names becomes an inert stand-in that keeps what it is given and does nothing.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from dist.checkpoint.boxes import ITEM_BYTES, Numbers

STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "Float8_e4m3fnStorage": "float8_e4m3fn",
    "Float8_e5m2Storage": "float8_e5m2",
    "UntypedStorage": "uint8",
}


class PickleProblem(ValueError):
    """The pickle is not what torch writes; the message says in which way."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A named run of bytes in the same archive."""

    key: str
    dtype: str


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A plain tensor: a strided view into a storage. `offset` and `strides` count elements."""

    storage: Storage
    dtype: str
    offset: int
    sizes: Numbers
    strides: Numbers


@dataclass(frozen=True, slots=True)
class WrappedTensor:
    """A tensor subclass that torch rebuilds from parts: DTensor, ShardedTensor."""

    kind: str
    module: str
    dtype: str
    shape: Numbers
    state: Any


class Inert:
    """Stands in for any class that a pickle names: takes everything, does nothing."""

    module = ""
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        made = object.__new__(cls)
        made.args = args
        made.state = None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return Inert(*args)

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def get(self, name: str, default: Any = None) -> Any:
        """A field of the state that the pickle gave, whether it came as a dict or as (None, slots)."""
        fields = self.state
        if isinstance(fields, dict):
            return fields.get(name, default)
        if isinstance(fields, tuple) and len(fields) == 2 and isinstance(fields[1], dict):
            return fields[1].get(name, default)
        return default


def read_pickle(data: bytes) -> Any:
    """The object in `data`, built from plain containers, the records above and inert stand-ins.

    Raises PickleProblem for anything that cannot be read so.
    """
    try:
        return _Restricted(io.BytesIO(data)).load()
    except PickleProblem:
        raise
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        UnicodeDecodeError,
        OverflowError,
        MemoryError,
        RecursionError,
    ) as problem:
        raise PickleProblem(f"{type(problem).__name__}: {problem}") from problem


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch":
            if name == "Size":
                return tuple
            if name in ITEM_BYTES:
                return name
        if module in ("torch._utils", "torch._tensor") and name in REBUILD:
            return REBUILD[name]
        if name == "getattr":
            return _inert_attribute
        return _inert_class(module, name)

    def persistent_load(self, pid: Any) -> Storage:
        # ("storage", class, key, device, elements); devices do not matter here
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise PickleProblem(f"an unknown kind of reference: {str(pid)[:80]}")
        name = getattr(pid[1], "__name__", "")
        if name not in STORAGE_DTYPES:
            raise PickleProblem(f"the storage class {name or pid[1]!r} is not known")
        return Storage(str(pid[2]), STORAGE_DTYPES[name])


def _inert_class(module: str, name: str) -> type[Inert]:
    return type(name.rpartition(".")[2], (Inert,), {"module": module})


def _inert_attribute(owner: Any, name: Any, *default: Any) -> type[Inert]:
    return _inert_class(getattr(owner, "module", ""), str(name))


def _numbers(values: Any) -> Numbers:
    if not isinstance(values, (tuple, list)):
        raise PickleProblem(f"sizes or strides that are no numbers: {str(values)[:80]}")
    for value in values:  # a loop, since there are four of these calls for each tensor of each file
        if type(value) is not int or value < 0:
            raise PickleProblem(f"sizes or strides that are no numbers: {str(values)[:80]}")
    return tuple(values)


def _tensor(storage: Any, offset: Any, sizes: Any, strides: Any, *rest: Any) -> StoredTensor:
    if not isinstance(storage, Storage):
        raise PickleProblem("a tensor without storage")
    return StoredTensor(storage, storage.dtype, _numbers([offset])[0], _numbers(sizes), _numbers(strides))


def _tensor_v3(
    storage: Any, offset: Any, sizes: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> StoredTensor:
    if dtype not in ITEM_BYTES:
        raise PickleProblem(f"the dtype {dtype!r} is not known")
    plain = _tensor(storage, offset, sizes, strides)
    return StoredTensor(plain.storage, dtype, plain.offset, plain.sizes, plain.strides)


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _wrapper_subclass(
    cls: Any, dtype: Any, sizes: Any, strides: Any, offset: Any, layout: Any, *rest: Any
) -> WrappedTensor:
    if dtype not in ITEM_BYTES:
        raise PickleProblem(f"the dtype {dtype!r} is not known")
    kind, module = getattr(cls, "__name__", str(cls)), getattr(cls, "module", "")
    return WrappedTensor(kind, module, dtype, _numbers(sizes), None)


def _from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    made = function(*args)
    if isinstance(made, WrappedTensor):
        return WrappedTensor(made.kind, made.module, made.dtype, made.shape, state)
    return made


REBUILD = {
    "_rebuild_tensor_v2": _tensor,
    "_rebuild_tensor_v3": _tensor_v3,
    "_rebuild_parameter": _parameter,
    "_rebuild_parameter_with_state": _parameter,
    "_rebuild_wrapper_subclass": _wrapper_subclass,
    "_rebuild_from_type_v2": _from_type,
}
