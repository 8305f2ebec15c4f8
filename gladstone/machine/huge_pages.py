"""Huge pages for large allocations such as a model's weights.

Each token reads every weight, and the CPU translates the address of every 4 kB page: for a page of 2 MB it does so once
instead of 512 times. Linux provides such pages if a process asks before it touches the memory; mapped files get none.
"""

import ctypes
from pathlib import Path

from gladstone.machine.cgroup import ROOT

LARGE_BYTES = 4 << 20  # a smaller range hardly holds a whole page of 2 MB
MADV_HUGEPAGE = 14  # madvise(2)
Range = tuple[int, int]


def has_huge_pages(root: Path = ROOT) -> bool:
    """True if this system provides huge pages on request: Linux, unless they are switched off."""
    try:
        text = (root / "sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="utf-8")
    except OSError:
        return False
    return "[always]" in text or "[madvise]" in text


class NewAllocations:
    """The large private allocations of this process since the object was created."""

    def __init__(self) -> None:
        self._before = _large_memory()
        self._asked = False

    def request_huge_pages(self) -> None:
        """Request huge pages for them, once. Memory for which the system refuses stays as it is."""
        if not self._asked:
            self._asked = True
            for begin, end in subtract_ranges(_large_memory(), self._before):
                _madvise()(begin, end - begin, MADV_HUGEPAGE)


def subtract_ranges(ranges: list[Range], others: list[Range]) -> list[Range]:
    """The parts of `ranges` that overlap none of `others`."""
    for other in others:
        ranges = [rest for whole in ranges for rest in _outside(whole, other)]
    return ranges


def _outside(whole: Range, part: Range) -> list[Range]:
    """The rests of a range before and after a part of it."""
    rests = (whole[0], min(whole[1], part[0])), (max(whole[0], part[1]), whole[1])
    return [rest for rest in rests if rest[0] < rest[1]]


def _large_memory() -> list[Range]:
    """Address ranges of writable anonymous memory; empty if the system does not list them."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    ranges = []
    for line in lines:
        addresses, rights, _offset, _device, inode, *name = line.split()
        begin, end = (int(address, 16) for address in addresses.split("-"))
        if rights == "rw-p" and inode == "0" and not name and end - begin >= LARGE_BYTES:
            ranges.append((begin, end))
    return ranges


def _madvise() -> "ctypes._NamedFuncPointer":
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
