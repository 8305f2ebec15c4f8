"""Which GPU there is, and whether the installed torch can use it. Names torch.

`GpuFacts` holds everything that a decision needs, so that a decision can be made, and tested, for any machine.
"""

import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from gladstone.errors import UnsupportedError
from gladstone.machine.host import core_count, cpu_name, readable_bytes
from gladstone.machine.nvidia_driver import Driver, read_driver

Wanted = Literal["auto", "cuda", "cpu"]
WANTED: tuple[Wanted, ...] = ("auto", "cuda", "cpu")
ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")
INDEX = "https://download.pytorch.org/whl"
# PyTorch's builds for CUDA 12, by the lowest and highest compute capability that they hold kernels for; both run on
# drivers from 525 on (pytorch issues 172352, 190355 and 190385: no cu128 from 2.12 on, no cu126 from 2.15 on)
CUDA_12_BUILDS = (
    ("cu128", (7, 5), (12, 9), "torch>=2.10,<2.12"),
    ("cu126", (5, 0), (9, 0), "torch>=2.10,<2.15"),
)
OTHERWISE = "Or use the CPU: --device cpu"


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch can reach: its name, its compute capability, and its memory."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int

    def __str__(self) -> str:
        major, minor = self.capability
        return f"{self.name} (compute capability {major}.{minor}, {readable_bytes(self.memory_bytes)})"


@dataclass(frozen=True)
class GpuFacts:
    """The installed torch, the driver, and the GPUs that each of them sees.

    `cuda` is the CUDA that torch is built with, '' for none; `architectures` are those that it has kernels for.
    `failure` is torch's own reason why it reaches no GPU. `hidden_by` names
    the variable or the option by which the user hides them all.
    """

    torch: str
    cuda: str = ""
    rocm: str = ""
    architectures: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    driver: Driver = field(default_factory=Driver)
    failure: str = ""
    hidden_by: str = ""

    @property
    def build(self) -> str:
        """torch's version and what it is built for, such as 'torch 2.11.0 for CUDA 12.8'."""
        kind = f"for CUDA {self.cuda}" if self.cuda else f"for ROCm {self.rocm}" if self.rocm else "for CPUs only"
        return f"torch {self.torch} {kind}"


@dataclass(frozen=True)
class Device:
    """What a process computes on: 'cuda' (the GPU at `index`) or 'cpu', and the facts that decided it."""

    kind: str
    facts: GpuFacts
    index: int = 0

    @property
    def gpu(self) -> Gpu | None:
        """The GPU; None on the CPU."""
        return self.facts.gpus[self.index] if self.kind == "cuda" else None

    @property
    def name(self) -> str:
        """The GPU with its driver, or the CPU."""
        if self.gpu is None:
            return f"{cpu_name()}, {core_count()} cores"
        return f"{self.gpu}, {self.facts.driver}" if self.facts.driver.version else str(self.gpu)

    @property
    def unused(self) -> str:
        """Why a GPU that is here is not used; '' if none is here, or it is used."""
        names = _joined(self.facts.driver.gpus)
        if self.kind == "cuda" or not names:
            return ""
        if self.facts.hidden_by:
            return f"{names}: hidden by {self.facts.hidden_by}"
        if not self.facts.cuda:
            line = install_line(self.facts.driver.capabilities)
            return f"{names}: {self.facts.build}; the build for CUDA: {line}"
        return names

    def as_json(self) -> dict[str, Any]:
        """What a manifest records."""
        driver = self.facts.driver
        record: dict[str, Any] = {"kind": self.kind, "name": self.gpu.name if self.gpu else cpu_name()}
        record |= {"torch": self.facts.torch, "cuda": self.facts.cuda, "driver": driver.version}
        if self.gpu:
            major, minor = self.gpu.capability
            record |= {"compute_capability": f"{major}.{minor}", "memory_bytes": self.gpu.memory_bytes}
        return record


def use_device(wanted: Wanted = "auto") -> Device:
    """Decide what this process computes on; 'cpu' hides the GPUs from it. Call it before anything else asks torch.

    Under torchrun the GPU is that of LOCAL_RANK. Raises UnsupportedError, with the cure, if a GPU is wanted or
    expected and cannot be used.
    """
    if wanted == "cpu":
        _hide_gpus()
    facts = read_gpu_facts()
    if wanted == "cpu":
        facts = replace(facts, hidden_by="--device cpu")
    index = int(os.environ.get("LOCAL_RANK", "0"))
    kind = choose_kind(wanted, facts, index)
    if kind == "cpu" and facts.gpus:
        raise UnsupportedError("--device cpu: this process uses a GPU already. Start a new one.")
    if kind == "cpu" and (wanted == "cpu" or facts.driver != Driver()):
        os.environ["UNSLOTH_FORCE_CPU"] = "1"  # beside an NVIDIA driver it refuses to train on the CPU
    return Device(kind, facts, index if kind == "cuda" and index < len(facts.gpus) else 0)


