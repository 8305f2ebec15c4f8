"""`runtime doctor`: the machine, the speed of models on it, known faults, and the build that its GPU needs."""

import os
import platform
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gladstone.errors import UnsupportedError
from gladstone.llamacpp.devices import Device
from gladstone.machine.host import available_memory_bytes, cpu_flags, cpu_name, read_cores, readable_bytes
from gladstone.machine.huge_pages import has_huge_pages
from gladstone.machine.packages import installed_versions, require_packages
from gladstone.process.child import ChildOptions, exit_name, start_child
from gladstone.report.terminal import visible
from gladstone.strict_json import json_text
from runtime.commands.console import Waiting, tolerate_narrow_encodings
from runtime.machine.diagnosis import (
    VENDORS,
    Facts,
    Tools,
    gpu_build,
    idle_cost,
    instructions_unused,
    instructions_used,
    known_faults,
)

if TYPE_CHECKING:
    from runtime.machine.bandwidth import Bandwidth

CHILD_TIMEOUT_S, TOOL_TIMEOUT_S = 120.0, 10.0
WATCHED = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "GLADSTONE_CPU_BACKEND")
SOFTWARE_VULKAN = ("llvmpipe", "softpipe", "swiftshader")  # devices that run on the CPU


@dataclass(frozen=True)
class Speed:
    """The speed of a model, on the threads that an engine would choose."""

    model: str
    size_bytes: int
    prefill_threads: int
    prefill_tokens_per_s: float
    decode_threads: int
    decode_tokens_per_s: float
    other_processors: float = 0.0  # mean number that other work occupied meanwhile
    gpu_layers: int = 0
    placement: str = ""  # where weights and cache lie by default, in one line

    def share_of(self, bytes_per_s: float) -> float:
        """The fraction of the memory bandwidth that decoding uses: each token reads all weights once."""
        return self.size_bytes * self.decode_tokens_per_s / bytes_per_s


