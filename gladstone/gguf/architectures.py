"""The architectures that the installed llama.cpp supports, read from its library file without loading it."""

import difflib
import functools
import mmap
import re
from importlib import metadata
from pathlib import Path

from gladstone.errors import UnsupportedError
from gladstone.machine.packages import llamacpp_folder

LIBRARIES = ("libllama.so", "libllama.dylib", "llama.dll")
# in every build: if one is not found, the library cannot be read this way
ALWAYS_PRESENT = ("llama", "qwen2", "gemma", "phi3", "bert", "t5")
TABLE = re.compile(rb"\x00clip\x00((?:[a-z0-9_.-]{2,40}\x00+)+)\(unknown\)\x00")


def check_architecture(path: Path, architecture: str) -> None:
    """Raise UnsupportedError if the installed llama.cpp does not support the architecture of the model `path`.

    A supported name is in the library file, followed by a zero byte (possibly as the end of a longer name). If the
    library cannot be read this way, nothing is raised: llama.cpp itself reports the error.
    """
    library = _library()
    if (
        library is None
        or not all(_contains(library, name) for name in ALWAYS_PRESENT)
        or _contains(library, architecture)
    ):
        return
    alike = difflib.get_close_matches(architecture, _names(library), n=4, cutoff=0.5)
    known = f" It knows {', '.join(alike)}." if alike else ""
    raise UnsupportedError(
        f"{path}: the model's architecture is {architecture!r}, which the installed llama.cpp (llama-cpp-python "
        f"{_version()}) does not know; a newer one may.{known}"
    )


@functools.cache
def _library() -> Path | None:
    folder = llamacpp_folder()
    paths = (folder / name for name in LIBRARIES) if folder else ()
    return next((path for path in paths if path.is_file()), None)


@functools.cache
def _contains(library: Path, name: str) -> bool:
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(name.encode("utf-8", "surrogateescape") + b"\0") >= 0


@functools.cache
def _names(library: Path) -> tuple[str, ...]:
    """The names in llama.cpp's table of architectures; a name that is stored as another's end is missing."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        table = TABLE.search(data)
        return tuple(filter(None, table[1].decode("ascii").split("\0"))) if table else ()


def _version() -> str:
    try:
        return metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        return "of unknown version"
