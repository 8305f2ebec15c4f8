import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from gladstone import __version__
from gladstone.errors import ArtifactError
from gladstone.host import (
    available_memory_bytes,
    cache_dir,
    check_disk,
    core_count,
    installed_versions,
    peak_memory_bytes,
    processor_name,
    readable_bytes,
)


def test_the_cache_folder_follows_its_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GLADSTONE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("GLADSTONE_CACHE")
    assert cache_dir() == tmp_path / "xdg" / "gladstone"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "gladstone"
    monkeypatch.setenv("GLADSTONE_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_dir() == Path.home() / ".cache" / "gladstone"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs processor affinity")
def test_cores_are_those_this_process_may_use() -> None:
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{one}}}); from gladstone.host import core_count; print(core_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    assert core_count() == len(os.sched_getaffinity(0))


def test_facts_about_the_machine_are_plausible() -> None:
    assert processor_name().strip()
    assert 0 < available_memory_bytes() <= psutil.virtual_memory().total
    resident = psutil.Process().memory_info().rss
    assert resident * 0.5 < peak_memory_bytes() < psutil.virtual_memory().total


def test_the_peak_of_memory_counts_what_was_given_back() -> None:
    code = (
        "from gladstone.host import peak_memory_bytes\n"
        "before = peak_memory_bytes(); held = bytearray(200_000_000); held[::4096] = b'1' * len(held[::4096]); del held\n"
        "print(peak_memory_bytes() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 150_000_000 < int(done.stdout) < 300_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell a child its own peak")
def test_the_peak_of_a_child_is_not_that_of_its_parent() -> None:
    ballast = b"\1" * 300_000_000
    code = "from gladstone.host import peak_memory_bytes; print(peak_memory_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1_000_000 < int(done.stdout) < len(ballast) / 2


def test_a_disk_with_room_passes_even_for_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    check_disk(tmp_path / "not" / "yet", 1, "a test")


def test_a_disk_without_room_is_refused_with_both_sizes(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        check_disk(tmp_path / "new", 10**18, "the merged model")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/new: no space: the merged model needs 1000000000.00 GB, ")
    assert message.endswith("are free. Free some space or choose another folder with --out.")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_960, "1.0 MB"),
        (1_234_567, "1.2 MB"),
        (999_960_000, "1.00 GB"),
        (92_000_000_000, "92.00 GB"),
        (-1500, "-1.5 kB"),
    ],
)
def test_sizes_are_readable(count: int, text: str) -> None:
    assert readable_bytes(count) == text


def test_versions_of_what_is_installed_are_told_and_the_rest_left_out() -> None:
    versions = installed_versions("click", "no-such-package")
    assert versions["gladstone"] == __version__
    assert versions["python"] == platform.python_version()
    assert set(versions) == {"python", "gladstone", "click"}
