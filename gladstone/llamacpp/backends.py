"""Choose among the CPU backends of llama.cpp, if it was built with several.

llama.cpp itself chooses by the CPU's feature flags, and also looks for libraries in the working directory. Here each
backend that could work is first probed in a child process; the fastest one that computes correct logits is used, and
the choice is cached for this CPU and these files.
"""

import ctypes
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gladstone.artifacts import sha256_file
from gladstone.errors import GladstoneError, UnsupportedError
from gladstone.machine.host import cache_dir, cpu_flags, cpu_name
from gladstone.machine.measurement_cache import read_measurements, store_measurement
from gladstone.machine.packages import llamacpp_folder
from gladstone.process.child import ChildOptions, exit_name, start_child

FORCED = "GLADSTONE_CPU_BACKEND"  # environment variable with the path of the backend to use
PROBE_TIMEOUT_S = 30.0
LARGEST_DIFFERENCE = 0.05  # between correct logits, as a share of the largest: kernels round differently
CLEARLY_FASTER = 0.9  # of the time of the backend with more instructions: timings are noisy
GPU_LIBRARIES = ("cuda", "hip", "musa", "vulkan", "metal", "sycl", "opencl")
LIBRARY_NAME = re.compile(r"(?:lib)?ggml-cpu(?:-([\w.]+?))?\.(?:so|dll|dylib)")

_loaded: list[Path] = []
_AVX2 = ("avx2", "fma", "f16c", "bmi2")
_AVX512 = (*_AVX2, "avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw")
_ICELAKE = (*_AVX512, "avx512vbmi", "avx512_vnni")
# CPU flags that each variant needs (ggml/src/CMakeLists.txt), by Linux's names
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
class Probe:
    """The result of a probe: logits of a small model and the seconds that they took, or why it failed."""

    logits: tuple[float, ...] = ()
    time_s: float = 0.0
    failure: str = ""


def load_best_backend(module: Any) -> Path | None:
    """Load the best CPU backend into llama.cpp, before its first use; returns its path, None if it is built in.

    `module` is llama-cpp-python's low-level module. The environment variable GLADSTONE_CPU_BACKEND names a file to use
    without probing. Raises UnsupportedError if no backend works.
    """
    lib = with_ggml_functions(module)
    forced = os.environ.get(FORCED)
    if not forced and lib.ggml_backend_reg_count():
        return None
    folder = Path(module.__file__).parent / "lib"
    best = Path(forced) if forced else _cached_choice(backend_files(folder))
    _load(lib, best)
    _loaded.append(best)
    for kind in GPU_LIBRARIES:
        for path in sorted(folder.glob(f"*ggml-{kind}.*")):
            lib.ggml_backend_load(os.fsencode(path))  # without its driver a backend does not load, which is fine
    return best


def loaded_backend() -> Path | None:
    """The backend that `load_best_backend` has loaded; None if it is built in."""
    return _loaded[-1] if _loaded else None


def backend_id(gpu_layers: int = 0) -> str:
    """A text that identifies what computes, as a key for measurements: the CPU backend, and the layers on a GPU."""
    folder = llamacpp_folder()
    path = loaded_backend() or next(iter(backend_files(folder) if folder else ()), None)
    own = fingerprint(path) if path else "built in"
    return f"{own}, {gpu_layers} GPU layers" if gpu_layers else own


def backend_files(folder: Path) -> tuple[Path, ...]:
    """The CPU backends in llama.cpp's folder, the one with the most instruction sets first."""
    files = {path for path in folder.glob("*ggml-cpu*") if LIBRARY_NAME.fullmatch(path.name)}
    return tuple(sorted(files, key=lambda path: (-_rank(path), path.name)))


def fingerprint(path: Path) -> str:
    """A backend's file name and a short hash of its contents."""
    return f"{path.name} {sha256_file(path)[:16]}"


def compiler_of(path: Path) -> str:
    """The compiler by its signature in the library, 'gcc 12.2.0' or 'clang 17.0.6'; '' without one."""
    data = path.read_bytes()
    gcc = re.search(rb"GCC: \([^)\0]*\) (\d+\.\d+\.\d+)", data)
    clang = re.search(rb"clang version (\d+\.\d+\.\d+)", data)
    if clang:  # a clang build also has the signature of the gcc whose start-up files it links
        return f"clang {clang[1].decode()}"
    return f"gcc {gcc[1].decode()}" if gcc else ""


