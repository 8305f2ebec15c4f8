"""Diagnosis of a machine: unused instruction sets, known faults, the build that its GPU needs.

Pure: every function takes facts and returns text, so that any machine can be tested on any other.
"""

from dataclasses import dataclass, field

from gladstone.llamacpp.devices import Device
from gladstone.machine.host import Cores, readable_bytes
from gladstone.machine.other_work import NOTICEABLE

# name in llama.cpp's system info: the CPU flag as Linux names it
INSTRUCTIONS = {
    "AVX": "avx", "AVX2": "avx2", "F16C": "f16c", "FMA": "fma", "BMI2": "bmi2", "AVX_VNNI": "avx_vnni",
    "AVX512": "avx512f", "AVX512_VBMI": "avx512_vbmi", "AVX512_VNNI": "avx512_vnni", "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8", "NEON": "asimd", "ARM_FMA": "asimd", "FP16_VA": "asimdhp", "DOTPROD": "asimddp",
    "MATMUL_INT8": "i8mm", "SVE": "sve", "SME": "sme",
}  # fmt: skip
LINUX_NAMES = {"avx512_vbmi": "avx512vbmi"}  # flags that the kernel spells differently
NEEDED = ("avx2", "fma", "f16c", "bmi2")  # flags that the portable build requires
# measured on one CPU with AVX-512: a portable build against one that uses it
AVX512_COST = "decode 2-7 % slower; prefill as fast with Q4_1, 1.25 times slower with Q8_0, 1.5 times with Q4_K_M"
AMX_FIXED_IN = {12: 4, 13: 3}  # gcc's first minor version with correct AMX code, by major version; all from 14 on
BUSY_LOAD = 0.5
MANY_SPINS = 5000  # longer than a barrier takes on a quiet machine
VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}


@dataclass(frozen=True)
class Tools:
    """What a build for a GPU needs: GPUs that `nvidia-smi` and Vulkan report, and the installed programs.

    `controllers` are the vendors of graphics hardware on the bus, with or without a driver.
    """

    nvidia: tuple[tuple[str, str], ...] = ()  # name and compute capability
    vulkan: tuple[str, ...] = ()
    controllers: tuple[str, ...] = ()
    nvcc: bool = False
    glslc: bool = False
    metal: bool = False


@dataclass(frozen=True)
class Facts:
    """What `runtime doctor` measured or read; None or empty where it could not."""

    processor: str
    flags: frozenset[str]
    cores: Cores
    version: str  # of llama-cpp-python
    used: frozenset[str]  # instruction sets of the build, as llama.cpp names them
    compiler: str = ""  # of the backend: "gcc 12.2.0"
    backend: str = ""  # the file that computes
    gpus: tuple[Device, ...] = ()  # that llama.cpp sees
    memory_bytes: int = 0
    free_bytes: int = 0
    swap_bytes: int = 0
    small_pages: bool = False  # Linux with huge pages turned off
    load: float = 0.0
    others: float = 0.0  # processors that other work took while the speed was measured
    environment: dict[str, str] = field(default_factory=dict)
    tools: Tools = Tools()
    crash: str = ""  # how the child that measured the speed died


def instructions_used(system: str) -> frozenset[str]:
    """The instruction sets in llama.cpp's system info, such as 'CPU : AVX = 1 | AVX2 = 1 | OPENMP = 1 | '."""
    pairs = (part.rpartition(":")[2].partition("=") for part in system.split("|"))
    return frozenset(name.strip() for name, _, value in pairs if value.strip() == "1" and name.strip() in INSTRUCTIONS)


def instructions_unused(facts: Facts) -> tuple[str, ...]:
    """Instruction sets of the CPU that the build does not use, in llama.cpp's names; () if the build is unknown."""
    if not facts.used:
        return ()
    needless = {"AVX_VNNI"} if "AVX512_VNNI" in facts.used else set()  # the same for narrower registers
    names = [name for name, flag in INSTRUCTIONS.items() if _has(facts, flag)]
    return tuple(name for name in names if name not in facts.used and name not in needless)


def idle_cost(unused: tuple[str, ...]) -> str:
    """The measured cost of unused instruction sets, and the fix; '' if there are none."""
    if "AVX512" in unused:
        return (
            f"without them {AVX512_COST} (measured on one CPU); `make set-up CPU=all` builds a llama.cpp that uses them"
        )
    if unused == ("AMX_INT8",):
        return "left out on purpose: some compilers generate AMX code that crashes"
    return "cost not measured; `make set-up CPU=all` builds a llama.cpp that uses them" if unused else ""


def known_faults(facts: Facts) -> list[str]:
    """Everything that is wrong with this machine or slows it down, each with its fix."""
    checks = (
        _crash,
        _too_old,
        _broken_amx,
        _sleeping_threads,
        _spinning_threads,
        _too_many_threads,
        _quota,
        _translated,
        _small_pages,
        _swap,
        _busy,
    )
    return [text for check in checks for text in check(facts)]


