"""The doctor: its whole output here, and what it makes of the facts of other machines."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gladstone.llamacpp.devices import Device, layer_devices
from gladstone.machine.host import Cores
from runtime.cli import main
from runtime.commands.doctor import (
    Speed,
    measure_speed,
    parse_nvidia,
    parse_vulkan,
    read_controllers,
    read_facts,
    render,
)
from runtime.machine.bandwidth import Bandwidth, measure_bandwidth
from runtime.machine.diagnosis import (
    Facts,
    Tools,
    gpu_build,
    idle_cost,
    instructions_unused,
    instructions_used,
    known_faults,
)

AVX2 = frozenset({"sse2", "avx", "avx2", "fma", "f16c", "bmi2"})
ZEN4 = AVX2 | {"avx512f", "avx512vbmi", "avx512_vnni", "avx512_bf16"}
PORTABLE = frozenset({"AVX", "AVX2", "BMI2", "F16C", "FMA"})
RTX = Device("CUDA0", "RTX 3060", "gpu", 11 * 10**9, 12 * 10**9, "CUDA", "0000:01:00.0")
FACTS = Facts("AMD EPYC", ZEN4, Cores(8, 8, 4), "0.3.36", PORTABLE, "gcc 12.2.0", "libggml-cpu.so",
              memory_bytes=32 * 10**9, free_bytes=20 * 10**9)  # fmt: skip
BUILD = 'CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF {}" pip install --force-reinstall --no-deps ' \
        "--no-cache-dir --no-binary llama-cpp-python llama-cpp-python==0.3.36"  # fmt: skip


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GLADSTONE_CACHE", str(tmp_path / "cache"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["doctor", *map(str, arguments)], catch_exceptions=False)


def test_the_whole_report_of_this_machine(embedded_gguf: Path) -> None:
    result = run(embedded_gguf)
    assert result.exit_code == 0
    number = r"[\d.]+"
    lines = result.stdout.splitlines()
    expected = [
        r"processor     \S.*",
        r"threads       \d+ usable: \d+ of \d+ processors on \d+ cores(, time of [\d.]+)?",
        r"instructions  (\w+ ?)+",
        r"(  not used    (\w+ ?)+: .*)?",
        r"llama\.cpp     llama-cpp-python \d+\.\d+\.\d+, \S*ggml-cpu\S*( built with \w+ [\d.]+)?",
        r"gpu           \S.*",
        rf"memory        {number} GB, {number} GB free",
        rf"bandwidth     {number} GB/s read, {number} GB/s copied \(read and written\), \d+ threads?",
        r"model         SmolLM2-135M-Instruct\.Q4_1\.gguf, 98\.4 MB",
        r"placement     (no GPU backend|gpu layers \d+ of \d+) .*",
        r"prefill       \d+ tokens/s \(\d+ threads?\)",
        rf"decode        {number} tokens/s \(\d+ threads?\): {number} GB/s of weights, \d+ % of the bandwidth",
    ]
    if not lines[3].startswith("  not used"):
        del expected[3]
    for line, pattern in zip(lines, expected, strict=False):
        assert re.fullmatch(pattern, line), line
    assert {line.split("  ")[0] for line in lines[len(expected) :]} <= {"fault", "gpu build"}
    assert lines[-1].startswith("gpu build")


def test_the_report_as_json_has_every_fact(embedded_gguf: Path) -> None:
    report = json.loads(run("--json", embedded_gguf).stdout)
    assert {
        "processor",
        "cores",
        "flags",
        "used",
        "unused",
        "devices",
        "bandwidth",
        "speed",
        "faults",
        "gpu_build",
    } <= set(report)
    assert report["speed"]["decode_tokens_per_s"] > 0
    assert report["speed"]["prefill_tokens_per_s"] > 0
    assert report["speed"]["share_of_bandwidth"] > 0
    assert report["bandwidth"]["read_bytes_per_s"] > 0
    assert report["cores"]["usable"] >= 1
    assert set(report["used"]) & {"AVX2", "NEON"}


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_text("hello")
    result = run(tmp_path / "no.gguf")
    assert (result.exit_code, result.stdout) == (1, "")
    assert (
        result.stderr
        == f"Error: {tmp_path / 'no.gguf'}: expected a GGUF model, this is a text file. It begins: 'hello'.\n"
    )


def test_a_report_in_words() -> None:
    bandwidth = Bandwidth(4, 30e9, 40e9)
    speed = Speed("/m/a.gguf", 5 * 10**9, 4, 120.0, 1, 6.4, placement="gpu layers 0 of 33")
    assert render(FACTS, bandwidth, speed) == (
        "processor     AMD EPYC\n"
        "threads       8 usable: 8 of 8 processors on 4 cores\n"
        "instructions  AVX AVX2 BMI2 F16C FMA\n"
        "  not used    AVX512 AVX512_VBMI AVX512_VNNI AVX512_BF16: without them decode 2-7 % slower; prefill as fast with "
        "Q4_1, 1.25 times slower with Q8_0, 1.5 times with Q4_K_M (measured on one CPU); `make set-up CPU=all` builds a "
        "llama.cpp that uses them\n"
        "llama.cpp     llama-cpp-python 0.3.36, libggml-cpu.so built with gcc 12.2.0\n"
        "gpu           llama.cpp sees none\n"
        "memory        32.00 GB, 20.00 GB free\n"
        "bandwidth     30.0 GB/s read, 40.0 GB/s copied (read and written), 4 threads\n"
        "model         a.gguf, 5.00 GB\n"
        "placement     gpu layers 0 of 33\n"
        "prefill       120 tokens/s (4 threads)\n"
        "decode        6.4 tokens/s (1 thread): 32.0 GB/s of weights, 80 % of the bandwidth\n"
        "gpu build     no GPU found: the CPU build is the right one."
    )
    assert "speed         not measured: give a MODEL.gguf\n" in render(FACTS, bandwidth, None)


def test_instruction_sets_are_read_from_the_builds_own_words() -> None:
    system = "CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 0 | LLAMAFILE = 1 | OPENMP = 1 | REPACK = 1 | "
    assert instructions_used(system) == {"AVX", "AVX2"}
    assert instructions_used("") == set()


def test_unused_instruction_sets_are_reported_with_their_cost() -> None:
    assert instructions_unused(FACTS) == ("AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16")
    assert "1.5 times with Q4_K_M" in idle_cost(instructions_unused(FACTS))
    assert instructions_unused(replace(FACTS, flags=AVX2)) == ()
    assert instructions_unused(replace(FACTS, used=frozenset())) == ()
    assert (
        instructions_unused(replace(FACTS, flags=ZEN4 | {"avx_vnni"}, used=PORTABLE | {"AVX512_VNNI"}))[0] == "AVX512"
    )
    assert idle_cost(()) == ""
    assert "on purpose" in idle_cost(("AMX_INT8",))
    assert "not measured" in idle_cost(("AVX_VNNI",))


FAULTS = [
    ({"crash": "SIGILL"}, "measuring the speed ended with SIGILL"),
    ({"flags": AVX2 - {"avx2", "bmi2"}}, "lacks avx2, bmi2"),
    ({"used": PORTABLE | {"AMX_INT8"}}, "gcc 12.2.0 drops the stores that set up AMX (gcc bug 114098)"),
    ({"environment": {"OMP_WAIT_POLICY": "PASSIVE"}}, "OMP_WAIT_POLICY=passive: threads sleep after every step"),
    ({"environment": {"OMP_NUM_THREADS": "16"}}, "OMP_NUM_THREADS=16, but 8 threads can run at the same time."),
    ({"cores": Cores(8, 8, 4, 2.5)}, "2.5 of 8 CPUs: more than 2 threads"),
    ({"processor": "Apple M2", "flags": frozenset()}, "this Python is an x86 program"),
    ({"small_pages": True}, "transparent_hugepage/enabled"),
    ({"swap_bytes": 10**9}, "1.00 GB are swapped out"),
    ({"environment": {"GOMP_SPINCOUNT": "20000"}}, "GOMP_SPINCOUNT=20000: threads spin"),
    ({"others": 1.04, "load": 9.0}, "1.0 of 8 CPUs"),
    ({"load": 5.0}, "load average 5.0 on 8"),
]


@pytest.mark.parametrize(("change", "fact"), FAULTS)
def test_only_the_known_fault_is_reported(change: dict[str, object], fact: str) -> None:
    faults = known_faults(replace(FACTS, **change))  # type: ignore[arg-type]
    assert len(faults) == 1
    assert fact in faults[0]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"used": PORTABLE | {"AMX_INT8"}, "compiler": "gcc 12.4.0"},
        {"used": PORTABLE | {"AMX_INT8"}, "compiler": "gcc 14.1.0"},
        {"used": PORTABLE | {"AMX_INT8"}, "compiler": "clang 17.0.6"},
        {"environment": {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "8"}},
        {"cores": Cores(8, 8, 4, 8.0)},
        {"processor": "Apple M2", "flags": frozenset(), "used": frozenset({"NEON"})},
        {"load": 0.5, "swap_bytes": 1000},
    ],
)
def test_a_sound_machine_has_no_fault(change: dict[str, object]) -> None:
    assert known_faults(replace(FACTS, **change)) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tools", "lines"),
    [
        (Tools(), ["no GPU found: the CPU build is the right one."]),
        (Tools(nvidia=(("RTX 3060", "8.6"), ("H100", "9.0")), nvcc=True),
         [BUILD.format("-DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=86;90")]),
        (Tools(nvidia=(("RTX 3060", "8.6"),)),
         ["first install the CUDA toolkit (nvcc), no newer than the driver",
          BUILD.format("-DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=86")]),
        (Tools(vulkan=("AMD Radeon",), glslc=True), [BUILD.format("-DGGML_VULKAN=ON")]),
        (Tools(vulkan=("AMD Radeon",)),
         ["first install Vulkan's headers and glslc: apt install libvulkan-dev glslc", BUILD.format("-DGGML_VULKAN=ON")]),
        (Tools(metal=True), [BUILD.format("-DGGML_METAL=ON")]),
        (Tools(controllers=("AMD", "NVIDIA")),
         ["graphics hardware of AMD, NVIDIA is present, but nvidia-smi and vulkaninfo see none: install its driver."]),
    ],
)  # fmt: skip
def test_the_build_command_fits_what_is_on_the_machine(tools: Tools, lines: list[str]) -> None:
    assert gpu_build(replace(FACTS, tools=tools)) == lines


def test_a_gpu_that_is_used_needs_no_other_build() -> None:
    facts = replace(FACTS, gpus=(RTX,), tools=Tools(nvidia=(("RTX 3060", "8.6"),)))
    assert gpu_build(facts) == ["llama.cpp uses RTX 3060 already."]


def test_every_gpu_has_a_line_and_a_speed_on_it_is_no_share_of_the_processors_bandwidth() -> None:
    facts = replace(FACTS, gpus=(RTX, replace(RTX, name="CUDA1", bus="0000:02:00.0")))
    speed = Speed("/m/a.gguf", 5 * 10**9, 4, 120.0, 1, 6.4, gpu_layers=33, placement="gpu layers 33 of 33")
    lines = render(facts, Bandwidth(4, 30e9, 40e9), speed).splitlines()
    assert "gpu           CUDA0: RTX 3060, CUDA backend, 12.00 GB, 11.00 GB free" in lines
    assert "gpu           CUDA1: RTX 3060, CUDA backend, 12.00 GB, 11.00 GB free" in lines
    assert "placement     gpu layers 33 of 33" in lines
    assert "decode        6.4 tokens/s (1 thread): 32.0 GB/s of weights" in lines


def test_a_gpu_that_two_backends_drive_is_taken_once_and_integrated_graphics_only_alone() -> None:
    vulkan = replace(RTX, name="Vulkan0", backend="Vulkan")
    chip = Device("Vulkan1", "Iris", "igpu", 1, 1, "Vulkan")
    own = Device("CPU", "EPYC", "cpu", 1, 1, "CPU")
    assert layer_devices([RTX, vulkan, chip, own]) == (RTX,)
    assert layer_devices([own, chip, replace(chip, name="Vulkan2")]) == (chip,)
    assert layer_devices([replace(RTX, bus=""), replace(RTX, name="CUDA1", bus="")])[1].name == "CUDA1"


def test_what_the_tools_print_is_read() -> None:
    assert parse_nvidia("NVIDIA GeForce RTX 3060, 8.6\nNVIDIA H100 80GB HBM3, 9.0\n") == (
        ("NVIDIA GeForce RTX 3060", "8.6"),
        ("NVIDIA H100 80GB HBM3", "9.0"),
    )
    assert parse_nvidia("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.") == ()
    text = "GPU0:\n\tdeviceName         = AMD Radeon RX 6600 (RADV)\nGPU1:\n\tdeviceName         = llvmpipe (LLVM 15)\n"
    assert parse_vulkan(text) == ("AMD Radeon RX 6600 (RADV)",)


def test_graphics_hardware_is_found_on_the_bus_without_a_driver(tmp_path: Path) -> None:
    for name, kind, vendor in (
        ("a", "0x030000", "0x10de"),
        ("b", "0x030200", "0x1002"),
        ("c", "0x030000", "0x1234"),  # an emulated screen
        ("d", "0x020000", "0x8086"),  # a network card
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "class").write_text(f"{kind}\n")
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
    (tmp_path / "e").mkdir()
    assert read_controllers(tmp_path) == ("AMD", "NVIDIA")
    assert read_controllers(tmp_path / "none") == ()


def test_a_back_end_that_crashes_is_a_fault_of_the_report_and_no_crash_of_the_doctor(
    embedded_gguf: Path, crash: Callable[[], None]
) -> None:
    crash()
    facts, speed = measure_speed(read_facts(), embedded_gguf)
    assert speed is None
    assert facts.crash == "SIGILL"
    assert "AVX2" in facts.used or "NEON" in facts.used  # what the build said before it died
    assert known_faults(facts)[0].startswith("measuring the speed ended with SIGILL")


@pytest.fixture
def crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the measuring child die of SIGILL at its first prompt, by a start-up hook: no backend here crashes by itself."""

    def arm() -> None:
        hook = (
            "import sys\n"
            "if 'runtime.machine.speed_child' in sys.orig_argv:\n"
            "    import os, signal\n"
            "    from llama_cpp import llama_cpp\n"
            "    llama_cpp.llama_decode = lambda *_: os.kill(os.getpid(), signal.SIGILL)\n"
        )
        (tmp_path / "sitecustomize.py").write_text(hook)
        root = str(Path(__file__).parents[2])
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), root]))

    return arm


def test_bandwidth_is_plausible_and_quick() -> None:
    found = measure_bandwidth(1, 0.05)
    assert 1e6 < found.read_bytes_per_s < 1e12  # beside other work a processor may stand still for a while
    assert 1e6 < found.copy_bytes_per_s < 2e12
    assert found.best_bytes_per_s == max(found.read_bytes_per_s, found.copy_bytes_per_s)


def test_the_help_of_the_doctor_loads_nothing_heavy() -> None:
    code = (
        "import sys; from runtime.cli import main; main(['doctor', '--help'], standalone_mode=False);"
        "print(sorted({'numpy', 'llama_cpp', 'psutil'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
