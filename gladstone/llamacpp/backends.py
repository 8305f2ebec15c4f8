"""The devices of llama.cpp, and which of its processor back ends to use where it was built with several.

llama.cpp's own choice goes by what the processor claims, and looks for libraries in the working directory too. Here
each back end that could work is tried in a child process first; the fastest that computes the right numbers is taken,
and remembered for this processor and these files.
"""

import ctypes
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gladstone.artifacts import sha256_file
from gladstone.errors import UnsupportedError
from gladstone.machine.host import cache_dir, processor_flags, processor_name
from gladstone.machine.measurement_cache import add_finding, read_findings

KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accel"}  # ggml-backend.h: ggml_backend_dev_type
FORCED = "GLADSTONE_CPU_BACKEND"  # an environment variable with the file to use
PROBE_TIMEOUT_S = 30.0
LARGEST_DIFFERENCE = 0.05  # between two right answers, of the largest logit: kernels round differently
CLEARLY_FASTER = 0.9  # so much less time than the back end with more instructions, whose times are as noisy
GPU_LIBRARIES = ("cuda", "hip", "musa", "vulkan", "metal", "sycl", "opencl")
LIBRARY_NAME = re.compile(r"(?:lib)?ggml-cpu(?:-([\w.]+?))?\.(?:so|dll|dylib)")

_loaded: list[Path] = []
_AVX2 = ("avx2", "fma", "f16c", "bmi2")
_AVX512 = (*_AVX2, "avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw")
_ICELAKE = (*_AVX512, "avx512vbmi", "avx512_vnni")
# what llama.cpp compiles into each (ggml/src/CMakeLists.txt), as Linux names the flags
VARIANTS: dict[str, tuple[str, ...]] = {
    "x64": (),
    "sse42": ("sse4_2",),
    "sandybridge": ("sse4_2", "avx"),
    "ivybridge": ("sse4_2", "avx", "f16c"),
    "piledriver": ("sse4_2", "avx", "f16c", "fma"),
    "haswell": _AVX2,
    "alderlake": (*_AVX2, "avx_vnni"),
    "skylakex": _AVX512,
    "cannonlake": (*_AVX512, "avx512vbmi"),
    "cascadelake": (*_AVX512, "avx512_vnni"),
    "icelake": _ICELAKE,
    "cooperlake": (*_AVX512, "avx512_vnni", "avx512_bf16"),
    "zen4": (*_ICELAKE, "avx512_bf16"),
    "sapphirerapids": (*_ICELAKE, "avx512_bf16", "amx_tile", "amx_int8"),
}


@dataclass(frozen=True)
class Device:
    """What llama.cpp can compute on: `kind` is cpu, gpu, igpu (a processor's own graphics), accel or other."""

    name: str
    description: str
    kind: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Probe:
    """What a child process found: logits of a small model and the time they took, or why there are none."""

    logits: tuple[float, ...] = ()
    time_s: float = 0.0
    failure: str = ""


def read_devices() -> tuple[Device, ...]:
    """All devices that the installed llama.cpp sees, with the memory that is free at this moment."""
    from gladstone.llamacpp.model import library

    lib = bound(library())
    return tuple(_device(lib, lib.ggml_backend_dev_get(number)) for number in range(lib.ggml_backend_dev_count()))


def load_best_backend(module: Any) -> Path | None:
    """Load the processor back end into llama.cpp, before anything else of it is used; None if it is built in.

    `module` is llama-cpp-python's low-level module. The environment variable GLADSTONE_CPU_BACKEND names a file to use
    without any trial. Raises UnsupportedError if no back end works.
    """
    lib = bound(module)
    forced = os.environ.get(FORCED)
    if not forced and lib.ggml_backend_reg_count():
        return None
    folder = Path(module.__file__).parent / "lib"
    best = Path(forced) if forced else _remembered(backend_files(folder))
    _load(lib, best)
    _loaded.append(best)
    for kind in GPU_LIBRARIES:
        for path in sorted(folder.glob(f"*ggml-{kind}.*")):
            lib.ggml_backend_load(os.fsencode(path))  # one whose driver is missing is not loaded, and not missed
    return best


def loaded_backend() -> Path | None:
    """The back end that `load_best_backend` has loaded; None if it is built in."""
    return _loaded[-1] if _loaded else None


def backend_mark() -> str:
    """Tells the back end in use apart from every other one, as a key for what was measured with it."""
    folder = installed_folder()
    path = loaded_backend() or next(iter(backend_files(folder) if folder else ()), None)
    return fingerprint(path) if path else "built in"


def backend_files(folder: Path) -> tuple[Path, ...]:
    """The processor back ends in llama.cpp's folder, the one with the most instructions first."""
    found = {path for path in folder.glob("*ggml-cpu*") if LIBRARY_NAME.fullmatch(path.name)}
    return tuple(sorted(found, key=lambda path: (-_rank(path), path.name)))


def installed_folder() -> Path | None:
    """Where the installed llama.cpp's libraries are; nothing is imported."""
    spec = importlib.util.find_spec("llama_cpp")
    return Path(spec.origin).parent / "lib" if spec and spec.origin else None


def fingerprint(path: Path) -> str:
    """A back end's name and contents, short."""
    return f"{path.name} {sha256_file(path)[:16]}"


def compiler_of(path: Path) -> str:
    """The compiler as it signed the library, 'gcc 12.2.0' or 'clang 17.0.6'; '' if it did not."""
    data = path.read_bytes()
    found = re.search(rb"GCC: \([^)\0]*\) (\d+\.\d+\.\d+)", data)
    clang = re.search(rb"clang version (\d+\.\d+\.\d+)", data)
    if clang:  # it signs beside the gcc whose start-up files it links
        return f"clang {clang[1].decode()}"
    return f"gcc {found[1].decode()}" if found else ""


