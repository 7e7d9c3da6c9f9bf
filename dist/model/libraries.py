"""Imports what a model needs, and as little else as may be, while a GPU is woken. Knows no checkpoint.

Of several ranks each imports before it meets the others: if one waited for another's imports and then began its
own, a start would take twice as long.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# transformers imports these where it finds them, for what no text model needs; together they take seconds.
UNUSED = ("sklearn", "scipy", "torchvision", "torchaudio", "pandas", "librosa")


def import_libraries(*, spare: bool = True) -> None:
    """torch and transformers, ready to build a model. `spare` False also lets transformers have what it likes."""
    import torch

    if torch.cuda.is_available():
        threading.Thread(target=_wake_gpu, name="wake-gpu", daemon=True).start()
    with _absent(UNUSED if spare else ()):
        # What every causal model imports, and with it much of what is absent meanwhile.
        import transformers.generation.utils
        import transformers.modeling_utils
        import transformers.models.auto.modeling_auto
        import transformers.models.auto.tokenization_auto  # noqa: F401


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