def gpu_build(facts: Facts) -> list[str]:
    """The commands that build llama-cpp-python for this machine's GPU, or a line that says there is none."""
    tools = facts.tools
    if facts.gpus:
        return [f"llama.cpp uses {', '.join(gpu.description for gpu in facts.gpus)} already."]
    if tools.metal:
        return [_install("-DGGML_METAL=ON", facts.version)]
    if tools.nvidia:
        architectures = sorted({capability.replace(".", "") for _, capability in tools.nvidia})
        first = [] if tools.nvcc else ["first install the CUDA toolkit (nvcc), no newer than the driver"]
        return [*first, _install(f"-DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES={';'.join(architectures)}", facts.version)]
    if tools.vulkan:
        first = [] if tools.glslc else ["first install Vulkan's headers and glslc: apt install libvulkan-dev glslc"]
        return [*first, _install("-DGGML_VULKAN=ON", facts.version)]
    if tools.controllers:
        names = ", ".join(tools.controllers)
        return [f"graphics hardware of {names} is present, but nvidia-smi and vulkaninfo see none: install its driver."]
    return ["no GPU found: the CPU build is the right one."]


def _install(flags: str, version: str) -> str:
    native = "" if "GGML_NATIVE" in flags else "-DGGML_NATIVE=OFF "
    flags = f"{native}-DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF {flags}"
    return (
        f'CMAKE_ARGS="{flags}" pip install --force-reinstall --no-deps --no-cache-dir '
        f"--no-binary llama-cpp-python llama-cpp-python=={version}"
    )


def _has(facts: Facts, flag: str) -> bool:
    return flag in facts.flags or LINUX_NAMES.get(flag, flag) in facts.flags


def _crash(facts: Facts) -> list[str]:
    if not facts.crash:
        return []
    return [f"measuring the speed ended with {facts.crash}: `make set-up` builds a llama.cpp for any recent processor."]


def _too_old(facts: Facts) -> list[str]:
    if "sse2" not in facts.flags:  # not x86, or the flags are unknown
        return []
    missing = [flag for flag in NEEDED if not _has(facts, flag)]
    if not missing:
        return []
    return [
        f"the CPU lacks {', '.join(missing)}, which the portable build needs: it crashes with SIGILL. Build for "
        f"this CPU: {_install('-DGGML_NATIVE=ON', facts.version)}"
    ]


def _broken_amx(facts: Facts) -> list[str]:
    if "AMX_INT8" not in facts.used or not facts.compiler.startswith("gcc "):
        return []
    major, minor = (int(part) for part in facts.compiler.removeprefix("gcc ").split(".")[:2])
    if major >= 14 or minor >= AMX_FIXED_IN.get(major, 1 << 30):
        return []
    return [
        f"{facts.compiler} drops the stores that set up AMX (gcc bug 114098): the first prompt may crash with SIGILL. "
        "Build without it (`make set-up`), or with -mno-amx-int8, or with gcc 12.4, 13.3 or 14."
    ]


def _sleeping_threads(facts: Facts) -> list[str]:
    if facts.environment.get("OMP_WAIT_POLICY", "").lower() != "passive":
        return []
    return ["OMP_WAIT_POLICY=passive: threads sleep after every step, decoding is up to three times slower. Unset it."]


def _spinning_threads(facts: Facts) -> list[str]:
    spins = facts.environment.get("GOMP_SPINCOUNT", "").lower()
    if spins != "infinity" and not (spins.isdigit() and int(spins) > MANY_SPINS):
        return []
    return [
        f"GOMP_SPINCOUNT={spins}: threads spin while they wait for threads that other work delays, and an answer may "
        "never end. Unset it."
    ]


def _too_many_threads(facts: Facts) -> list[str]:
    text = facts.environment.get("OMP_NUM_THREADS", "")
    if not text.isdigit() or int(text) <= facts.cores.usable:
        return []
    return [f"OMP_NUM_THREADS={text}, but {facts.cores.usable} threads can run at the same time. Unset it."]


def _quota(facts: Facts) -> list[str]:
    cores = facts.cores
    if cores.quota is None or cores.quota >= cores.allowed:
        return []
    return [
        f"the control group limits this process to {cores.quota:g} of {cores.allowed} CPUs: more than {cores.usable} "
        "threads would be throttled. Raise the container's CPU limit if you can."
    ]


def _translated(facts: Facts) -> list[str]:
    if not (facts.processor.startswith("Apple") and facts.used & {"AVX", "AVX2"}):
        return []
    return ["this Python is an x86 program that Rosetta translates: an arm64 Python is several times faster."]


def _small_pages(facts: Facts) -> list[str]:
    if not facts.small_pages:
        return []
    return [
        "huge pages, which make reading weights 5 to 10 % faster, are off. To allow them for programs that ask: "
        "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
    ]


def _swap(facts: Facts) -> list[str]:
    if facts.swap_bytes < (64 << 20):
        return []
    return [f"{readable_bytes(facts.swap_bytes)} are swapped out: memory was short. Swapped pages are slow to return."]


def _busy(facts: Facts) -> list[str]:
    if facts.others >= NOTICEABLE:
        taken = f"{facts.others:.1f} of {facts.cores.usable} CPUs"
        return [f"other work used {taken} during the measurement: the speeds are too low."]
    if facts.load < BUSY_LOAD * facts.cores.usable:
        return []
    return [f"other work is running (load average {facts.load:.1f} on {facts.cores.usable}): the speeds are too low."]
