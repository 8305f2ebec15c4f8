"""Set up `.venv` as a user needs it: pinned packages, torch for this machine, a portable llama-cpp-python.

Run by `make`; uses the standard library only. A set-up that is already there for this lock file is left as it is.
"""

from __future__ import annotations  # so that an old Python gets as far as being told that it is too old

import argparse
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts" if os.name == "nt" else "bin") / "python"
LOCK = ROOT / "requirements" / "cpu.lock"
STAMP = VENV / ".set-up"
LOG = ROOT / ".cache" / "set-up.log"
TORCH = "torch==2.13.0"
LLAMA = "llama-cpp-python"
# runs on any x86-64 processor with AVX2, whichever machine built it; a native build is not only unportable: gcc before
# 12.4 and 13.3 makes one that dies with SIGILL on processors with AMX (gcc bug 114098)
CMAKE_ARGS = "-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF"
# back ends for these processors, beside each other: which one is used is found out where they run. None with AMX, see
# above; those left out differ little from their neighbours
VARIANTS = ("x64", "haswell", "alderlake", "skylakex", "icelake", "zen4")
SEVERAL_ARGS = (
    "-DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON -DCMAKE_INSTALL_BINDIR=llama_cpp/lib "
    "-DCMAKE_INSTALL_LIBDIR=llama_cpp/lib"
)
VARIANT_LINE = r"(?m)^\s*ggml_add_cpu_backend_variant\((\w[\w.]*)\b[^)]*\)\n"
X86_VARIANTS = {*VARIANTS, "sse42", "sandybridge", "ivybridge", "piledriver", "cannonlake", "cascadelake", "cooperlake",
                "sapphirerapids"}  # fmt: skip
WITHOUT_COMMON = ROOT / "scripts" / "without_common.cmake"
# on every core, where pip uses one; files that are no Python of this version are passed over, as pip does
COMPILE = "import compileall, sysconfig; compileall.compile_dir(sysconfig.get_path('purelib'), quiet=2, workers=0)"


class SetUpError(Exception):
    """What is missing and what to install, in one line."""


def main() -> int:
    """0 when everything is there, 1 with one line otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", choices=("cpu", "cuda"), default="cpu", help="which build of torch")
    text = f"one back end for all, or several: all, or some of {', '.join(VARIANTS)} (default: as set up before)"
    parser.add_argument("--cpu", metavar="portable|all|NAME,…", help=text)
    arguments = parser.parse_args()
    try:
        set_up(arguments.torch, chosen_variants(arguments.cpu or set_up_before()))
    except SetUpError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up: stopped; the same command again goes on.", file=sys.stderr)
        return 130
    return 0


def set_up_before() -> str:
    """What `--cpu` was when `.venv` was made: a plain `make test` must not undo `make set-up CPU=all`."""
    parts = STAMP.read_text(encoding="utf-8").split() if STAMP.is_file() else []
    return parts[4] if len(parts) == 5 else "portable"


def chosen_variants(cpu: str) -> tuple[str, ...]:
    """The back ends that `--cpu` asks for; none for the one portable build. Raises SetUpError for an unknown name."""
    if cpu in ("portable", "all"):
        return VARIANTS if cpu == "all" else ()
    names = tuple(dict.fromkeys(cpu.split(",")))
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise SetUpError(f"--cpu {cpu}: expected portable, all, or some of {', '.join(VARIANTS)}.")
    return names


def set_up(torch: str, variants: tuple[str, ...] = ()) -> None:
    """Bring `.venv` to what the lock file says. Raises SetUpError."""
    key = stamp(torch, variants)
    if STAMP.is_file() and STAMP.read_text(encoding="utf-8") == key and PYTHON.exists():
        return
    begin_s = time.monotonic()
    check_tools()
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("", encoding="utf-8")
    if not PYTHON.exists():
        run("Making .venv", [sys.executable, "-m", "venv", str(VENV)])
    STAMP.unlink(missing_ok=True)
    pip = [str(PYTHON), "-m", "pip"]
    archive = source_archive(pip)
    wheel = llama_wheel(pip, archive, variants)
    if not has_torch(torch):
        run(f"Installing {TORCH} ({torch})", [*pip, "install", "--no-compile", *torch_arguments(torch)])
    rest = VENV / "without-llama.lock"
    rest.write_text(without_package(LOCK.read_text(encoding="utf-8"), LLAMA), encoding="utf-8")
    locked = [*pip, "install", "--no-compile", "--no-deps", "--require-hashes", "-r", str(rest)]
    run("Installing the pinned packages", locked)
    run("Compiling them to bytecode", [str(PYTHON), "-c", COMPILE])
    run("Installing llama-cpp-python", [*pip, "install", "--no-deps", "--force-reinstall", str(wheel)])
    run("Installing gladstone", [*pip, "install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)])
    STAMP.write_text(key, encoding="utf-8")
    print(f"Set-up done in {time.monotonic() - begin_s:.0f} s.", file=sys.stderr)


def stamp(torch: str, variants: tuple[str, ...]) -> str:
    """Changes with the lock file, this script, pyproject.toml, the Python, the kind of torch and the back ends."""
    digest = hashlib.sha256()
    for path in (LOCK, Path(__file__), ROOT / "pyproject.toml"):
        digest.update(path.read_bytes())
    cpu = ",".join(variants) or "portable"
    return f"{digest.hexdigest()} {platform.python_version()} {platform.machine()} {torch} {cpu}\n"


def check_tools() -> None:
    """Python, its venv module and a C++ compiler, before anything is downloaded."""
    if sys.version_info < (3, 11):  # noqa: UP036
        raise SetUpError(f"Python {platform.python_version()} is too old: install Python 3.11 or newer.")
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        raise SetUpError("Python's venv module is missing: apt install python3-venv.") from None
    compilers = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    if not any(name and shutil.which(name) for name in compilers):
        raise SetUpError("no C++ compiler found: apt install g++ (macOS: xcode-select --install).")


def source_archive(pip: list[str]) -> Path:
    """The source archive of llama-cpp-python in the user's cache; the export stage takes its converter from it."""
    version, hashes = locked_package(LLAMA)
    archive = cache() / "llama.cpp" / f"llama_cpp_python-{version}.tar.gz"
    if archive.is_file() and sha256(archive) in hashes:
        return archive
    work = archive.parent / f".download-{os.getpid()}.partial"
    try:
        command = [*pip, "download", "--no-deps", "--no-binary", LLAMA, "--dest", str(work), f"{LLAMA}=={version}"]
        run(f"Fetching {LLAMA} {version} (77 MB)", command)
        found = next(work.glob("*.tar.gz"))
        if sha256(found) not in hashes:
            raise SetUpError(f"the archive of {LLAMA} {version} does not have the sha256 of {LOCK.name}.")
        found.replace(archive)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return archive


