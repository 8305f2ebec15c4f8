"""Huge pages under large memory, as that of a model's weights.

Each token reads every weight, and the processor looks up where each page of 4 kB is: of a page of 2 MB it does so once
in place of 512 times. Linux gives such pages to who asks before the memory is touched; files that are mapped get none.
"""

import ctypes
from pathlib import Path

from gladstone.cgroup import ROOT

LARGE_BYTES = 4 << 20  # smaller memory hardly holds a whole page of 2 MB
MADV_HUGEPAGE = 14  # madvise(2)
Range = tuple[int, int]


def has_huge_pages(root: Path = ROOT) -> bool:
    """True where memory that asks for huge pages gets them: Linux, unless they are turned off."""
    try:
        text = (root / "sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="utf-8")
    except OSError:
        return False
    return "[always]" in text or "[madvise]" in text


class NewMemory:
    """The large private memory that this process was given since the object was made."""

    def __init__(self) -> None:
        self._before = _large_memory()
        self._asked = False

    def ask_for_huge_pages(self) -> None:
        """Ask, once. What the system refuses stays as it is."""
        if not self._asked:
            self._asked = True
            for begin, end in without(_large_memory(), self._before):
                _madvise()(begin, end - begin, MADV_HUGEPAGE)


def without(ranges: list[Range], others: list[Range]) -> list[Range]:
    """What the `ranges` hold that none of the `others` does."""
    for other in others:
        ranges = [rest for each in ranges for rest in _around(each, other)]
    return ranges


def _around(whole: Range, part: Range) -> list[Range]:
    """What is left of a range in front of a part of it, and behind it."""
    rests = (whole[0], min(whole[1], part[0])), (max(whole[0], part[1]), whole[1])
    return [rest for rest in rests if rest[0] < rest[1]]


def _large_memory() -> list[Range]:
    """Where this process has written to memory that no file stands behind; none if nobody tells."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        addresses, rights, _offset, _device, inode, *name = line.split()
        begin, end = (int(address, 16) for address in addresses.split("-"))
        if rights == "rw-p" and inode == "0" and not name and end - begin >= LARGE_BYTES:
            found.append((begin, end))
    return found


def _madvise() -> "ctypes._NamedFuncPointer":
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
