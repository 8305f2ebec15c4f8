"""What `benchmarks.gpu_check` needs beside torch, as a folder that a machine without a network installs from.

    python -m benchmarks.gpu_check.wheels FOLDER [--python 3.12] [--cuda 13.0] [--have NAME … or FILE]

Downloads the wheels with pip, in the versions of requirements/cpu.lock, for Linux on x86-64. `--have` names what the
other machine has already: packages, or a file as `pip list --format=freeze` prints it there. Of bitsandbytes only the
library for that CUDA is kept, of unsloth all but its studio. The wheel of llama-cpp-python and llama.cpp's converter
are taken from this machine's cache, where `make set-up` and the first export leave them. Prints a table of sizes, and
the command that installs the folder.
"""

import argparse
import base64
import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from gladstone.machine.host import cache_dir

ROOT = Path(__file__).resolve().parents[2]
LIMIT_BYTES = 64 << 20
# what a training, an export and its proof import beside torch and its own dependencies
NEEDED = (
    "absl-py", "accelerate", "aiohappyeyeballs", "aiohttp", "aiosignal", "annotated-doc", "annotated-types", "anyio",
    "attrs", "bitsandbytes", "certifi", "charset-normalizer", "click", "colorama", "contourpy", "cut-cross-entropy",
    "cycler", "datasets", "defusedxml", "dill", "diskcache", "docstring-parser", "einops", "fonttools", "frozenlist",
    "gguf", "h11", "hf-transfer", "hf-xet", "httpcore", "httpx", "huggingface-hub", "idna", "joblib", "json5",
    "kiwisolver", "llama-cpp-python", "lxml", "markdown-it-py", "matplotlib", "mdurl", "msgspec", "multidict",
    "multiprocess", "nest-asyncio", "nltk", "numpy", "packaging", "pandas", "peft", "pillow", "portalocker",
    "propcache", "protobuf", "psutil", "py3langid", "pyarrow", "pydantic", "pydantic-core", "pygments", "pyparsing",
    "python-dateutil", "pyyaml", "rapidfuzz", "regex", "requests", "rich", "rouge-score", "sacrebleu", "safetensors",
    "sentencepiece", "shellingham", "six", "structlog", "tabulate", "tokenizers", "torchao", "tqdm", "transformers",
    "trl", "typeguard", "typer", "typing-inspection", "tyro", "tzdata", "unsloth", "unsloth-zoo", "urllib3", "wcwidth",
    "wheel", "xxhash", "yarl",
)  # fmt: skip
PLATFORMS = ("manylinux1", "manylinux2010", "manylinux2014", *(f"manylinux_2_{minor}" for minor in range(17, 40)))


def main() -> None:
    """Parse, collect, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--python", default="3.12", help="version there (default 3.12)")
    parser.add_argument("--cuda", default="13.0", help="CUDA of the torch there (default 13.0)")
    parser.add_argument("--have", nargs="+", default=[], help="what is there already: names of packages, or a file")
    options = parser.parse_args()
    if options.folder.exists():
        parser.error(f"{options.folder}: exists already")
    options.folder.mkdir(parents=True)
    have = there(options.have)
    for name in NEEDED:
        if name not in have:
            collect(name, options.folder, options.python)
    thin(options.folder, "bitsandbytes", other_devices(options.cuda.replace(".", "")))
    thin(options.folder, "unsloth-", lambda name: name.startswith(("studio/", "unsloth_cli/")))
    copy_converter(options.folder)
    print(table(options.folder))


def there(said: Sequence[str]) -> set[str]:
    """The normalised names of packages that are installed there."""
    lines: list[str] = []
    for each in said:
        lines += Path(each).read_text(encoding="utf-8").splitlines() if Path(each).is_file() else [each]
    return {normalised(re.split(r"[\s=<>@;]", line.strip())[0]) for line in lines}


def normalised(name: str) -> str:
    """A package's name as the registry writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(name: str, python: str) -> str:
    """The requirement as the lock file pins it for that Python."""
    lines = (ROOT / "requirements" / "cpu.lock").read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if re.match(rf"{re.escape(name)}==", line)]
    newer = tuple(map(int, python.split("."))) >= (3, 12)
    fitting = [line for line in found if "python_full" not in line or ("python_full_version >=" in line) == newer]
    if not fitting:
        sys.exit(f"{name} is not in requirements/cpu.lock")
    return re.split(r"[\s;\\]", fitting[0])[0]


