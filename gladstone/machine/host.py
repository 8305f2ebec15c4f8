"""Facts about the machine: CPU, memory, disk, cache folder, installed versions."""

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from gladstone.errors import ArtifactError
from gladstone.machine.cgroup import ROOT, cpu_quota, free_memory_bytes

OTHER_CACHE = "set GLADSTONE_CACHE to a folder of another disk"


def cache_dir() -> Path:
    """The user's cache folder: `$GLADSTONE_CACHE`, else `$XDG_CACHE_HOME/gladstone`, else `~/.cache/gladstone`."""
    own = os.environ.get("GLADSTONE_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gladstone"


@dataclass(frozen=True)
class Cores:
    """CPU counts: the machine's logical CPUs, those this process may run on, and the physical cores among the latter.

    `quota` is the control group's limit in CPUs, None for no limit.
    """

    logical: int
    allowed: int
    physical: int
    quota: float | None = None

    @property
    def usable(self) -> int:
        """Threads that can compute at the same time. A group that exceeds its quota is paused, so it counts too."""
        return self.allowed if self.quota is None else max(1, min(self.allowed, int(self.quota)))


def read_cores(root: Path = ROOT) -> Cores:
    """Read the CPUs of this process from its affinity, its control group and the CPU topology."""
    logical = os.cpu_count() or 1
    allowed = set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(logical))
    return Cores(logical, len(allowed), _physical(root, allowed), cpu_quota(root))


def core_count() -> int:
    """Threads that this process (not the machine) can run at the same time."""
    return read_cores().usable


def _physical(root: Path, allowed: set[int]) -> int:
    """Physical cores among the allowed CPUs; psutil's count where the system has no topology files."""
    cores = set()
    for number in allowed:
        siblings = root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"
        try:
            cores.add(siblings.read_text(encoding="utf-8").strip())
        except OSError:
            return _physical_by_psutil(len(allowed))
    return len(cores)


def _physical_by_psutil(allowed: int) -> int:
    import psutil

    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def cpu_name() -> str:
    """The CPU's name as the operating system reports it."""
    name = _read_cpuinfo(ROOT, "model name")
    return name or platform.processor() or platform.machine()  # outside Linux: platform reports a coarser name


def cpu_flags(root: Path = ROOT) -> frozenset[str]:
    """Instruction sets that the CPU has and the system allows, by Linux's names; empty on other systems."""
    return frozenset((_read_cpuinfo(root, "flags") or _read_cpuinfo(root, "Features") or "").split())


def _read_cpuinfo(root: Path, key: str) -> str | None:
    try:
        lines = (root / "proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), None)


def available_memory_bytes() -> int:
    """Bytes that can be allocated without swapping, by the system's estimate and the control group's limit."""
    import psutil

    available = int(psutil.virtual_memory().available)
    room = free_memory_bytes()
    return available if room is None else min(available, room)


def mapped_file_bytes() -> int:
    """Resident bytes of mapped files in this process, such as a model's; 0 where the system does not report them."""
    return _read_status(Path("/proc/self/status"), "RssFile") or 0


def peak_memory_bytes() -> int:
    """Peak resident size of this process, in bytes."""
    import psutil

    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    # on Linux getrusage reports the parent's peak to a child if that was higher
    own = _read_status(Path("/proc/self/status"), "VmHWM")
    if own is not None:
        return own
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _read_status(status: Path, key: str) -> int | None:
    try:
        lines = status.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


def check_disk(folder: Path, needed_bytes: int, what: str, elsewhere: str = "choose another folder with --out") -> None:
    """Raise ArtifactError if the file system of `folder` has less free space than `what` needs.

    `elsewhere` says how to use another disk.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise ArtifactError(
            f"{folder}: no space: {what} needs {readable_bytes(needed_bytes)}, {readable_bytes(free)} are free. "
            f"Free some space or {elsewhere}."
        )


def readable_bytes(count: float) -> str:
    """Format a size in decimal units: 1,234,567 → '1.2 MB'."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < (1000 if unit == "B" else 999.95):  # a larger value would round to 1000.0
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