def llama_wheel(pip: list[str], archive: Path, variants: tuple[str, ...] = ()) -> Path:
    """A wheel built from the archive, once for this Python and these flags: portable, or with several back ends."""
    several = f" {SEVERAL_ARGS}" if variants else ""
    flags = f"{CMAKE_ARGS}{several} {','.join(variants)}".strip()
    digest = hashlib.sha256(flags.encode() + WITHOUT_COMMON.read_bytes()).hexdigest()[:8]
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}-{platform.machine()}"
    folder = cache() / "wheels" / f"{archive.name.removesuffix('.tar.gz')}-{tag}-{digest}"
    built = next(folder.glob("*.whl"), None)
    if built is not None:
        return built
    work = folder.with_name(f".{folder.name}-{os.getpid()}.partial")
    include = shlex.quote(f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={WITHOUT_COMMON.as_posix()}")
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1)
    arguments = f"{CMAKE_ARGS}{several} {include}"
    settings = {"CMAKE_ARGS": arguments, "CMAKE_BUILD_PARALLEL_LEVEL": jobs, "FORCE_CMAKE": "1"}
    what = f"with {len(variants)} back ends (5 to 10" if variants else "portable (2 to 4"
    try:
        source = with_variants(archive, work / "source", variants) if variants else archive
        command = [*pip, "wheel", "--no-deps", "--no-cache-dir", "--wheel-dir", str(work / "wheel"), str(source)]
        run(f"Building llama-cpp-python, {what} minutes on two cores, once)", command, settings)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        (work / "wheel").replace(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return next(folder.glob("*.whl"))


def with_variants(archive: Path, folder: Path, variants: tuple[str, ...]) -> Path:
    """The archive's sources, unpacked, with only these of llama.cpp's x86 back ends in the list of what is built.

    Raises SetUpError if the list is not where it is expected.
    """
    folder.mkdir(parents=True)
    with tarfile.open(archive) as packed:
        if hasattr(tarfile, "data_filter"):  # not in the first versions of 3.11; the archive's hash is the lock file's
            packed.extraction_filter = tarfile.data_filter
        packed.extractall(folder)
    sources = next(folder.iterdir())
    path = sources / "vendor" / "llama.cpp" / "ggml" / "src" / "CMakeLists.txt"
    text = path.read_text(encoding="utf-8")
    listed = set(re.findall(VARIANT_LINE, text))
    missing = [variant for variant in variants if variant not in listed]
    if missing:
        raise SetUpError(f"the sources of {LLAMA} list no back end {', '.join(missing)}.")
    left_out = X86_VARIANTS - set(variants)
    path.write_text(re.sub(VARIANT_LINE, lambda line: "" if line[1] in left_out else line[0], text), encoding="utf-8")
    return sources


def torch_arguments(torch: str) -> list[str]:
    """What to ask pip for; torch brings its own dependencies, which the lock file then pins."""
    if torch == "cuda":
        return [TORCH]
    local = os.environ.get("GLADSTONE_TORCH_INDEX")  # where CPU wheels are kept, for pip setups that need one
    return [TORCH, *(["--index-url", local] if local else [])]


def has_torch(torch: str) -> bool:
    """True if `.venv` holds the wanted torch of the wanted kind."""
    code = "import torch; print(torch.__version__, torch.version.cuda)"
    done = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, check=False)
    version, _, cuda = done.stdout.strip().partition(" ")
    # a CUDA build works on a machine without a GPU too, so for "cpu" either will do
    return version.partition("+")[0] == TORCH.partition("==")[2] and (torch == "cpu" or cuda != "None")