def read_gpu_facts() -> GpuFacts:
    """Ask torch and the driver. A warning that torch gives becomes the reason of its failure."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    count = torch.cuda.device_count() if available else 0
    return GpuFacts(
        torch=torch.__version__,
        cuda=torch.version.cuda or "",
        rocm=torch.version.hip or "",
        architectures=_architectures() if available else (),
        gpus=tuple(_gpu(torch.cuda.get_device_properties(index)) for index in range(count)),
        driver=read_driver(),
        failure="" if available else _failure([str(warning.message) for warning in caught]),
        hidden_by=_hidden_by(),
    )


def choose_kind(wanted: Wanted, facts: GpuFacts, index: int = 0) -> str:
    """'cuda' or 'cpu' for these facts. Raises UnsupportedError if a GPU is wanted or expected and cannot be used."""
    if wanted == "cpu":
        return "cpu"
    if facts.gpus:
        check_kernels(facts, facts.gpus[min(index, len(facts.gpus) - 1)])
        return "cuda"
    if wanted == "cuda" or (facts.cuda and facts.driver.gpus and not facts.hidden_by):
        raise UnsupportedError(_no_gpu(facts))
    return "cpu"


def check_kernels(facts: GpuFacts, gpu: Gpu) -> None:
    """Raise UnsupportedError with the cure if torch is built without kernels for this GPU."""
    if facts.rocm or not facts.architectures or has_kernels(facts.architectures, gpu.capability):
        return
    line = install_line([f"{gpu.capability[0]}.{gpu.capability[1]}"])
    raise UnsupportedError(
        f"{gpu}: {facts.build} has no kernels for it, only for {' '.join(facts.architectures)}. Install a build that "
        f"has them: {line}. Or choose another GPU (on Kaggle: GPU T4 x2). {OTHERWISE}."
    )


def has_kernels(architectures: Iterable[str], capability: tuple[int, int]) -> bool:
    """True if one of `torch.cuda.get_arch_list()` runs on a GPU of this compute capability.

    Binary code (sm_XY) runs on the same major version from its minor version on, with 'a' on exactly this one. PTX
    (compute_XY) is compiled on any later GPU; with 'a' on exactly this one, with 'f' within the major version.
    """
    for kind, digits, last, suffix in (found.groups() for found in map(ARCHITECTURE.fullmatch, architectures) if found):
        built = (int(digits), int(last))
        if built == capability:
            return True
        later = capability > built
        same_major = capability[0] == built[0]
        if suffix != "a" and later and (same_major or (kind == "compute" and not suffix)):
            return True
    return False


def install_line(capabilities: Sequence[str] = ()) -> str:
    """The command that replaces torch by a build for CUDA 12 with kernels for these compute capabilities.

    With none given, that which has kernels for the oldest GPUs.
    """
    wanted = [tuple(int(part) for part in capability.split(".")) for capability in capabilities]
    fitting = [build for build in CUDA_12_BUILDS if wanted and all(build[1] <= one <= build[2] for one in wanted)]
    name, _, _, requirement = (fitting or CUDA_12_BUILDS[-1:])[0]
    return f"pip uninstall -y torch torchvision && pip install '{requirement}' torchvision --index-url {INDEX}/{name}"


def _no_gpu(facts: GpuFacts) -> str:
    """Why torch reaches no GPU, and what to do about it."""
    names = _joined(facts.driver.gpus)
    if facts.hidden_by:
        return f"no GPU is visible: {facts.hidden_by} hides them all. Unset it. {OTHERWISE}."
    line = install_line(facts.driver.capabilities)
    if not names:
        driver = f"the {facts.driver} is loaded, but gives this process no GPU" if facts.driver.version else ""
        reason = driver or "this machine has no NVIDIA GPU, or its driver is not loaded"
        return f"no GPU is found: {reason}. In a notebook, choose a GPU as accelerator. {OTHERWISE}."
    if not (facts.cuda or facts.rocm):
        return f"{names} cannot be used: {facts.build}. Install the build for CUDA: {line}. {OTHERWISE}."
    if _major(facts.driver.cuda) and _major(facts.driver.cuda) < _major(facts.cuda):
        return (
            f"{names} cannot be used: {facts.build} needs a newer driver than the {facts.driver} of this machine. "
            f"Install a build for CUDA {_major(facts.driver.cuda)}: {line}. Or update the driver. {OTHERWISE}."
        )
    return (
        f"{names} cannot be used by {facts.build} with {facts.driver}: {facts.failure}. See whether nvidia-smi "
        f"lists it, and install a build of torch that fits the driver: {line}. {OTHERWISE}."
    )


def _failure(texts: Sequence[str]) -> str:
    """Why torch reaches no GPU: its warning without the place in its sources, and the variable that selects GPUs."""
    selected = os.environ.get("CUDA_VISIBLE_DEVICES")
    reason = " ".join(texts[0].split()).partition(" (Triggered internally")[0] if texts else ""
    reason = reason.rstrip(".") or "torch.cuda.is_available() is False"
    return reason if selected is None else f"{reason} with CUDA_VISIBLE_DEVICES={selected!r}"


def _gpu(properties: Any) -> Gpu:
    return Gpu(properties.name, (properties.major, properties.minor), int(properties.total_memory))


def _architectures() -> tuple[str, ...]:
    import torch

    try:
        return tuple(torch.cuda.get_arch_list())
    except (AttributeError, RuntimeError):  # a build that cannot say is not judged
        return ()


def _hidden_by() -> str:
    """The variable by which the user hides every GPU, as NAME='value'; '' if none does."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"CUDA_VISIBLE_DEVICES={value!r}" if value is not None and value.strip() in ("", "-1") else ""


def _hide_gpus() -> None:
    """Hide the GPUs from this process and its children."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        os.environ[name] = ""


def _joined(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _major(version: str) -> int:
    return int(version.partition(".")[0] or 0)
