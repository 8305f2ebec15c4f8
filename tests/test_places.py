"""Commands on places that may not be read or written: one line, exit code 1 (2 for a path of another kind), no traceback.

What takes long before it meets the place, as an export of a whole run, is in the tests of its stage.
"""

import shutil
import sys
from pathlib import Path

import pytest
import yaml

from tests.faults.served import Ended, serve
from tests.faults.tiny_ggufs import tiny_bpe
from tests.tiny_models import tiny_recipe, write_rows_file

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="permissions of another kind")
MODEL, ROWS, RECIPE, FOLDER, OUT = "m.gguf", "rows.jsonl", "recipe.yaml", "folder", "out"

# commands with the path that is refused as {}, and what kind of file it should be; good files are named in <>
READING = {
    "runtime info": (MODEL, "runtime info {}"),
    "runtime ask": (MODEL, "runtime ask {} q"),
    "runtime chat": (MODEL, "runtime chat {}"),
    "runtime doctor": (MODEL, "runtime doctor {}"),
    "runtime ask --lora": (MODEL, "runtime ask <m.gguf> q --lora {}"),
    "runtime ask --json-schema": (ROWS, "runtime ask <m.gguf> q --json-schema {}"),
    "bench run": (MODEL, "bench run {} --data <rows.jsonl> --out <out>"),
    "bench run --data": (ROWS, "bench run <m.gguf> --data {} --out <out>"),
    "finetune run": (RECIPE, "finetune run {} --out <out>"),
    "finetune run --data": (ROWS, "finetune run <recipe.yaml> --data {} --out <out>"),
    "finetune estimate": (RECIPE, "finetune estimate {}"),
    "finetune compare": (FOLDER, "finetune compare {} {}"),
    "finetune sweep": (RECIPE, "finetune sweep {} --out <out>"),
    "finetune data check": (ROWS, "finetune data check {}"),
    "finetune data prepare": (ROWS, "finetune data prepare {} --out <out>"),
    "finetune data report": (ROWS, "finetune data report {} --out <out>"),
    "finetune data leaks": (ROWS, "finetune data leaks {} --against <rows.jsonl>"),
    "export gguf": (FOLDER, "export gguf {}"),
    "export lora": (FOLDER, "export lora {}"),
    "export merge": (FOLDER, "export merge {}"),
    "export push": (FOLDER, "export push {} owner/name --dry-run"),
    "export verify": (MODEL, "export verify {} --against <folder>"),
    "export verify --against": (FOLDER, "export verify <m.gguf> --against {}"),
    "export setup": (MODEL, "export setup --from {}"),
}
WRITING = {
    "bench run": "bench run <m.gguf> --data <rows.jsonl> --out {}",
    "finetune run": "finetune run <recipe.yaml> --out {}",
    "finetune data prepare": "finetune data prepare <rows.jsonl> --out {}",
    "finetune data report": "finetune data report <rows.jsonl> --out {}",
    "finetune data leaks": "finetune data leaks <rows.jsonl> --against <other.jsonl> --out {}",
}
UNREADABLE = ("missing", "a link to nothing", "of another kind", "without permission", "in a folder without permission")
UNWRITABLE = ("in a read-only folder", "a read-only folder", "below a file", "a link to nothing", "in a locked folder")
# a file that is written replaces a link, as it would another file
REFUSED_WRITING = [
    (name, place)
    for name in WRITING
    for place in UNWRITABLE
    if (name, place) != ("finetune data leaks", "a link to nothing")
]


