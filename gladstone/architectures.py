"""Which architectures the installed llama.cpp knows, read off its library without loading it."""

import difflib
import functools
import mmap
import re
from importlib import metadata
from pathlib import Path

from gladstone.backends import installed_folder
from gladstone.errors import UnsupportedError

LIBRARIES = ("libllama.so", "libllama.dylib", "llama.dll")
SURE = ("llama", "qwen2", "gemma", "phi3", "bert", "t5")  # every build knows these: if they are not found, nothing is
TABLE = re.compile(rb"\x00clip\x00((?:[a-z0-9_.-]{2,40}\x00+)+)\(unknown\)\x00")


def check_architecture(path: Path, architecture: str) -> None:
    """Raises UnsupportedError if the installed llama.cpp has no name for the architecture of the model `path`.

    The name stands in its library, ended by a zero byte, as a part of a longer one at least. Where the library cannot
    be read so, nothing is raised: llama.cpp itself will tell.
    """
    library = _library()
    if library is None or not all(_holds(library, name) for name in SURE) or _holds(library, architecture):
        return
    alike = difflib.get_close_matches(architecture, _names(library), n=4, cutoff=0.5)
    known = f" It knows {', '.join(alike)}." if alike else ""
    raise UnsupportedError(
        f"{path}: a model of the architecture {architecture!r}, which the installed llama.cpp (llama-cpp-python "
        f"{_version()}) does not know; a newer one may.{known}"
    )


@functools.cache
def _library() -> Path | None:
    folder = installed_folder()
    paths = (folder / name for name in LIBRARIES) if folder else ()
    return next((path for path in paths if path.is_file()), None)


@functools.cache
def _holds(library: Path, name: str) -> bool:
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(name.encode("utf-8", "surrogateescape") + b"\0") >= 0


@functools.cache
def _names(library: Path) -> tuple[str, ...]:
    """Names of the table of architectures; those that another's end spells are not in it."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = TABLE.search(data)
        return tuple(filter(None, found[1].decode("ascii").split("\0"))) if found else ()


def _version() -> str:
    try:
        return metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        return "of another make"
