"""Options and commands that messages advise exist: read off the texts of the packages, looked up in the commands."""

import ast
import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from gladstone.cli import main
from gladstone.commands.renamed_option import RenamedOption

ROOT = Path(__file__).parents[1]
PACKAGES = ("gladstone", "finetune", "export", "runtime", "bench")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]")
COMMAND = re.compile(r"`(?:gladstone )?(finetune|export|runtime|bench)((?: [a-z][a-z-]*)+)")
# options of other programs that are named, each with the program; CSS variables of the reports
OTHERS = {
    "--control-vector": "llama-cli", "--merge": "llama-gguf-split", "--jinja": "llama-cli", "--no-deps": "pip",
    "--no-binary": "pip", "--quiet": "pip", "--dest": "pip", "--force-reinstall": "pip", "--no-cache-dir": "pip",
    "--local-dir": "hf", "--index-url": "pip", "--use": "accelerate launch", "--standalone": "torchrun",
    "--nproc-per-node": "torchrun", "--query-gpu": "nvidia-smi", "--format": "nvidia-smi", "--summary": "vulkaninfo", "--model": "CSS", "--run": "CSS",
}  # fmt: skip
# words of a command that is put together elsewhere than in the text: options in the same file are its own
BUILT = {"finetune/cli.py": ("export gguf",)}


@dataclass(frozen=True)
class Text:
    """A text of the program, with its place."""

    file: str
    line: int
    value: str


@functools.cache
def texts() -> tuple[Text, ...]:
    """Every text in the packages but docstrings: what may be shown to a user."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return tuple(text for path in paths for text in _texts(path))


def _texts(path: Path) -> Iterator[Text]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield Text(path.relative_to(ROOT).as_posix(), node.lineno, node.value)


@functools.cache
def options() -> dict[str, frozenset[str]]:
    """The options of every command, by its words."""
    return dict(_options(main, (), click.Context(main)))


def _options(
    command: click.Command, words: tuple[str, ...], context: click.Context
) -> Iterator[tuple[str, frozenset[str]]]:
    own = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)} | {"--help"}
    own |= {option.earlier for option in command.params if isinstance(option, RenamedOption)}
    yield " ".join(words), frozenset(own)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _options(inner, (*words, name), context)


def stages_of(file: str) -> tuple[str, ...]:
    """The commands in which a text of this file can be shown."""
    stage = file.partition("/")[0]
    return tuple(words for words in options() if stage in ("gladstone", words.partition(" ")[0]))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_option_that_a_text_names_is_one_of_its_commands(package: str) -> None:
    """A library's text may be shown by all of them; a stage's by its own, unless it names another command."""
    unknown = []
    for text in texts():
        if not text.file.startswith(f"{package}/"):
            continue
        words = [*BUILT.get(text.file, ()), *(words for words in options() if words and words in text.value)]
        known = {flag for each in (*stages_of(text.file), *words) for flag in options()[each]} | OTHERS.keys()
        unknown += [f"{text.file}:{text.line}: {flag}" for flag in OPTION.findall(text.value) if flag not in known]
    assert not unknown


def test_every_command_that_a_text_names_exists() -> None:
    wrong = []
    for text in texts():
        for stage, rest in COMMAND.findall(text.value):
            words = (stage, *rest.split())
            if " ".join(words[:2]) not in options():
                wrong.append(f"{text.file}:{text.line}: {' '.join(words)}")
    assert not wrong


BEGUN = re.compile(r"(?:^|[\s`:])(?:gladstone )?((?:finetune|export|runtime|bench)(?: [a-z]+)+)(?: --[a-z-]+)* $")
# one of a few words; names of files beside the card, which come from a recipe's
SAFE = {"base_precision", "model", "lora"}


def unquoted(source: str) -> list[int]:
    """Lines of f-strings in which a command is followed by a value that no `command_line` made fit for a shell."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            for before, after in itertools.pairwise(node.values):
                begun = BEGUN.search(str(before.value)) if isinstance(before, ast.Constant) else None
                is_command = begun is not None and begun[1] in options()
                if is_command and isinstance(after, ast.FormattedValue) and not _is_fit(after.value):
                    found.append(node.lineno)
    return found


def _is_fit(value: ast.expr) -> bool:
    """Whether a value is made by `command_line`, or is one of those that need no quoting."""
    return "command_line" in ast.dump(value) or (isinstance(value, ast.Name) and value.id in SAFE)


def test_paths_in_commands_are_fit_for_a_shell() -> None:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    found = {path.relative_to(ROOT).as_posix(): unquoted(path.read_text(encoding="utf-8")) for path in paths}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_an_unquoted_path_would_be_found() -> None:
    assert unquoted('f"Next: gladstone export gguf {folder} --quant q8_0"') == [1]
    assert unquoted("f\"Next: {command_line('export', 'gguf', folder)}\"") == []


def test_the_look_up_would_find_a_wrong_option() -> None:
    assert OPTION.findall("see --imatrix-chunks=3, not `--nowhere`.") == ["--imatrix-chunks", "--nowhere"]
    assert "--nowhere" not in {flag for flags in options().values() for flag in flags}
    assert "--imatrix" in options()["export gguf"]