def choose_backend(
    files: Sequence[Path], flags: frozenset[str], probe: Callable[[Path], Probe]
) -> tuple[Path, dict[str, str]]:
    """Choose the fastest backend with correct logits; returns it and a verdict for each file.

    The most portable backend that works is the reference. Of two that are about equally fast, the one with more
    instruction sets wins. If the system reports no CPU flags, all are probed. Raises UnsupportedError if none works.
    """
    verdicts = {path.name: "needs instructions that this CPU lacks" for path in files}
    possible = [path for path in files if not flags or set(_needed(path)) <= flags]
    works: list[tuple[Path, Probe]] = []
    for path in sorted(possible, key=lambda file: (_rank(file), file.name)):
        result = probe(path)
        wrong = works and _difference(result, works[0][1]) > LARGEST_DIFFERENCE
        verdicts[path.name] = result.failure or ("computes wrong numbers" if wrong else f"{1e3 * result.time_s:.1f} ms")
        if not result.failure and not wrong:
            works.append((path, result))
    if not works:
        summary = "; ".join(f"{name}: {verdict}" for name, verdict in verdicts.items())
        raise UnsupportedError(f"no CPU backend of llama.cpp works here ({summary or 'there is none'}).")
    best = works[-1]
    for candidate in reversed(works[:-1]):
        if candidate[1].time_s < CLEARLY_FASTER * best[1].time_s:
            best = candidate
    return best[0], verdicts


def probe_backend(path: Path, timeout_s: float = PROBE_TIMEOUT_S) -> Probe:
    """Probe a backend with a small model, in a child process because it may crash, hang or not be a library."""
    options = ChildOptions(environment={FORCED: str(path)}, time_s=timeout_s)
    with start_child("gladstone.llamacpp.backend_probe", {}, options) as child:
        try:
            answers = [event["result"] for event in child.events() if "result" in event]
        except GladstoneError as error:
            return Probe(failure=f"does not load: {str(error)[:200]}")
        code = child.wait()
        log = child.log().strip().splitlines()
    if child.exceeded:
        return Probe(failure=f"gave no answer in {timeout_s:g} s")
    if code < 0:
        return Probe(failure=f"crashed with {exit_name(code)}")
    if code or not answers:
        return Probe(failure=f"does not load: {(log[-1:] or [exit_name(code)])[0][:200]}")
    return Probe(tuple(map(float, answers[0]["logits"])), float(answers[0]["time_s"]))


def with_ggml_functions(module: Any) -> Any:
    """llama.cpp's own library with the signatures of ggml's functions.

    The Python package binds these functions only in a second copy of ggml, which has a separate backend registry.
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
        ("ggml_backend_dev_get_props", [handle, handle], None),
        ("ggml_backend_dev_backend_reg", [handle], handle),
        ("ggml_backend_reg_name", [handle], ctypes.c_char_p),
        ("ggml_backend_load", [ctypes.c_char_p], handle),
        ("ggml_backend_reg_count", [], ctypes.c_size_t),
    ):
        call = getattr(lib, name)
        call.argtypes, call.restype = arguments, result
    return lib


def _cached_choice(files: Sequence[Path]) -> Path:
    """The cached choice for this CPU and these files; probes if there is none."""
    flags = cpu_flags()
    store = cache_dir() / "backends.json"
    marks = [cpu_name(), *sorted(flags), *map(fingerprint, files)]
    key = hashlib.sha256("\n".join(marks).encode()).hexdigest()
    named = read_measurements(store).get(key)
    chosen = next((path for path in files if isinstance(named, dict) and path.name == named.get("backend")), None)
    if chosen is None:
        chosen, verdicts = choose_backend(files, flags, probe_backend)
        store_measurement(store, key, {"backend": chosen.name, "tried": verdicts})
    return chosen


def _load(lib: Any, path: Path) -> None:
    if not lib.ggml_backend_load(os.fsencode(path)):
        raise UnsupportedError(f"{path}: llama.cpp cannot load it as a backend for this CPU.")


def _needed(path: Path) -> tuple[str, ...]:
    return VARIANTS.get(_variant(path), ())


def _rank(path: Path) -> int:
    """The number of instruction sets that a backend uses; -1 for an unknown variant."""
    return len(_needed(path)) if _variant(path) in VARIANTS else -1


def _variant(path: Path) -> str:
    match = LIBRARY_NAME.fullmatch(path.name)
    return (match[1] or "") if match else ""


def _difference(one: Probe, other: Probe) -> float:
    """The largest difference of two results' logits, as a share of the largest logit; Inf if not comparable."""
    if len(one.logits) != len(other.logits) or not other.logits:
        return float("inf")
    largest = max(map(abs, other.logits)) or 1.0
    difference = max(abs(mine - yours) for mine, yours in zip(one.logits, other.logits, strict=True)) / largest
    return difference if difference == difference else float("inf")  # noqa: PLR0124 - NaN