def choose_backend(
    files: Sequence[Path], flags: frozenset[str], probe: Callable[[Path], Probe]
) -> tuple[Path, dict[str, str]]:
    """The fastest back end that gives the right answer, and what was found of each. Raises UnsupportedError for none.

    The most portable one that works says what is right. Where two are about as fast, the one with more instructions
    wins; where the system tells no flags, every one is tried.
    """
    verdicts = {path.name: "needs instructions that are not here" for path in files}
    possible = [path for path in files if not flags or set(_needed(path)) <= flags]
    works: list[tuple[Path, Probe]] = []
    for path in sorted(possible, key=lambda each: (_rank(each), each.name)):
        result = probe(path)
        wrong = works and _difference(result, works[0][1]) > LARGEST_DIFFERENCE
        verdicts[path.name] = result.failure or ("computes wrong numbers" if wrong else f"{1e3 * result.time_s:.1f} ms")
        if not result.failure and not wrong:
            works.append((path, result))
    if not works:
        told = "; ".join(f"{name}: {verdict}" for name, verdict in verdicts.items())
        raise UnsupportedError(f"no processor back end of llama.cpp works here ({told or 'there is none'}).")
    best = works[-1]
    for candidate in reversed(works[:-1]):
        if candidate[1].time_s < CLEARLY_FASTER * best[1].time_s:
            best = candidate
    return best[0], verdicts


def probe_backend(path: Path, timeout_s: float = PROBE_TIMEOUT_S) -> Probe:
    """Let a child process load the back end and compute a small model with it: it may crash, hang or be no library."""
    command = [sys.executable, "-P", "-m", "gladstone.llamacpp.backend_probe"]
    environment = os.environ | {FORCED: str(path)}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Probe(failure=f"gave no answer in {timeout_s:g} s")
    if done.returncode < 0:
        return Probe(failure=f"died of signal {-done.returncode}")
    lines = done.stdout.strip().splitlines()
    try:
        said = json.loads(lines[-1]) if lines else {}
        return Probe(tuple(map(float, said["logits"])), float(said["time_s"]))
    except (ValueError, KeyError, TypeError):
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return Probe(failure=f"does not load: {reason[0][:200]}")


def bound(module: Any) -> Any:
    """ggml's calls on llama.cpp's own library, with their types.

    The binding's package knows them only of a second copy of the library, which has a registry of its own.
    """
    lib = module._lib
    handle = ctypes.c_void_p
    size = ctypes.POINTER(ctypes.c_size_t)
    for name, arguments, result in (
        ("ggml_backend_dev_count", [], ctypes.c_size_t),
        ("ggml_backend_dev_get", [ctypes.c_size_t], handle),
        ("ggml_backend_dev_name", [handle], ctypes.c_char_p),
        ("ggml_backend_dev_description", [handle], ctypes.c_char_p),
        ("ggml_backend_dev_type", [handle], ctypes.c_int),
        ("ggml_backend_dev_memory", [handle, size, size], None),
        ("ggml_backend_load", [ctypes.c_char_p], handle),
        ("ggml_backend_reg_count", [], ctypes.c_size_t),
    ):
        call = getattr(lib, name)
        call.argtypes, call.restype = arguments, result
    return lib


def _remembered(files: Sequence[Path]) -> Path:
    """The choice for this processor and these files, made once."""
    flags = processor_flags()
    store = cache_dir() / "backends.json"
    marks = [processor_name(), *sorted(flags), *map(fingerprint, files)]
    key = hashlib.sha256("\n".join(marks).encode()).hexdigest()
    named = read_findings(store).get(key)
    chosen = next((path for path in files if isinstance(named, dict) and path.name == named.get("backend")), None)
    if chosen is None:
        chosen, verdicts = choose_backend(files, flags, probe_backend)
        add_finding(store, key, {"backend": chosen.name, "tried": verdicts})
    return chosen


def _load(lib: Any, path: Path) -> None:
    if not lib.ggml_backend_load(os.fsencode(path)):
        raise UnsupportedError(f"{path}: llama.cpp cannot load it as a back end for this processor.")


def _needed(path: Path) -> tuple[str, ...]:
    return VARIANTS.get(_variant(path), ())


def _rank(path: Path) -> int:
    """How many instruction sets a back end uses; one that is not known here counts as the least."""
    return len(_needed(path)) if _variant(path) in VARIANTS else -1


def _variant(path: Path) -> str:
    found = LIBRARY_NAME.fullmatch(path.name)
    return (found[1] or "") if found else ""


def _difference(one: Probe, other: Probe) -> float:
    """The largest between two answers, as a share of the largest logit."""
    if len(one.logits) != len(other.logits) or not other.logits:
        return float("inf")
    largest = max(map(abs, other.logits)) or 1.0
    difference = max(abs(mine - yours) for mine, yours in zip(one.logits, other.logits, strict=True)) / largest
    return difference if difference == difference else float("inf")  # noqa: PLR0124 - not a number


def _device(lib: Any, handle: int) -> Device:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    lib.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
    name, description = lib.ggml_backend_dev_name(handle), lib.ggml_backend_dev_description(handle)
    kind = KINDS.get(lib.ggml_backend_dev_type(handle), "other")
    return Device(_text(name), _text(description), kind, free.value, total.value)


def _text(name: bytes | None) -> str:
    return (name or b"").decode("utf-8", "replace").strip()
