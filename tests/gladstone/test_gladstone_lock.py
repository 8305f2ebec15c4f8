"""Folder locks between real processes."""

import subprocess
import sys
from pathlib import Path

import pytest

from gladstone.errors import ArtifactError
from gladstone.process.lock import lock_folder, wait_for_lock

HOLDER = """
import sys
from pathlib import Path
from gladstone.process.lock import lock_folder, wait_for_lock
with lock_folder(Path(sys.argv[1]), "training") if sys.argv[2] == "held" else wait_for_lock(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


def holder(path: Path, kind: str = "held") -> "subprocess.Popen[str]":
    """A process that holds the lock until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    return process


def test_a_folder_in_use_is_refused_and_its_log_left_as_it_is(tmp_path: Path) -> None:
    log = tmp_path / "out" / "train.log"
    with holder(log) as first:
        log.write_text("step 1\n")
        with pytest.raises(ArtifactError) as caught, lock_folder(log, "training"):
            pass
        assert log.read_text() == "step 1\n"
        first.communicate("")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/out: ")
    assert all(fact in message for fact in ("another process", "training", "--out"))
    with lock_folder(log, "training"):
        assert log.read_text() == "step 1\n"


@pytest.mark.parametrize("kind", ["held", "waited"])
def test_the_lock_of_a_killed_process_is_free(kind: str, tmp_path: Path) -> None:
    with holder(tmp_path / "train.log", kind) as first:
        first.kill()
    with lock_folder(tmp_path / "train.log", "training"):
        pass
    with wait_for_lock(tmp_path / "train.log"):
        pass


def test_a_process_waits_for_the_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "folder" / ".lock"
    with holder(path, "waited") as first:
        with pytest.raises(ArtifactError), lock_folder(path, "training"):
            pass
        assert first.stdin is not None
        first.stdin.close()
        with wait_for_lock(path):
            assert first.wait() == 0


def test_two_holders_in_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    with (
        lock_folder(tmp_path / "log", "training"),
        pytest.raises(ArtifactError),
        lock_folder(tmp_path / "log", "training"),
    ):
        pass


def test_nothing_empty_is_left_behind(tmp_path: Path) -> None:
    log = tmp_path / "out" / "train.log"
    with pytest.raises(ZeroDivisionError), lock_folder(log, "training"):
        raise ZeroDivisionError
    assert not log.parent.exists()
    with lock_folder(log, "training"):
        pass
    assert list(log.parent.iterdir()) == []
