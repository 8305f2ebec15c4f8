"""Exports that are killed, starved of disk, or pointed at places they do not expect."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from export.cli import main
from gladstone.artifacts import check_files, read_manifest


def export(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)


def refused(result: Result) -> str:
    assert result.exit_code == 1, result.output
    return re.sub(r"(?s)^.*?Error: ", "", result.stderr).rstrip("\n")


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_killed_at_random_moments_nothing_is_half_and_every_export_ends_as_the_unbroken_one() -> None:
    script = [sys.executable, "-m", "tests.faults.kill_export", "--times", "6", "--seed", "3"]
    found = subprocess.run(script, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert re.search(r"6 kills over \d+ exports \(.*\) in \d+ s:\nnever a half file", found.stdout)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for one file of the tiny model, not for two."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["gguf", "merge"])
def test_a_disk_that_is_too_small_is_told_before_the_first_byte(command: str, small_disk: Path, tiny_run: Path) -> None:
    (small_disk / "other").write_bytes(bytes(15 << 20))
    message = refused(export(command, tiny_run, "--out", small_disk / "out"))
    assert "no space: " in message
    assert "are free" in message
    assert not list(small_disk.glob("out/*"))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["gguf", "merge"])
def test_a_disk_that_fills_in_the_middle_leaves_nothing_half(
    command: str, small_disk: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program may take the room that was there."""
    monkeypatch.setattr("export.pipeline.check_disk", lambda *_: None)
    monkeypatch.setattr("export.safetensors_pipeline.check_disk", lambda *_: None)
    taken = small_disk / "other"
    taken.write_bytes(bytes(16 << 20))
    out = small_disk / "out"
    message = refused(export(command, tiny_run, "--out", out))
    assert "No space left on device" in message
    assert {path.suffix for path in out.glob("*")} <= {".log"}
    assert not [path for path in out.glob(".*") if path.name != ".export-state.json"]
    taken.unlink()
    quants = ["--quant", "q4_0"] if command == "gguf" else []
    result = export(command, tiny_run, *quants, "--out", out)
    assert result.exit_code == 0, result.output
    check_files(out, read_manifest(out))


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
def test_a_source_that_changes_while_it_is_read_is_told(
    changed: str, tiny_run: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export import safetensors_pipeline as merged
    from export.merge import plan as merge
    from tests.export.tiny_runs import write_run

    base = shutil.copytree(tiny_base, tmp_path / "base")
    run = write_run(tmp_path / "run", base)
    source = base / "model.safetensors" if changed == "base" else run / "adapter" / "adapter_model.safetensors"
    write_shard = merge.write_shard

    def meddled(*arguments: Any) -> None:
        write_shard(*arguments)
        with source.open("r+b") as file:
            file.seek(-8, 2)
            file.write(b"changed!")

    monkeypatch.setattr(merged, "write_shard", meddled)
    message = refused(export("merge", run, "--out", tmp_path / "out"))
    assert "changed" in message
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
