"""CPU and memory limits that a Linux control group sets for this process, as in containers and batch systems."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
CONTROLLERS = Path("sys/fs/cgroup")
NO_LIMIT_BYTES = 1 << 60  # cgroup v1 writes a huge number for "no limit"


def cpu_quota(root: Path = ROOT) -> float | None:
    """CPUs that the group may use, for instance 1.5; None without a limit."""
    quotas = []
    for folder in _folders(root, "cpu"):
        text = _read(folder / "cpu.max")
        if text is None:
            quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        else:
            quota, period = (int(part) if part.isdigit() else None for part in [*text.split(), "", ""][:2])
        if quota and period and quota > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def free_memory_bytes(root: Path = ROOT) -> int | None:
    """Bytes that the group may still allocate, cached file pages counted as free; None without a limit."""
    rooms = []
    for folder in _folders(root, "memory"):
        limit = _first(folder, "memory.max", "memory.limit_in_bytes")
        used = _first(folder, "memory.current", "memory.usage_in_bytes")
        if limit is not None and used is not None and limit < NO_LIMIT_BYTES:
            rooms.append(max(0, limit - max(0, used - _cached_bytes(folder))))
    return min(rooms, default=None)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The group's folder and its parents, in the trees of v1 and v2: each of them may set a limit."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]
        if names and controller not in names.split(","):
            continue
        tops = [root / CONTROLLERS / controller] if names else [root / CONTROLLERS, root / CONTROLLERS / "unified"]
        inner = Path(path.lstrip("/"))
        for top in tops:
            # in a container the path may be the host's; then the top folder is the group's own
            yield from (top / folder for folder in (inner, *inner.parents))


def _cached_bytes(folder: Path) -> int:
    lines = (_read(folder / "memory.stat") or "").splitlines()
    values = {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value.isdigit()}
    kinds = ("inactive_file", "active_file")
    return sum(values.get(f"total_{kind}", values.get(kind, 0)) for kind in kinds)


def _first(folder: Path, *names: str) -> int | None:
    return next((value for value in (_number(folder / name) for name in names) if value is not None), None)


def _number(path: Path) -> int | None:
    text = (_read(path) or "").strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None
