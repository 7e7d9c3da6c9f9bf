"""Can the Python that runs this file run the chat? Reads versions without importing; knows no options.

Run as a script by environment.sh, with whatever `python` is found, so its syntax is that of Python 3.6.
Prints one line, fields divided by tabs: `yes`, Python's version, torch's version; or `no`, what is at fault
(`python`, `packages`, `gpu`) and a reason. With `--gpu` it imports torch and asks whether it sees a GPU.
"""

import re
import sys
from pathlib import Path

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
NEEDED = (
    ("torch", (2, 5)),
    ("transformers", (4, 57)),
    ("rich", (13,)),
    ("prompt_toolkit", (3, 0, 43)),
    ("jinja2", (3,)),
)


def numbers(version: str) -> "tuple[int, ...]":
    """The leading numbers of a version: "2.13.0+cpu" -> (2, 13, 0)."""
    return tuple(int(part) for part in re.split(r"[^\d.]", version)[0].split(".") if part)


def dotted(version: "tuple[int, ...]") -> str:
    return ".".join(str(part) for part in version)


def python_fault(version: "tuple[int, ...]") -> str:
    """Why this Python version cannot be, or nothing."""
    if version < OLDEST_PYTHON:
        return f"Python {dotted(version)} is older than {dotted(OLDEST_PYTHON)}"
    if version > NEWEST_PYTHON:
        return f"Python {dotted(version)} is newer than {dotted(NEWEST_PYTHON)}"
    return ""


def package_fault() -> str:
    """The packages that are missing or too old, or nothing."""
    from importlib.metadata import PackageNotFoundError, version

    missing, old = [], []
    for name, least in NEEDED:
        try:
            found = version(name)
        except PackageNotFoundError:
            missing.append(name)
            continue
        if numbers(found) < least:
            old.append(f"{name} {found} is older than {dotted(least)}")
    return "; ".join([f"it lacks {', '.join(missing)}"] * bool(missing) + old)


def gpu_fault() -> str:
    """Why torch does not see the GPUs of this machine, or nothing. Imports torch: seconds."""
    import warnings

    warnings.simplefilter("ignore")
    import torch

    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"its torch {torch.__version__} is built without GPU support"
    return (
        f"its torch {torch.__version__} (CUDA {torch.version.cuda}) sees no GPU; the driver may be too old for it"
    )


def verdict(ask_gpu: bool) -> "tuple[str, ...]":
    """The fields of the line."""
    fault = python_fault(tuple(sys.version_info[:2]))
    if fault:
        return ("no", "python", fault)
    fault = package_fault()
    if fault:
        return ("no", "packages", fault)
    fault = gpu_fault() if ask_gpu else ""
    if fault:
        return ("no", "gpu", fault)
    from importlib.metadata import version

    return ("yes", dotted(tuple(sys.version_info[:3])), version("torch"))


if __name__ == "__main__":
    # The modules that lie beside this file must not shadow other packages' own.
    own_folder = str(Path(__file__).resolve().parent)
    sys.path[:] = [path for path in sys.path if path != own_folder]
    print("\t".join(verdict("--gpu" in sys.argv)))
