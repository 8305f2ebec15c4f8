import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gladstone.artifacts import (
    MANIFEST_NAME,
    FileRecord,
    Manifest,
    atomic_file,
    check_files,
    check_writable,
    is_finished,
    read_manifest,
    record_file,
    remove_partials,
    sha256_file,
    write_json,
    write_manifest,
    write_text,
)
from gladstone.errors import ArtifactError


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def make_folder(folder: Path) -> Manifest:
    """A finished folder of two files."""
    write_text(folder / "a.txt", "alpha")
    write_text(folder / "sub" / "b.txt", "béta")
    files = tuple(record_file(folder, folder / name) for name in ("a.txt", "sub/b.txt"))
    manifest = Manifest("train", files, {"base": "abc"}, {"rank": 8}, {"python": "3.11"}, "f" * 64, 7, {"loss": 0.5})
    write_manifest(folder, manifest)
    return manifest


def fail_halfway(path: Path, error: BaseException) -> None:
    with atomic_file(path) as partial:
        partial.write_text("half")
        raise error


def test_a_file_is_at_its_place_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with atomic_file(path) as partial:
        partial.write_text("half")
        assert not path.exists()
        assert partial.parent == path.parent
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, ArtifactError])
def test_a_failure_leaves_nothing_and_is_passed_on(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error, match="stop"):
        fail_halfway(tmp_path / "file.txt", error("stop"))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="stop"):
        fail_halfway(path, RuntimeError("stop"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match=r"file\.txt: cannot be written: No such file"),
        atomic_file(tmp_path / "file.txt"),
    ):
        pass


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ArtifactError, match=r"taken/file\.txt: cannot be written: "):
        write_text(tmp_path / "taken" / "file.txt", "x")
    with pytest.raises(ArtifactError, match="taken: cannot be written to: "):
        check_writable(tmp_path / "taken")


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file.txt").mkdir()
    with pytest.raises(ArtifactError, match=r"file\.txt: cannot be written: Is a directory"):
        write_text(tmp_path / "file.txt", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_a_name_that_is_too_long_is_an_error_and_no_crash(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be written: File name too long"):
        write_text(tmp_path / ("n" * 255), "x")


def test_a_folder_of_the_kernel_cannot_be_written_to() -> None:
    with pytest.raises(ArtifactError, match="/proc/none: cannot be written to: "):
        check_writable(Path("/proc/none"))


def test_a_full_disk_is_an_error_that_leaves_no_half_file(tiny_disk: Path) -> None:
    write_text(tiny_disk / "small.txt", "x")
    with pytest.raises(ArtifactError, match=r"large\.txt: cannot be written: No space left on device"):
        write_text(tiny_disk / "large.txt", "x" * 200_000)
    assert [path.name for path in tiny_disk.iterdir()] == ["small.txt"]
    write_text(tiny_disk / "after.txt", "there is room again")


def test_a_full_disk_is_not_writable(tiny_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        (tiny_disk / "fill").write_bytes(bytes(100_000))
    with pytest.raises(ArtifactError, match="cannot be written to: No space left on device"):
        check_writable(tiny_disk)


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".model.gguf.123.partial", "model.gguf", ".hidden", "a.partial"):
        (tmp_path / name).write_text("x")
    remove_partials(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "a.partial", "model.gguf"]


def test_a_folder_is_finished_when_its_manifest_is_there(tmp_path: Path) -> None:
    assert not is_finished(tmp_path)
    manifest = make_folder(tmp_path)
    assert is_finished(tmp_path)
    assert read_manifest(tmp_path) == manifest
    check_files(tmp_path, manifest)
    assert manifest.record("sub/b.txt").size_bytes == 5


def test_a_file_that_the_manifest_does_not_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"this train folder does not list 'c\.txt'"):
        make_folder(tmp_path).record("c.txt")


def test_a_changed_a_cut_and_a_missing_file_are_reported_apart(tmp_path: Path) -> None:
    manifest = make_folder(tmp_path)
    path = tmp_path / "a.txt"
    path.write_text("alphA")
    with pytest.raises(ArtifactError, match=r"a\.txt: its bytes differ from the manifest's sha256"):
        check_files(tmp_path, manifest)
    path.write_text("alph")
    with pytest.raises(ArtifactError, match=r"a\.txt: 4 bytes, the manifest says 5: cut short or changed"):
        check_files(tmp_path, manifest)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"a\.txt: listed in the manifest but missing"):
        check_files(tmp_path, manifest)


def test_a_folder_without_a_manifest_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"not finished \(no manifest\.json\)\. Run the command"):
        read_manifest(tmp_path)
    with pytest.raises(ArtifactError, match="none: no such folder"):
        read_manifest(tmp_path / "none")


def test_a_manifest_of_another_schema_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path)
    change(tmp_path, schema=2)
    with pytest.raises(ArtifactError, match=r"written by another version of Gladstone \(schema 1 expected\)"):
        read_manifest(tmp_path)


def change(folder: Path, **fields: Any) -> None:
    path = folder / MANIFEST_NAME
    write_json(path, json.loads(path.read_text()) | fields)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '"text"', "{}", '{"schema": 1}', "\x00", "[" * 100_000, '{"schema": 1, "files": 5}'],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json: not a manifest"):
        read_manifest(tmp_path)


def test_a_manifest_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(b'{"schema": 1, "stage": "\xff"}')
    with pytest.raises(ArtifactError, match=r"manifest\.json: not a manifest"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stage", 5),
        ("parents", None),
        ("parents", ["a"]),
        ("config", "x"),
        ("versions", []),
        ("seed", "7"),
        ("template_sha256", 1),
        ("facts", None),
        ("surplus", 1),
        ("files", {"a": 1}),
        ("files", [{"path": "a.txt", "sha256": "0"}]),
        ("files", [{"path": 3, "sha256": "0", "size_bytes": 1}]),
        ("files", [{"path": "a.txt", "sha256": None, "size_bytes": 1}]),
        ("files", [{"path": "a.txt", "sha256": "0", "size_bytes": "1"}]),
    ],
)
def test_a_manifest_with_a_field_of_the_wrong_kind_is_refused(tmp_path: Path, field: str, value: object) -> None:
    make_folder(tmp_path)
    change(tmp_path, **{field: value})
    with pytest.raises(ArtifactError, match=r"manifest\.json: not a manifest"):
        read_manifest(tmp_path)


def test_a_file_that_cannot_be_read_has_no_hash(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read: Is a directory"):
        sha256_file(tmp_path)


texts = st.text(max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
manifests = st.builds(
    Manifest,
    stage=texts,
    files=st.lists(st.builds(FileRecord, texts, texts, st.integers(0)), max_size=3).map(tuple),
    parents=st.dictionaries(texts, texts, max_size=3),
    config=st.dictionaries(texts, json_values, max_size=3),
    versions=st.dictionaries(texts, texts, max_size=3),
    template_sha256=st.none() | texts,
    seed=st.none() | st.integers(),
    facts=st.dictionaries(texts, json_values, max_size=3),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(manifest=manifests)
def test_a_manifest_reads_back_as_it_was_written(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
