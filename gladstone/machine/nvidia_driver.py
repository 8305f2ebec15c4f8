"""What NVIDIA's driver says of this machine, whether torch can use it or not. No torch."""

import ctypes
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from gladstone.machine.cgroup import ROOT

VERSION = re.compile(r"Kernel Module\s+(?:for \S+\s+)?(\d+(?:\.\d+)+)")
FIELDS = ("name,driver_version,compute_cap", "name,driver_version")  # drivers before 510 know no compute_cap
PATIENCE_S = 30  # a driver that loads its firmware anew answers after seconds


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver: its version, the newest CUDA that it runs, and the names of the GPUs that this process may open.

    `version` and `cuda` are '' if unknown, and so are the compute capabilities, such as '7.5'. A container without GPUs
    may see the driver of its host.
    """

    version: str = ""
    cuda: str = ""
    gpus: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()

    def __str__(self) -> str:
        cuda = f" (CUDA {self.cuda} at most)" if self.cuda else ""
        return f"driver {self.version or 'of unknown version'}{cuda}"


def read_driver(root: Path = ROOT) -> Driver:
    """Read the driver's files and ask `nvidia-smi`; without a driver, an empty `Driver`."""
    asked = _ask_driver()
    nodes = len(list((root / "dev").glob("nvidia[0-9]*")))
    version = _version(root) or (asked[0][1] if asked else "")
    names = tuple(values[0] for values in asked) or _names(root, nodes)
    capabilities = tuple(values[2] for values in asked if len(values) > 2)
    return Driver(version, _newest_cuda() if version or names else "", names, capabilities)


def _ask_driver() -> list[list[str]]:
    """Name, driver version and compute capability of each GPU; empty if `nvidia-smi` cannot reach the driver."""
    for fields in FIELDS:
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=PATIENCE_S, check=False
            )
        except (OSError, subprocess.SubprocessError):
            return []
        if done.returncode == 0:
            count = fields.count(",")
            rows = [[part.strip() for part in line.rsplit(",", count)] for line in done.stdout.splitlines()]
            return [values for values in rows if len(values) == count + 1]
    return []


def _version(root: Path) -> str:
    try:
        text = (root / "proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = VERSION.search(text)
    return found[1] if found else ""


def _names(root: Path, nodes: int) -> tuple[str, ...]:
    """A name for each of the device files, from the driver's own files; they list all GPUs of the machine."""
    names = []
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return tuple(names[:nodes]) + ("NVIDIA GPU",) * (nodes - len(names))


def _newest_cuda() -> str:
    """The newest CUDA that the driver runs, such as '12.4'; '' if its library cannot be loaded."""
    number = ctypes.c_int(0)
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        if library.cuDriverGetVersion(ctypes.byref(number)) or not number.value:
            return ""
    except (OSError, AttributeError):
        return ""
    return f"{number.value // 1000}.{number.value % 1000 // 10}"
