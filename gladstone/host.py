"""Facts about the machine a stage runs on: processor, memory, disk, cache folder, installed versions."""

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

from gladstone.errors import ArtifactError


def cache_dir() -> Path:
    """The user's cache folder: `$GLADSTONE_CACHE`, else `$XDG_CACHE_HOME/gladstone`, else `~/.cache/gladstone`."""
    own = os.environ.get("GLADSTONE_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gladstone"


def core_count() -> int:
    """Processors this process may use (not those the machine has)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_name() -> str:
    """The processor as the operating system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: platform knows a coarser name
    return platform.processor() or platform.machine()


def available_memory_bytes() -> int:
    """Memory that can be had without swapping, as the operating system estimates it."""
    import psutil

    return int(psutil.virtual_memory().available)


def peak_memory_bytes() -> int:
    """Highest resident size of this process so far."""
    import psutil

    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    own = _peak_in_status(Path("/proc/self/status"))
    if own is not None:
        return own
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _peak_in_status(status: Path) -> int | None:
    # on Linux getrusage tells a child the peak of the parent that started it, if that was the higher one
    try:
        lines = status.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def check_disk(folder: Path, needed_bytes: int, what: str) -> None:
    """Raises ArtifactError if the file system of `folder` has less room than `what` needs."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise ArtifactError(
            f"{folder}: no space: {what} needs {readable_bytes(needed_bytes)}, {readable_bytes(free)} are free. "
            "Free some space or choose another folder with --out."
        )


def readable_bytes(count: float) -> str:
    """1,234,567 → '1.2 MB' (powers of ten, as disks are sold and files are listed)."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < (1000 if unit == "B" else 999.95):  # from there on it is shown as 1000.0
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def installed_versions(*packages: str) -> dict[str, str]:
    """Version of each package, of Gladstone and of Python; a package that is not installed is left out."""
    versions = {"python": platform.python_version()}
    for package in ("gladstone", *packages):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
