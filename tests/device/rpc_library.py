"""llama.cpp's RPC back end as a library of its own, for the llama.cpp that is installed: two files, compiled once."""

import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

from export.convert.llamacpp_converter import archive_path, converter_folder
from gladstone.commands.progress import Silent
from gladstone.machine.host import cache_dir
from gladstone.machine.packages import llamacpp_folder

SOURCES = ("ggml-rpc.cpp", "transport.cpp")
FLAGS = "-O2 -std=c++17 -fPIC -shared -DGGML_BACKEND_DL -DGGML_BACKEND_BUILD -DGGML_BACKEND_SHARED -DGGML_SHARED"
WANTED = ("/vendor/llama.cpp/ggml/include/", "/vendor/llama.cpp/ggml/src/ggml-rpc/", "/vendor/llama.cpp/ggml/src/")


@functools.cache  # a test may have changed the folder of the cache since
def rpc_library() -> Path:
    """The library in the user's cache; compiled if it is not there, which takes a compiler about five seconds."""
    base = _base_library()
    digest = hashlib.sha256(FLAGS.encode() + base.read_bytes()).hexdigest()[:12]
    library = cache_dir() / "llama.cpp" / f"libggml-rpc-{platform.machine()}-{digest}.so"
    if not library.is_file():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as work:
            built = Path(work) / library.name
            _compile(_unpack(Path(work)), base, built)
            built.replace(library)
    return library


def main() -> None:
    """Compile it anew and say how long that took."""
    rpc_library().unlink()
    rpc_library.cache_clear()
    begin_s = time.monotonic()
    print(f"{rpc_library().name}: compiled in {time.monotonic() - begin_s:.1f} s")


def _base_library() -> Path:
    folder = llamacpp_folder()
    assert folder is not None, "llama-cpp-python is not installed: run `make set-up`"
    return next(folder.glob("libggml-base.so"))


def _unpack(work: Path) -> Path:
    """ggml's headers and the back end's sources, from the archive of the installed version."""
    if not archive_path().is_file():
        converter_folder(Silent())  # downloads it
    with tarfile.open(archive_path()) as tar:
        for member in tar:
            is_header = member.name.endswith((".h", ".hpp"))
            if (
                member.isfile()
                and any(part in member.name for part in WANTED)
                and (is_header or Path(member.name).name in SOURCES)
            ):
                tar.extract(member, work, filter="data")
    return next(work.glob("*/vendor/llama.cpp/ggml"))


def _compile(ggml: Path, base: Path, out: Path) -> None:
    compilers = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    compiler = next(name for name in compilers if name and shutil.which(shlex.split(name)[0]))
    sources = [str(ggml / "src" / "ggml-rpc" / name) for name in SOURCES]
    places = f"-ffile-prefix-map={ggml.parents[3]}="  # messages name no temporary folder
    includes = [places, f"-I{ggml / 'include'}", f"-I{ggml / 'src'}"]
    command = [*shlex.split(compiler), *FLAGS.split(), *includes, *sources, "-o", str(out), str(base), "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the RPC back end does not compile:\n{done.stderr[-2000:]}"


if __name__ == "__main__":
    main()