def locked_package(name: str) -> tuple[str, set[str]]:
    """Version and sha256 hashes of a package in the lock file."""
    block = re.search(rf"(?m)^{re.escape(name)}==(\S+)(?:.*\n)(?:    --hash=.*\n?)+", LOCK.read_text(encoding="utf-8"))
    if block is None:
        raise SetUpError(f"{LOCK.name} does not pin {name}.")
    return block[1], set(re.findall(r"sha256:([0-9a-f]{64})", block[0]))


def without_package(lock: str, name: str) -> str:
    """The lock file without one package's lines."""
    return re.sub(rf"(?m)^{re.escape(name)}==\S+(?:.*\n)(?:    --hash=.*\n?)+", "", lock)


def run(name: str, command: list[str], settings: dict[str, str] | None = None) -> None:
    """Run a step with a line that shows its time. Raises SetUpError with the cause in one line."""
    stop = threading.Event()
    begin_s = time.monotonic()
    live = sys.stderr.isatty()
    ticker = threading.Thread(target=tick, args=(name, stop, 1.0 if live else 30.0, live), daemon=True)
    print(f"{name} …", end="" if live else "\n", file=sys.stderr, flush=True)
    ticker.start()
    try:
        with LOG.open("a", encoding="utf-8") as log:
            done = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | (settings or {}), check=False
            )
    finally:
        stop.set()
        ticker.join()
    line = f"{name}: {time.monotonic() - begin_s:.0f} s"
    print(f"\r{line:100}" if live else line, file=sys.stderr, flush=True)
    if done.returncode:
        raise SetUpError(f"{name} failed: {cause()}")


def tick(name: str, stop: threading.Event, interval_s: float, live: bool) -> None:
    """Renew the line (on a terminal) or add one now and then (in a log)."""
    begin_s = time.monotonic()
    while not stop.wait(interval_s):
        line = f"{name} … {time.monotonic() - begin_s:.0f} s"
        print(f"\r{line}" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)


def cause() -> str:
    """One line for the commonest causes, else the log's last error line and where the whole log is."""
    text = LOG.read_text(encoding="utf-8", errors="replace")
    tail = text[-20_000:]
    offline = (
        "Temporary failure in name resolution",
        "Name or service not known",
        "Network is unreachable",
        "Failed to establish a new connection",
        "No matching distribution found",
    )
    if "No space left on device" in tail:
        return "the disk is full: 6 GB are needed."
    if any(sign in tail for sign in offline):
        return "the package registry cannot be reached: connect to a network, or point pip at a mirror (pip config)."
    if "CMAKE_CXX_COMPILER" in tail or "No CMAKE_C_COMPILER" in tail:
        return "the C++ compiler does not work: apt install g++ (macOS: xcode-select --install)."
    errors = [line.strip() for line in tail.splitlines() if "error" in line.lower()]
    return f"{errors[-1] if errors else 'no reason given'} (log: {LOG.relative_to(ROOT)})"


def cache() -> Path:
    """The user's cache folder, as `gladstone.machine.host.cache_dir` finds it."""
    own = os.environ.get("GLADSTONE_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gladstone"


def sha256(path: Path) -> str:
    """Hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
