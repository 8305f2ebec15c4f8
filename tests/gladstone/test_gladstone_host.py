import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from gladstone import __version__
from gladstone.errors import ArtifactError
from gladstone.machine.cgroup import cpu_quota, free_memory_bytes
from gladstone.machine.host import (
    Cores,
    available_memory_bytes,
    cache_dir,
    check_disk,
    core_count,
    cpu_flags,
    cpu_name,
    mapped_file_bytes,
    peak_memory_bytes,
    read_cores,
    readable_bytes,
)
from gladstone.machine.packages import installed_versions


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
    code = f"import os; os.sched_setaffinity(0, {{{one}}}); from gladstone.machine.host import core_count; print(core_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    assert core_count() == read_cores().usable <= read_cores().allowed == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "usable"), [(None, 8), (0.5, 1), (1.0, 1), (2.5, 2), (8.0, 8), (64.0, 8)]
)  # fmt: skip
def test_a_quota_allows_as_many_threads_as_it_has_whole_processors(quota: float | None, usable: int) -> None:
    assert Cores(16, 8, 4, quota).usable == usable


def files(root: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


CPU, MEMORY = "sys/fs/cgroup/cpu", "sys/fs/cgroup/memory"
GROUPS = "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n"
QUOTAS = [
    ({}, None),
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": ""}, None),
    ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
      "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 0.5),
    ({"proc/self/cgroup": GROUPS, f"{CPU}/docker/abc/cpu.cfs_quota_us": "200000\n",
      f"{CPU}/docker/abc/cpu.cfs_period_us": "100000\n"}, 2.0),
    # inside the container the host's path does not exist, and the group's files are at the top
    ({"proc/self/cgroup": GROUPS, f"{CPU}/cpu.cfs_quota_us": "300000\n", f"{CPU}/cpu.cfs_period_us": "100000\n"}, 3.0),
    ({"proc/self/cgroup": GROUPS, f"{CPU}/cpu.cfs_quota_us": "-1\n", f"{CPU}/cpu.cfs_period_us": "100000\n"}, None),
]  # fmt: skip


@pytest.mark.parametrize(("contents", "quota"), QUOTAS)
def test_the_quota_of_a_control_group_is_read(tmp_path: Path, contents: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(files(tmp_path, contents)) == quota


ROOMS = [
    ({}, None),
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "10\n"}, None),
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000\n", "sys/fs/cgroup/memory.current": "700\n",
      "sys/fs/cgroup/memory.stat": "anon 500\ninactive_file 150\nactive_file 50\n"}, 500),
    ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "1000\n", "sys/fs/cgroup/a/memory.current": "100\n",
      "sys/fs/cgroup/memory.max": "2000\n", "sys/fs/cgroup/memory.current": "1950\n"}, 50),
    ({"proc/self/cgroup": GROUPS, f"{MEMORY}/docker/abc/memory.limit_in_bytes": "1000\n",
      f"{MEMORY}/docker/abc/memory.usage_in_bytes": "1200\n"}, 0),
    ({"proc/self/cgroup": GROUPS, f"{MEMORY}/memory.limit_in_bytes": "9223372036854771712\n",
      f"{MEMORY}/memory.usage_in_bytes": "1200\n"}, None),
    ({"proc/self/cgroup": GROUPS, f"{MEMORY}/memory.limit_in_bytes": "900\n", f"{MEMORY}/memory.usage_in_bytes": "500\n",
      f"{MEMORY}/memory.stat": "inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 200\n"}, 700),
]  # fmt: skip


@pytest.mark.parametrize(("contents", "room"), ROOMS)
def test_the_memory_that_a_control_group_leaves_is_read(
    tmp_path: Path, contents: dict[str, str], room: int | None
) -> None:
    assert free_memory_bytes(files(tmp_path, contents)) == room


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs processor affinity")
def test_threads_of_one_core_are_counted_as_one_physical_core(tmp_path: Path) -> None:
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    allowed = os.sched_getaffinity(0)
    together = files(tmp_path / "smt", {topology.format(number): "0-255\n" for number in allowed})
    apart = files(tmp_path / "plain", {topology.format(number): f"{number}\n" for number in allowed})
    assert (read_cores(together).physical, read_cores(apart).physical) == (1, len(allowed))
    assert 1 <= read_cores(tmp_path / "nothing").physical <= len(allowed)


def test_flags_of_the_processor_are_read_for_both_families(tmp_path: Path) -> None:
    intel = files(tmp_path / "x86", {"proc/cpuinfo": "processor\t: 0\nmodel name\t: X\nflags\t\t: fpu avx2 amx_int8\n"})
    arm = files(tmp_path / "arm", {"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd i8mm\n"})
    assert cpu_flags(intel) == {"fpu", "avx2", "amx_int8"}
    assert cpu_flags(arm) == {"fp", "asimd", "i8mm"}
    assert cpu_flags(tmp_path / "none") == set()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_pages_of_mapped_files_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1" * 30_000_000)
    before = mapped_file_bytes()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        assert sum(data[::4096]) > 0
        assert mapped_file_bytes() - before > 25_000_000


def test_facts_about_the_machine_are_plausible() -> None:
    assert cpu_name().strip()
    assert 0 < available_memory_bytes() <= psutil.virtual_memory().total
    resident = psutil.Process().memory_info().rss
    assert resident * 0.5 < peak_memory_bytes() < psutil.virtual_memory().total


def test_the_peak_of_memory_counts_what_was_given_back() -> None:
    code = (
        "from gladstone.machine.host import peak_memory_bytes\n"
        "before = peak_memory_bytes(); held = bytearray(200_000_000); held[::4096] = b'1' * len(held[::4096]); del held\n"
        "print(peak_memory_bytes() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 150_000_000 < int(done.stdout) < 300_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell a child its own peak")
def test_the_peak_of_a_child_is_not_that_of_its_parent() -> None:
    ballast = b"\1" * 300_000_000
    code = "from gladstone.machine.host import peak_memory_bytes; print(peak_memory_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1_000_000 < int(done.stdout) < len(ballast) / 2


def test_a_disk_with_room_passes_even_for_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    check_disk(tmp_path / "not" / "yet", 1, "a test")


def test_a_disk_without_room_is_refused_with_both_sizes(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        check_disk(tmp_path / "new", 10**18, "the merged model")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/new: no space: the merged model needs 1000000000.00 GB, ")
    assert "--out" in message


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


def test_versions_of_what_is_installed_are_reported_and_the_rest_left_out() -> None:
    versions = installed_versions("click", "no-such-package")
    assert versions["gladstone"] == __version__
    assert versions["python"] == platform.python_version()
    assert set(versions) == {"python", "gladstone", "click"}
