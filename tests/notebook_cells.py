"""Runs the cells of a notebook as "Run all" does, in this process, with parameters injected as papermill does it.

Lines that begin with `!` go to a shell, with the expressions in braces replaced, as in IPython.
"""

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHELL_LINE = re.compile(r"(?m)^( *)!(.+)$")


def cells(name: str) -> list[dict[str, Any]]:
    """The cells of one of the notebooks."""
    notebook = json.loads((ROOT / "notebooks" / name).read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = notebook["cells"]
    return found


def code(name: str) -> dict[str, str]:
    """The code of each cell by its id, in order."""
    return {cell["id"]: "".join(cell["source"]) for cell in cells(name) if cell["cell_type"] == "code"}


def run_all(name: str, parameters: Mapping[str, object]) -> dict[str, Any]:
    """Run every cell; returns the names that they leave. A cell that fails ends it with its exception."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell, source in code(name).items():
        run_cell(cell, source, names)
        if cell == "parameters":
            assert set(parameters) <= set(names), "a parameter that the notebook does not have"
            names.update(parameters)
    return names


def run_cell(cell: str, source: str, names: dict[str, Any]) -> None:
    """Run one cell in the namespace of the notebook."""
    names.setdefault("_shell", _shell)
    exec(compile(SHELL_LINE.sub(_as_python, source), f"<cell {cell}>", "exec"), names)


def _as_python(line: "re.Match[str]") -> str:
    return f"{line[1]}_shell(f{line[2]!r})"


def _shell(command: str) -> None:
    done = subprocess.run(command, shell=True, text=True, capture_output=True, check=False)
    print(done.stdout, done.stderr, sep="")