def collect(name: str, folder: Path, python: str) -> None:
    """Put one wheel into the folder."""
    if name == "llama-cpp-python":
        built = sorted((cache_dir() / "wheels").glob("llama_cpp_python-*/*.whl"))
        if not built:
            sys.exit("llama-cpp-python is not built here: `make set-up` builds and keeps its wheel")
        shutil.copy(built[-1], folder)
        return
    pip, requirement = [sys.executable, "-m", "pip"], pinned(name, python)
    named = [part for platform in PLATFORMS for part in ("--platform", f"{platform}_x86_64")]
    download = [*pip, "download", "--only-binary=:all:", "--python-version", python, "--implementation", "cp", *named]
    for command in (download, [*pip, "wheel"]):  # a package that comes as source only is built
        arguments = ["--quiet", "--no-deps", "--dest" if command is download else "--wheel-dir", str(folder)]
        done = subprocess.run([*command, *arguments, requirement], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
    made = list(folder.glob(f"{name.replace('-', '_')}-*.whl"))
    if done.returncode or (command is not download and not all(path.stem.endswith("-none-any") for path in made)):
        sys.exit(f"{requirement} cannot be had for Python {python}: {done.stderr.strip()[-300:]}")


def other_devices(cuda: str) -> Callable[[str], bool]:
    """Which files of bitsandbytes are libraries for something else than this CUDA."""
    kept = (f"libbitsandbytes_cuda{cuda}.", "libbitsandbytes_cpu.")
    return lambda name: Path(name).name.startswith("libbitsandbytes_") and not Path(name).name.startswith(kept)


def thin(folder: Path, start: str, unneeded: Callable[[str], bool]) -> None:
    """Write a wheel anew without some of its files; its record lists what is left."""
    for path in folder.glob(f"{start}*.whl"):
        whole = path.rename(path.with_suffix(".whole"))
        with zipfile.ZipFile(whole) as before, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as after:
            record = next(name for name in before.namelist() if name.endswith(".dist-info/RECORD"))
            lines = []
            for name in before.namelist():
                if name != record and not name.endswith("/") and not unneeded(name):
                    data = before.read(name)
                    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                    lines.append(f'"{name}",sha256={digest},{len(data)}')
                    after.writestr(before.getinfo(name), data, zipfile.ZIP_DEFLATED)
            after.writestr(record, "\n".join([*lines, f"{record},,"]) + "\n")
        whole.unlink()


def copy_converter(folder: Path) -> None:
    """llama.cpp's converter, where a cache in this folder has it."""
    found = sorted((cache_dir() / "llama.cpp").glob("converter-*"))
    if not found:
        sys.exit("llama.cpp's converter is not here: `gladstone export setup` fetches it")
    target = folder / "cache" / "llama.cpp" / found[-1].name
    shutil.copytree(found[-1], target, ignore=shutil.ignore_patterns("__pycache__"))


def table(folder: Path) -> str:
    """Names and sizes, their sum, and how the folder is installed."""
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.whl")}
    sizes["cache/ (llama.cpp's converter)"] = sum(
        path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file()
    )
    rows = [f"| {name} | {size / 2**20:.1f} |" for name, size in sorted(sizes.items(), key=lambda each: -each[1])]
    total = sum(sizes.values())
    verdict = "at most 64 MiB" if total <= LIMIT_BYTES else "more than 64 MiB: name more with --have"
    return "\n".join([
        "| wheel | MiB |", "|---|--:|", *rows, f"| all {len(sizes)}: {verdict} | {total / 2**20:.1f} |", "",
        f"there: python3 -m pip install --no-index --no-deps --find-links {folder} {folder}/*.whl",
        f"       GLADSTONE_CACHE={folder}/cache python3 -m benchmarks.gpu_check",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
