"""Exports that are killed, starved of disk, or pointed at places they do not expect."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from export.build import ExportOptions
from export.cli import main
from export.original.model import SourceOptions
from export.pipeline import export_gguf
from export.safetensors_pipeline import MergeOptions, merge_run
from gladstone.artifacts import check_files, read_manifest
from gladstone.commands.progress import Silent
from gladstone.errors import ArtifactError
from tests.export.tiny_runs import write_run
from tests.warm_python import PYTHON


def export(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)


def refused(result: Result) -> str:
    assert result.exit_code == 1, result.output
    return re.sub(r"(?s)^.*?Error: ", "", result.stderr).rstrip("\n")


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_killed_at_random_moments_nothing_is_half_and_every_export_ends_as_the_unbroken_one() -> None:
    script = [PYTHON, "-m", "tests.faults.kill_export", "--times", "6", "--seed", "3"]
    found = subprocess.run(script, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert re.search(r"6 kills over \d+ exports \(.*\) in \d+ s:\nnever a half file", found.stdout)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with little room."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["gguf", "merge"])
def test_a_disk_that_is_too_small_is_told_before_the_first_byte(command: str, small_disk: Path, tiny_run: Path) -> None:
    (small_disk / "other").write_bytes(bytes(35 << 20))
    message = refused(export(command, tiny_run, "--out", small_disk / "out"))
    assert "no space: " in message
    assert "are free" in message
    assert not list(small_disk.glob("out/*"))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["gguf", "merge"])
def test_a_disk_that_fills_in_the_middle_leaves_nothing_half(command: str, small_disk: Path, tiny_run: Path) -> None:
    """Another program takes the space after it was checked."""
    taken, out = small_disk / "other", small_disk / "out"

    def fill() -> None:
        taken.write_bytes(bytes(shutil.disk_usage(small_disk).free - (1 << 20)))

    with pytest.raises(ArtifactError, match="No space left on device"):
        make(command, tiny_run, out, DuringStep("Merging", fill))
    assert {path.suffix for path in out.glob("*")} <= {".log"}
    assert not [path for path in out.glob(".*") if path.name != ".export-state.json"]
    taken.unlink()
    quants = ["--quant", "q4_0"] if command == "gguf" else []
    result = export(command, tiny_run, *quants, "--out", out)
    assert result.exit_code == 0, result.output
    check_files(out, read_manifest(out))


class DuringStep(Silent):
    """Progress that does something once, as soon as a step of this name begins: what else happens meanwhile."""

    def __init__(self, name: str, act: Callable[[], None]) -> None:
        self._name, self._act, self._done = name, act, False

    def start(self, name: str) -> None:
        if name.startswith(self._name) and not self._done:
            self._done = True
            self._act()


def make(command: str, run: Path, out: Path, progress: Silent) -> None:
    if command == "gguf":
        export_gguf(run, SourceOptions(), ExportOptions(("q8_0",)), out, progress)
    else:
        merge_run(MergeOptions(run), out, progress)


@pytest.mark.long
def test_odd_names_links_and_another_file_system_are_nothing_special(tiny_run: Path, tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    odd = elsewhere / f"gladstone {tmp_path.name} 'ü' $(x) -- {{out}} 100%"
    odd.mkdir()
    try:
        run, link = tmp_path / "a run\twith 'quotes' é", tmp_path / "link"
        shutil.copytree(tiny_run, tmp_path / "real")
        run.symlink_to(tmp_path / "real")
        link.symlink_to(odd)
        result = export("gguf", run, "--quant", "q8_0", "--imatrix", "train", "--imatrix-chunks", "1", "--out", link)
        assert result.exit_code == 0, result.output
        check_files(odd, read_manifest(odd))
        assert (odd / "tiny-q8_0.gguf").is_file()
        assert (odd / "tiny-imatrix.gguf").is_file()
    finally:
        shutil.rmtree(odd)


def test_the_folders_that_an_export_is_made_from_are_refused(tiny_run: Path, tiny_base: Path, tmp_path: Path) -> None:
    for command in ("gguf", "lora", "merge"):
        assert "is the folder of the run" in refused(export(command, tiny_run, "--out", tiny_run))
        assert "is the folder of the base" in refused(export(command, tiny_run, "--out", tiny_base))
    link = tmp_path / "link"
    link.symlink_to(tiny_base)
    assert "is the folder of the base" in refused(export("gguf", tiny_run, "--out", link))
    assert not list(tiny_run.glob("*.log"))


def test_a_place_where_nothing_can_be_written_is_told(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for command in ("gguf", "lora", "merge"):
        message = refused(export(command, tiny_run, "--out", tmp_path / "file" / "out"))
        assert message.startswith(f"{tmp_path / 'file' / 'out'}: cannot be ")


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["base", "adapter"])
def test_a_source_that_changes_while_it_is_read_is_reported(changed: str, tiny_base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    run = write_run(tmp_path / "run", base)
    source = base / "model.safetensors" if changed == "base" else run / "adapter" / "adapter_model.safetensors"

    def meddle() -> None:
        with source.open("r+b") as file:
            file.seek(-8, 2)
            file.write(b"\0\0\0\0\0\0\0\0")

    with pytest.raises(ArtifactError):
        make("merge", run, tmp_path / "out", DuringStep("Merging", meddle))
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--fit", "abc"), "abc"),
        (("--split", "0"), "--split"),
        (("--tensor-type", "x"), "x"),
        (("--tensor-type", "[=q8_0"), "["),
        (("--imatrix", "none.json"), "none.json"),
        (("--quant", "iq2_xxs"), "imatrix"),
    ],
)
def test_options_that_make_no_sense_are_told_before_anything_is_made(
    options: tuple[str, str], told: str, tiny_run: Path, tmp_path: Path
) -> None:
    result = export("gguf", tiny_run, *options, "--out", tmp_path / "out")
    assert result.exit_code in (1, 2), result.output
    assert told in result.stderr
    assert "Traceback" not in result.output
    assert not list(tmp_path.glob("out/*.gguf"))
