"""The folders stay apart, and the README tells of the folders, commands and options that there are."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

from chat.commands.table import COMMANDS
from chat.start.option_table import OPTIONS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SOURCES = sorted(path for room in ("chat", "dist") for path in (ROOT / room).rglob("*.py"))

# What a folder (or a file that stands by itself) may import of chat and dist; a name allows all that is in it.
# Each row names only rows above it, so that no two folders need each other.
WORDS = "dist/counted dist/errors dist/plain_json dist/settings dist/protocol dist/system_calls"
LAYERS = {
    "dist/counted": "",
    "dist/errors": "",
    "dist/plain_json": "",
    "dist/system_calls": "",
    "dist/setting_kinds": "dist/errors",
    "dist/settings": "dist/errors dist/setting_kinds",
    "dist/protocol": "dist/settings",
    "dist/checkpoint": "dist/counted dist/errors dist/plain_json dist/settings",
    "dist/kernels": "",
    "dist/group": f"{WORDS} dist/kernels",
    "dist/model": f"{WORDS} dist/checkpoint dist/kernels",
    "dist/decode": f"{WORDS} dist/kernels dist/group/wire dist/model",
    "chat/files": WORDS,
    "chat/terminal": f"{WORDS} chat/files",
    "chat/text": f"{WORDS} dist/checkpoint chat/files",
    "chat/start": f"{WORDS} dist/setting_kinds dist/checkpoint/folder dist/group chat/files chat/terminal",
    "chat/screen/palette": "chat/terminal",
    "chat/screen/markdown": "chat/text chat/screen/palette",
    "chat/screen": f"{WORDS} chat/terminal chat/text chat/screen/palette chat/screen/markdown",
    "chat/console": f"{WORDS} chat/files chat/terminal chat/text",
    "chat/sessions": f"{WORDS} chat/files chat/text",
    "chat/demo": f"{WORDS} chat/files chat/terminal",
    "chat/demo/recipe": "chat/demo",
    "chat/loading": f"dist {WORDS} chat/files chat/terminal chat/text chat/start chat/demo",
    "chat/conversation": f"{WORDS} dist/decode chat/files chat/text chat/screen chat/console chat/sessions "
    "chat/loading",
    "chat/commands": f"{WORDS} dist/setting_kinds dist/checkpoint chat/files chat/text chat/screen chat/console "
    "chat/sessions chat/loading chat/conversation",
    "chat/batch": f"{WORDS} dist/group chat/loading/trial chat/files chat/terminal chat/text chat/start "
    "chat/loading/step_list",
    "chat/activities": "dist chat",
    "chat/leader": "dist chat",
    "chat/__main__": "dist chat",
}

# Which files may import these packages; all others may not.
ALLOWED = {
    "rich": {"chat/screen/"},
    "prompt_toolkit": {"chat/console/"},
    "torch.distributed": {"dist/group/", "dist/model/", "chat/start/launch", "chat/demo/shard"},
    "verl": {"chat/demo/shard", "dist/model/verl_loader"},
    "gguf": {"chat/demo/expand", "chat/demo/prepare"},
}


def imports_of(path: Path) -> set[str]:
    """Everything that a file imports, within functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def is_in(name: str, place: str) -> bool:
    return name == place or name.startswith(place + "/")


def layer_of(name: str) -> str | None:
    """The row of LAYERS that a module belongs to, by its path without suffix."""
    return max((row for row in LAYERS if is_in(name, row)), key=len, default=None)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix("")).removesuffix("/__init__")


def inner_imports(path: Path) -> Iterator[str]:
    """What a file imports of chat and dist, as paths without suffix."""
    return (one.replace(".", "/") for one in imports_of(path) if one.split(".")[0] in ("chat", "dist"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_folder_allows(path):
    name = name_of(path)
    layer = layer_of(name)
    assert layer is not None or name in ("chat", "dist"), "a new folder needs a row in LAYERS"
    allowed = [layer, *LAYERS[layer].split()] if layer else []
    assert not {one for one in inner_imports(path) if layer_of(one) and not any(is_in(one, row) for row in allowed)}
    imports = imports_of(path)
    for package, files in ALLOWED.items():
        used = {one for one in imports if one == package or one.startswith(package + ".")}
        assert not used or name.startswith(tuple(files)), used


def test_no_two_folders_need_each_other():
    assert not [row for row in LAYERS if not (ROOT / row).is_dir() and not (ROOT / f"{row}.py").is_file()]
    needs: dict[str, set[str]] = {row: set() for row in LAYERS}
    for path in SOURCES:
        layer = layer_of(name_of(path))
        if layer is not None:
            needs[layer] |= {found for one in inner_imports(path) if (found := layer_of(one)) not in (layer, None)}
    TopologicalSorter(needs).prepare()  # raises CycleError, which names them


def pyproject() -> dict[str, Any]:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    table: dict[str, Any] = toml.loads((ROOT / "pyproject.toml").read_text())
    return table


def test_pyproject_lists_every_folder_as_a_package():
    folders = sorted({str(path.parent.relative_to(ROOT)).replace("/", ".") for path in SOURCES})
    assert pyproject()["tool"]["setuptools"]["packages"] == folders


def test_pyproject_names_only_files_that_exist():
    tool = pyproject()["tool"]
    data = tool["setuptools"]["package-data"]
    files = [ROOT / package.replace(".", "/") / name for package, names in data.items() for name in names]
    modules = [module for table in tool["mypy"]["overrides"] for module in table["module"]]
    files += [
        ROOT / f"{module.replace('.', '/')}.py" for module in modules if module.startswith(("chat.", "dist."))
    ]
    assert not [file for file in files if not file.is_file()]


@pytest.mark.parametrize("folder", sorted({path.parent for path in SOURCES}), ids=name_of)
def test_a_folder_says_what_it_promises_and_exports_nothing(folder):
    tree = ast.parse((folder / "__init__.py").read_text())
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1 or name_of(folder) == "chat/demo"


def first_sentence(path: Path) -> str:
    """What a module says of itself, up to the first full stop."""
    lines = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()
    return lines[0].partition(". ")[0].rstrip(".") if lines else ""


def tree_lines() -> list[str]:
    """A line for every folder, and for each file beside the folders: its name and what it says of itself."""
    shown = [
        path for path in SOURCES if path.name == "__init__.py" or path.parent in (ROOT / "chat", ROOT / "dist")
    ]
    names = {path: str(path.relative_to(ROOT)).removesuffix("__init__.py") for path in shown}
    width = max(map(len, names.values())) + 2
    return [f"{names[path]:{width}}{first_sentence(path)}" for path in sorted(shown, key=names.__getitem__)]


def test_the_readmes_file_tree_is_of_todays_folders():
    missing = [line for line in tree_lines() if line not in README]
    assert not missing, "run `PYTHONPATH=. python tests/test_architecture.py` for the present tree"


def test_the_readme_names_every_command_and_option():
    assert not [row.usage for row in COMMANDS.values() if f"/{row.name}" not in README]
    assert not [name for name in OPTIONS if name not in README]


if __name__ == "__main__":
    print("\n".join(tree_lines()))
