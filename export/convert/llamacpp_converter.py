"""llama.cpp's converter, from the source archive of exactly the installed llama-cpp-python.

Converter and runtime of one version agree on tensor names and tokenizer hashes. pip downloads the archive once; it is
checked by sha256, and only the converter's files are unpacked into the user's cache.
"""

import compileall
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path, PurePosixPath

from gladstone.artifacts import copy_file, sha256_file
from gladstone.commands.progress import Progress, step
from gladstone.errors import ArtifactError, ToolError, UnsupportedError
from gladstone.machine.host import cache_dir

PACKAGE = "llama-cpp-python"
ARCHIVE_SHA256 = {"0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"}
WANTED = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/gguf/", "LICENSE")
DONE_MARK = ".unpacked"


def installed_version() -> str:
    """Version of llama-cpp-python. Raises UnsupportedError if its archive's hash is not known here."""
    version = metadata.version(PACKAGE)
    if version not in ARCHIVE_SHA256:
        known = ", ".join(ARCHIVE_SHA256)
        raise UnsupportedError(
            f"{PACKAGE} {version} is installed; export is proven with {known}. Run: pip install {PACKAGE}=={known}"
        )
    return version


def archive_path() -> Path:
    """Path of the source archive in the user's cache."""
    return cache_dir() / "llama.cpp" / f"llama_cpp_python-{installed_version()}.tar.gz"


def converter_folder(progress: Progress) -> Path:
    """The unpacked converter, downloaded on first use. Raises ToolError if the download fails."""
    version = installed_version()
    folder = cache_dir() / "llama.cpp" / f"converter-{version}-{ARCHIVE_SHA256[version][:8]}"
    if (folder / DONE_MARK).is_file():
        return folder
    archive = archive_path()
    if not archive.is_file():
        with step(progress, f"Fetching llama.cpp's converter ({PACKAGE} {version}, 77 MB, once)"):
            _fetch(version, archive)
    _check(archive, version)
    with step(progress, "Unpacking llama.cpp's converter"):
        _unpack(archive, folder)
    return folder


def install_archive(source: Path | None, progress: Progress) -> Path:
    """Put the converter into the cache, from the archive `source` or from the network."""
    if source is not None:
        if not source.is_file():
            raise ArtifactError(f"{source}: no such archive.")
        _check(source, installed_version())
        copy_file(source, archive_path())
    return converter_folder(progress)


def _fetch(version: str, archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE]
        done = subprocess.run(
            [*command, "--dest", work, f"{PACKAGE}=={version}"], capture_output=True, text=True, check=False
        )
        found = next(Path(work).glob("*.tar.gz"), None)
        if done.returncode or found is None:
            reason = (done.stderr.strip().splitlines() or ["pip printed no message"])[-1]
            raise ToolError(
                f"the source archive of {PACKAGE} {version} cannot be downloaded: {reason}\nWithout a network: on "
                f"another machine run `pip download --no-deps --no-binary {PACKAGE} {PACKAGE}=={version}`, bring the "
                "file here and run `gladstone export setup --from FILE`."
            )
        found.replace(archive)


def _check(archive: Path, version: str) -> None:
    found = sha256_file(archive)
    if found != ARCHIVE_SHA256[version]:
        raise ArtifactError(
            f"{archive}: sha256 {found[:16]}…, expected {ARCHIVE_SHA256[version][:16]}…: not the source archive of "
            f"{PACKAGE} {version}, or damaged. Remove it and run `gladstone export setup` again."
        )


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack only the converter's files, into a temporary folder that is renamed when complete."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                inner = PurePosixPath(*PurePosixPath(member.name).parts[3:])  # NAME-VERSION/vendor/llama.cpp/…
                if "/vendor/llama.cpp/" in member.name and member.isfile() and str(inner).startswith(WANTED):
                    member.name = str(inner)
                    tar.extract(member, partial, filter="data")
        # otherwise every conversion compiles them again where Python cannot write bytecode
        compileall.compile_dir(partial, quiet=2, stripdir=str(partial), prependdir=str(folder))
        (partial / DONE_MARK).touch()
        partial.replace(folder)
    except (OSError, tarfile.TarError) as error:
        raise ArtifactError(f"{archive}: cannot be unpacked: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
