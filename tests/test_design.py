"""docs/design.md is true of the tree: every path, type and function that it names exists."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("gladstone", "finetune", "export", "runtime", "bench")
COMMANDS = {"lint-imports"}
PLACEHOLDERS = {"file:line"}
PARTS = {"cli", "gguf"}  # a kind of module; the package of llama.cpp


def design() -> str:
    return (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


def code_spans() -> list[str]:
    """The texts in backquotes, outside of fenced blocks."""
    text = re.sub(r"(?ms)^```.*?^```", "", design())
    return sorted(set(re.findall(r"`([^`\n]+)`", text)))


def defined() -> Iterator[str]:
    """Every class and function of the packages."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef | ast.FunctionDef):
                    yield node.name


def test_every_path_that_the_design_names_exists() -> None:
    paths = [span for span in code_spans() if "/" in span]
    assert len(paths) > 50
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert [path for path in paths if path.endswith("/") and not (ROOT / path).is_dir()] == []


def test_every_other_name_in_the_design_is_a_package_a_type_or_a_function() -> None:
    known = {*defined(), *PACKAGES, *COMMANDS, *PLACEHOLDERS, *PARTS}
    names = [span for span in code_spans() if "/" not in span]
    assert len(names) > 15
    assert [name for name in names if name not in known] == []


@pytest.mark.parametrize("row", [line for line in design().splitlines() if re.match(r"\| `[A-Z]", line)])
def test_a_type_is_defined_in_the_file_that_the_design_names(row: str) -> None:
    types, file, _ = (re.findall(r"`([^`]+)`", cell) for cell in row.strip("| ").split(" | ", 2))
    module = ast.parse((ROOT / file[0]).read_text(encoding="utf-8"))
    found = {node.name for node in module.body if isinstance(node, ast.ClassDef)}
    assert set(types) <= found


def test_the_design_names_every_package_and_every_folder_of_the_shared_one() -> None:
    named = code_spans()
    assert [f"{package}/" for package in PACKAGES if f"{package}/" not in named] == []
    folders = subprocess.run(
        ["git", "ls-files", "gladstone/*/__init__.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    shared = {f"{Path(path).parent.as_posix()}/" for path in folders if path.count("/") == 2}
    assert shared - set(named) == set()


def test_the_design_names_every_child_process() -> None:
    named = code_spans()
    children = [
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.stem.endswith(("_child", "child_main")) or path.as_posix().endswith("sweep/child.py")
    ]
    assert len(children) > 8
    assert [path for path in children if path not in named] == []
