"""The rooms stay apart, and the README tells of the files and commands that there are."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

from chat.commands.table import COMMANDS
from chat.start.option_table import OPTIONS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SOURCES = sorted(path for room in ("chat", "dist") for path in (ROOT / room).rglob("*.py"))

# Who may import what; everyone else may not. The embedded model's recipe runs apart from the program.
ALLOWED = {
    "rich": {"chat/screen/"},
    "prompt_toolkit": {"chat/console/"},
    "torch.distributed": {
        "dist/group/",
        "dist/model/",
        "chat/start/launch",
        "chat/demo/shard",
    },
    "verl": {"chat/demo/shard", "dist/model/verl"},
    "gguf": {"chat/demo/expand", "chat/demo/prepare"},
}


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_room_allows(path):
    name = str(path.relative_to(ROOT).with_suffix(""))
    imports = imports_of(path)
    if name.startswith("dist/"):
        assert not {one for one in imports if one.split(".")[0] == "chat"}
    for package, rooms in ALLOWED.items():
        used = {one for one in imports if one == package or one.startswith(package + ".")}
        assert not used or name.startswith(tuple(rooms)), used


def first_sentence(path: Path) -> str:
    """What a file says of itself, up to the first full stop or colon that ends a thought."""
    if path.suffix == ".py":
        lines = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()
        return lines[0].partition(". ")[0].rstrip(".") if lines else ""
    comments = (line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("# "))
    return next((line for line in comments if "shellcheck" not in line), "").partition(". ")[0].rstrip(".")


def tree_lines() -> list[str]:
    """One line for every tracked source file: its name and what it says of itself."""
    done = subprocess.run(["git", "ls-files", "*.py", "*.sh"], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / name for name in sorted(done.stdout.split())]
    width = max(len(str(path.relative_to(ROOT))) for path in paths) + 2
    lines = ((str(path.relative_to(ROOT)), first_sentence(path)) for path in paths)
    return [f"{name:{width}}{about}" for name, about in lines if about]


def test_the_readmes_file_tree_is_of_todays_files():
    missing = [line for line in tree_lines() if line not in README]
    assert not missing, "run `PYTHONPATH=. python tests/test_architecture.py` for the present tree"


def test_the_readme_names_every_command_and_option():
    assert not [row.usage for row in COMMANDS.values() if f"/{row.name}" not in README]
    assert not [name for name in OPTIONS if name not in README]


if __name__ == "__main__":
    print("\n".join(tree_lines()))