@click.command()
@click.argument("model", metavar="[MODEL.gguf]", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(model: Path | None, as_json: bool) -> None:
    """Show CPU, memory and GPU, measure their speed, and report known faults with their fixes.

    Speeds are those of MODEL, or of the embedded model if it is installed.
    """
    require_packages("runtime doctor", "dev", ["llama_cpp", "numpy"])
    from gladstone.gguf.header import read_generative_model
    from runtime.machine.bandwidth import measure_bandwidth

    tolerate_narrow_encodings()
    path = model or _embedded()
    if path is not None:
        read_generative_model(path)  # reports a file that is not a model at once
    with Waiting("measuring"):
        facts = read_facts()  # first, since measuring raises the load average
        bandwidth = measure_bandwidth(facts.cores.usable)
        facts, speed = measure_speed(facts, path)
    if as_json:
        click.echo(json_text(_as_json(facts, bandwidth, speed), indent=2))
    else:
        click.echo(visible(render(facts, bandwidth, speed)))


def read_facts() -> Facts:
    """What the system and the installed files show, without loading llama.cpp."""
    import psutil

    from gladstone.llamacpp.backends import backend_files, compiler_of
    from gladstone.machine.packages import llamacpp_folder

    folder = llamacpp_folder()
    files = backend_files(folder) if folder else ()
    return Facts(
        processor=cpu_name(),
        flags=cpu_flags(),
        cores=read_cores(),
        version=installed_versions("llama-cpp-python").get("llama-cpp-python", "0"),
        used=frozenset(),
        compiler=compiler_of(files[0]) if files else "",
        backend=", ".join(path.name for path in files),
        memory_bytes=psutil.virtual_memory().total,
        free_bytes=available_memory_bytes(),
        swap_bytes=psutil.swap_memory().used,
        small_pages=sys.platform == "linux" and not has_huge_pages(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        environment={name: os.environ[name] for name in WATCHED if name in os.environ},
        tools=read_tools(),
    )


def measure_speed(facts: Facts, path: Path | None) -> tuple[Facts, Speed | None]:
    """The facts with llama.cpp's own description, and the speed of a model, from a child whose crash is reported.

    Raises the child's error if the model cannot be used.
    """
    job = {"path": None if path is None else str(path)}
    with start_child("runtime.machine.speed_child", job, ChildOptions(time_s=CHILD_TIMEOUT_S)) as child:
        events = list(child.events())
        code = child.wait()
    if child.exceeded:
        return replace(facts, crash=f"no answer in {CHILD_TIMEOUT_S:.0f} s"), None
    if events:
        used, gpus = instructions_used(events[0]["system"]), tuple(Device(**gpu) for gpu in events[0]["gpus"])
        facts = replace(facts, used=used, gpus=gpus, backend=events[0]["backend"] or facts.backend)
    if code or not events:
        return replace(facts, crash=exit_name(code)), None
    if path is None:
        return facts, None
    speed = Speed(str(path), **events[1]["result"])
    return replace(facts, others=speed.other_processors), speed


def read_tools() -> Tools:
    """GPUs that drivers report, graphics hardware on the bus, and the programs that a build needs."""
    query = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    return Tools(
        nvidia=parse_nvidia(_output_of(query)),
        vulkan=parse_vulkan(_output_of(["vulkaninfo", "--summary"])),
        controllers=read_controllers(Path("/sys/bus/pci/devices")),
        nvcc=shutil.which("nvcc") is not None,
        glslc=shutil.which("glslc") is not None,
        metal=sys.platform == "darwin" and platform.machine() == "arm64",
    )


def parse_nvidia(text: str) -> tuple[tuple[str, str], ...]:
    """Names and compute capabilities from lines such as 'NVIDIA H100, 9.0'."""
    matches = (re.fullmatch(r"(.+), *(\d+\.\d+)", line.strip()) for line in text.splitlines())
    return tuple((match[1], match[2]) for match in matches if match)


def parse_vulkan(text: str) -> tuple[str, ...]:
    """Devices in the output of `vulkaninfo --summary`, without those that run on the CPU."""
    names = re.findall(r"(?m)^\s*deviceName\s*=\s*(.+?)\s*$", text)
    return tuple(name for name in names if not any(software in name.lower() for software in SOFTWARE_VULKAN))


def read_controllers(devices: Path) -> tuple[str, ...]:
    """Vendors of graphics hardware on the PCI bus (class 03) that llama.cpp has a backend for."""
    vendors = set()
    for folder in devices.iterdir() if devices.is_dir() else ():
        with suppress(OSError):
            if (folder / "class").read_text(encoding="utf-8").startswith("0x03"):
                vendor = (folder / "vendor").read_text(encoding="utf-8").strip()
                vendors.update([VENDORS[vendor]] if vendor in VENDORS else [])
    return tuple(sorted(vendors))


def render(facts: Facts, bandwidth: "Bandwidth", speed: Speed | None) -> str:
    """Render the report as lines of name and value."""
    unused = instructions_unused(facts)
    rows = [
        ("processor", facts.processor),
        ("threads", _threads(facts)),
        ("instructions", " ".join(sorted(facts.used)) or "unknown: llama.cpp did not answer"),
    ]
    if unused:
        cost = idle_cost(unused)
        rows.append(("  not used", f"{' '.join(unused)}{f': {cost}' if cost else ''}"))
    made = f" built with {facts.compiler}" if facts.compiler else ""
    rows += [
        ("llama.cpp", f"llama-cpp-python {facts.version}, {facts.backend or 'no backend'}{made}"),
        *[("gpu", _gpu(gpu)) for gpu in facts.gpus],
        *([] if facts.gpus else [("gpu", "llama.cpp sees none")]),
        ("memory", f"{readable_bytes(facts.memory_bytes)}, {readable_bytes(facts.free_bytes)} free"),
        ("bandwidth", _bandwidth(bandwidth)),
        *_speed(speed, bandwidth),
        *[("fault", fault) for fault in known_faults(facts)],
        *[("gpu build", line) for line in gpu_build(facts)],
    ]
    return "\n".join(f"{name:<13} {value}" for name, value in rows)


def _threads(facts: Facts) -> str:
    cores = facts.cores
    quota = "" if cores.quota is None else f", time of {cores.quota:g}"
    return f"{cores.usable} usable: {cores.allowed} of {cores.logical} processors on {cores.physical} cores{quota}"


def _gpu(gpu: Device) -> str:
    kind = {"igpu": "integrated graphics, "}.get(gpu.kind, "")
    memory = f"{readable_bytes(gpu.total_bytes)}, {readable_bytes(gpu.free_bytes)} free"
    return f"{gpu.name}: {gpu.description}, {kind}{gpu.backend} backend, {memory}"


def _bandwidth(bandwidth: "Bandwidth") -> str:
    read, copy = bandwidth.read_bytes_per_s / 1e9, bandwidth.copy_bytes_per_s / 1e9
    return f"{read:.1f} GB/s read, {copy:.1f} GB/s copied (read and written), {_count(bandwidth.threads)}"


def _speed(speed: Speed | None, bandwidth: "Bandwidth") -> list[tuple[str, str]]:
    if speed is None:
        return [("speed", "not measured: give a MODEL.gguf")]
    share = 100 * speed.share_of(bandwidth.best_bytes_per_s)
    weights = speed.size_bytes * speed.decode_tokens_per_s / 1e9
    of_bandwidth = "" if speed.gpu_layers else f", {share:.0f} % of the bandwidth"  # of the CPU's
    return [
        ("model", f"{Path(speed.model).name}, {readable_bytes(speed.size_bytes)}"),
        ("placement", speed.placement),
        ("prefill", f"{speed.prefill_tokens_per_s:.0f} tokens/s ({_count(speed.prefill_threads)})"),
        (
            "decode",
            f"{speed.decode_tokens_per_s:.1f} tokens/s ({_count(speed.decode_threads)}): {weights:.1f} GB/s of "
            f"weights{of_bandwidth}",
        ),
    ]


def _count(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def _as_json(facts: Facts, bandwidth: "Bandwidth", speed: Speed | None) -> dict[str, Any]:
    unused = instructions_unused(facts)
    facts_ = asdict(facts) | {"flags": sorted(facts.flags), "used": sorted(facts.used)}
    facts_["cores"]["usable"] = facts.cores.usable
    measured = None
    if speed is not None:
        share = None if speed.gpu_layers else speed.share_of(bandwidth.best_bytes_per_s)
        measured = asdict(speed) | {"share_of_bandwidth": share}
    return {
        **facts_,
        "devices": [gpu.description for gpu in facts.gpus],
        "unused": list(unused),
        "unused_cost": idle_cost(unused),
        "bandwidth": asdict(bandwidth),
        "speed": measured,
        "faults": known_faults(facts),
        "gpu_build": gpu_build(facts),
    }


def _embedded() -> Path | None:
    from gladstone.models.embedded_model import embedded_gguf

    try:
        return embedded_gguf()
    except UnsupportedError:  # not installed: the report says that no speed was measured
        return None


def _output_of(command: list[str]) -> str:
    """The output of a program; '' if it is not installed, fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
