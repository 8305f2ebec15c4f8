import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from export.cli import main
from export.convert.llamacpp_converter import ARCHIVE_SHA256, archive_path, converter_folder, installed_version
from gladstone.artifacts import sha256_file
from gladstone.commands.progress import Silent


def export(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def archive() -> Path:
    """The source archive in the user's own cache."""
    path = archive_path()
    if not path.is_file():
        pytest.skip("the cache does not hold llama-cpp-python's source archive")
    return path


@pytest.fixture
def empty_cache(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLADSTONE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_right_archive_is_accepted_and_only_the_converter_is_unpacked(archive: Path, empty_cache: Path) -> None:
    result = export("setup", "--from", archive)
    assert result.exit_code == 0, result.output
    folder = converter_folder(Silent())
    assert result.stdout == f"Converter ready: {folder}\n"
    assert folder.is_relative_to(empty_cache)
    assert sha256_file(archive_path()) == ARCHIVE_SHA256[installed_version()]
    assert {path.name for path in folder.iterdir()} == {
        "convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion", "gguf-py", "LICENSE", ".unpacked", "__pycache__",
    }  # fmt: skip
    assert (folder / "conversion" / "base.py").is_file()
    assert (folder / "gguf-py" / "gguf" / "gguf_writer.py").is_file()
    assert not list(folder.parent.glob(".*partial"))


def test_a_second_set_up_uses_what_is_there(archive: Path, empty_cache: Path) -> None:
    assert export("setup", "--from", archive).exit_code == 0
    mark = converter_folder(Silent()) / ".unpacked"
    before_ns = mark.stat().st_mtime_ns
    archive_path().unlink()
    assert export("setup").exit_code == 0
    assert mark.stat().st_mtime_ns == before_ns


def test_another_archive_is_refused_and_not_kept(archive: Path, empty_cache: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "llama_cpp_python-0.3.36.tar.gz"
    wrong.write_bytes(b"\x1f\x8b something else")
    result = export("setup", "--from", wrong)
    found, expected = sha256_file(wrong)[:16], ARCHIVE_SHA256[installed_version()][:16]
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(
        f"Error: {wrong}: sha256 {found}…, expected {expected}…: not the source archive of "
    )
    assert not archive_path().exists()


def test_a_missing_archive_is_told(empty_cache: Path, tmp_path: Path) -> None:
    result = export("setup", "--from", tmp_path / "none.tar.gz")
    assert result.exit_code == 1
    assert result.output == f"Error: {tmp_path / 'none.tar.gz'}: no such archive.\n"


def test_an_archive_damaged_in_the_cache_is_told(archive: Path, empty_cache: Path) -> None:
    target = archive_path()
    target.parent.mkdir(parents=True)
    shutil.copyfile(archive, target)
    with target.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"\0\0\0\0")
    result = export("setup")
    assert result.exit_code == 1
    assert "Remove it and run `gladstone export setup` again." in result.stderr
    assert list(target.parent.iterdir()) == [target]