class Places:
    """Good files in a folder whose name a shell would take apart, and beside it the places that are refused."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.good = folder / "it's größer – 模型"
        self.good.mkdir()
        (self.good / MODEL).write_bytes(tiny_bpe().content())
        rows = write_rows_file(self.good / ROWS)
        write_rows_file(
            self.good / "other.jsonl", [{"question": f"Where is {n}?", "answer": f"At {n}."} for n in "abc"]
        )
        (self.good / RECIPE).write_text(yaml.safe_dump(tiny_recipe(folder / "no-base", rows)))
        (self.good / FOLDER).mkdir()
        for name in ("locked", "read-only"):
            shutil.copytree(self.good, folder / name)
        shutil.copytree(self.good, folder / "secret")
        for path in (folder / "secret").iterdir():
            path.chmod(0)
        (folder / "link").symlink_to(folder / "gone")
        (folder / "file").write_text("text\n")
        (folder / "locked").chmod(0)
        (folder / "read-only").chmod(0o555)

    def unlock(self) -> None:
        """So that pytest can remove them."""
        for name in ("locked", "read-only"):
            (self.folder / name).chmod(0o700)

    def unreadable(self, place: str, name: str) -> Path:
        other = self.good / FOLDER if name != FOLDER else self.folder / "file"
        return {
            "missing": self.folder / "missing" / name,
            "a link to nothing": self.folder / "link",
            "of another kind": other,
            "without permission": self.folder / "secret" / name,
            "in a folder without permission": self.folder / "locked" / name,
        }[place]

    def unwritable(self, place: str) -> Path:
        return {
            "in a read-only folder": self.folder / "read-only" / "new",
            "a read-only folder": self.folder / "read-only",
            "below a file": self.folder / "file" / "new",
            "a link to nothing": self.folder / "link",
            "in a locked folder": self.folder / "locked" / "new",
        }[place]

    def command(self, pattern: str, path: Path) -> list[str]:
        """The words of a command: {} is the path, <name> a good one."""
        return [
            str(path) if word == "{}" else str(self.good / word[1:-1]) if word.startswith("<") else word
            for word in pattern.split()
        ]

    def files(self) -> set[Path]:
        """All that is there, but for what a run leaves in its own good folder."""
        return {path for path in self.folder.rglob("*") if self.good / OUT not in (path, *path.parents)}


def check(ended: Ended, names: tuple[str, ...]) -> None:
    """No traceback; one line of an error, after the usage where a path is of another kind."""
    assert not ended.traceback
    assert ended.code in (1, 2), ended.output
    *before, last = [line for line in ended.output.splitlines() if line]
    assert last.startswith("Error: ")
    assert ended.code == 1 or any("Usage: " in line for line in before)
    assert any(name in last for name in names), last


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Ended, Path]]:
    """What became of every command at every place, and the path that it was given."""
    places = Places(tmp_path_factory.mktemp("places"))
    home = tmp_path_factory.mktemp("home")
    asked = {
        (name, place): (pattern, places.unreadable(place, kind))
        for name, (kind, pattern) in READING.items()
        for place in UNREADABLE
    }
    asked |= {(f"{name} --out", place): (WRITING[name], places.unwritable(place)) for name, place in REFUSED_WRITING}
    environment = {"HOME": str(home), "GLADSTONE_CACHE": str(home / "cache"), "MPLCONFIGDIR": str(home)}
    before = places.files()
    try:
        done = serve([places.command(pattern, path) for pattern, path in asked.values()], environment)
    finally:
        places.unlock()
    assert (
        places.files() - before
        == {path for path in places.files() if path.is_relative_to(places.folder / "locked")} - before
    )
    return {key: (result, path) for (key, (_, path)), result in zip(asked.items(), done, strict=True)}


@pytest.mark.parametrize("place", UNREADABLE)
@pytest.mark.parametrize("name", READING)
def test_what_cannot_be_read_is_one_line(
    name: str, place: str, ended: dict[tuple[str, str], tuple[Ended, Path]]
) -> None:
    result, path = ended[name, place]
    check(result, (str(path), path.name))


@pytest.mark.parametrize(("name", "place"), REFUSED_WRITING)
def test_where_nothing_can_be_written_is_told_in_one_line(
    name: str, place: str, ended: dict[tuple[str, str], tuple[Ended, Path]]
) -> None:
    result, path = ended[f"{name} --out", place]
    check(result, (str(path),))


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    places = Places(tmp_path)
    places.unlock()
    before = places.files()
    large = [pattern for name, pattern in WRITING.items() if name != "finetune data leaks"]  # which writes no line here
    commands = [places.command(pattern, tmp_path / "full" / str(n)) for n, pattern in enumerate(large)]
    for result in serve(commands, {"GLADSTONE_CACHE": str(tmp_path / "cache")}, largest_file=0):
        check(result, (str(tmp_path),))
        assert "File too large" in result.output
    assert {path for path in places.files() - before if path.is_file()} == set()
