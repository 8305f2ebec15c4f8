"""Which GPU a process may use: decided from facts about torch and the driver, of machines that are not here."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gladstone.errors import UnsupportedError
from gladstone.machine.gpu import (
    Device,
    Gpu,
    GpuFacts,
    Wanted,
    choose_kind,
    has_kernels,
    install_line,
    read_gpu_facts,
)
from gladstone.machine.nvidia_driver import Driver, read_driver

T4 = Gpu("Tesla T4", (7, 5), 15_828_320_256)
P100 = Gpu("Tesla P100-PCIE-16GB", (6, 0), 17_059_545_088)
V100 = Gpu("Tesla V100-SXM2-16GB", (7, 0), 16_935_419_904)
OLD_DRIVER = Driver("535.104.05", "12.2", ("Tesla T4",), ("7.5",))
NO_TORCH_FOR_IT = GpuFacts(torch="2.14.1", cuda="13.0", driver=OLD_DRIVER)  # a Colab whose torch pip has replaced
COLAB = GpuFacts(
    torch="2.11.0+cu128",
    cuda="12.8",
    architectures=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
    gpus=(T4,),
    driver=Driver("550.54.15", "12.4", ("Tesla T4",), ("7.5",)),
)


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_driver_older_than_torchs_cuda_is_an_error_that_names_both_and_the_cure(wanted: Wanted) -> None:
    with pytest.raises(UnsupportedError) as error:
        choose_kind(wanted, NO_TORCH_FOR_IT)
    for fact in (
        "Tesla T4",
        "torch 2.14.1",
        "CUDA 13.0",
        "535.104.05",
        "12.2",
        "pip install",
        "whl/cu1",
        "--device cpu",
    ):
        assert fact in str(error.value)
    assert choose_kind("cpu", NO_TORCH_FOR_IT) == "cpu"


def test_a_gpu_that_works_is_used_unless_the_cpu_is_asked_for() -> None:
    assert [choose_kind(wanted, COLAB) for wanted in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]


def test_a_machine_without_a_gpu_computes_on_the_cpu_but_not_if_cuda_is_asked_for() -> None:
    for facts in (GpuFacts(torch="2.13.0+cpu"), GpuFacts(torch="2.14.1", cuda="13.0")):
        assert choose_kind("auto", facts) == "cpu"
        with pytest.raises(UnsupportedError, match="no NVIDIA GPU"):
            choose_kind("cuda", facts)


def test_a_cpu_build_of_torch_beside_a_gpu_says_that_the_gpu_is_not_used() -> None:
    facts = GpuFacts(torch="2.13.0+cpu", driver=OLD_DRIVER)
    assert choose_kind("auto", facts) == "cpu"
    unused = Device("cpu", facts).unused
    assert "Tesla T4" in unused
    assert "2.13.0+cpu for CPUs only" in unused
    assert "pip install" in unused
    with pytest.raises(UnsupportedError, match="for CPUs only"):
        choose_kind("cuda", facts)


def test_gpus_that_the_user_hides_are_not_expected() -> None:
    hidden = replace(NO_TORCH_FOR_IT, hidden_by="CUDA_VISIBLE_DEVICES=''")
    assert choose_kind("auto", hidden) == "cpu"
    assert "CUDA_VISIBLE_DEVICES" in Device("cpu", hidden).unused
    with pytest.raises(UnsupportedError, match="CUDA_VISIBLE_DEVICES"):
        choose_kind("cuda", hidden)


def test_a_container_that_sees_its_hosts_driver_but_no_gpu_computes_on_the_cpu() -> None:
    facts = GpuFacts(torch="2.14.1", cuda="13.0", driver=Driver("550.54.15"))
    assert choose_kind("auto", facts) == "cpu"
    with pytest.raises(UnsupportedError, match=r"550\.54\.15"):
        choose_kind("cuda", facts)


def test_what_torch_says_of_its_failure_is_in_the_error() -> None:
    reason = "CUDA unknown error - this may be due to an incorrectly set up environment"
    with pytest.raises(UnsupportedError, match=reason):
        choose_kind("auto", replace(COLAB, gpus=(), failure=reason))


@pytest.mark.parametrize("gpu", [P100, V100])
def test_a_gpu_without_kernels_in_torch_is_refused_with_the_build_that_has_them(gpu: Gpu) -> None:
    with pytest.raises(UnsupportedError) as error:
        choose_kind("auto", replace(COLAB, gpus=(gpu,)))
    for fact in (gpu.name, f"{gpu.capability[0]}.{gpu.capability[1]}", "2.11.0+cu128", "sm_75", "whl/cu126", "T4 x2"):
        assert fact in str(error.value)
    cured = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
    assert choose_kind("auto", replace(COLAB, gpus=(gpu,), architectures=cured)) == "cuda"


def test_under_torchrun_the_gpu_of_this_rank_is_judged() -> None:
    mixed = replace(COLAB, gpus=(T4, P100))
    assert choose_kind("auto", mixed, 0) == "cuda"
    with pytest.raises(UnsupportedError, match="P100"):
        choose_kind("auto", mixed, 1)


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (["sm_75", "sm_80"], (8, 6), True),  # binary code of an earlier minor version
        (["sm_86"], (8, 0), False),
        (["sm_75", "sm_80"], (9, 0), False),
        (["sm_80", "compute_80"], (12, 0), True),  # PTX is compiled on later GPUs
        (["compute_80"], (7, 5), False),
        (["sm_90a"], (9, 0), True),
        (["sm_90a"], (10, 0), False),
        (["sm_100a"], (10, 3), False),
        (["sm_100f"], (10, 3), True),
        (["compute_100f"], (12, 0), False),
        (["sm_120"], (12, 1), True),
        (["gfx942"], (9, 4), False),
    ],
)
def test_kernels_run_on_what_nvidias_rules_say(
    architectures: list[str], capability: tuple[int, int], runs: bool
) -> None:
    assert has_kernels(architectures, capability) is runs


@given(st.tuples(st.integers(5, 12), st.integers(0, 9)), st.tuples(st.integers(5, 12), st.integers(0, 9)))
def test_binary_code_runs_only_within_its_major_version_and_ptx_on_everything_later(
    built: tuple[int, int], capability: tuple[int, int]
) -> None:
    name = f"{built[0]}{built[1]}"
    assert has_kernels([f"sm_{name}"], capability) is (built[0] == capability[0] and built[1] <= capability[1])
    assert has_kernels([f"compute_{name}"], capability) is (built <= capability)


@pytest.mark.parametrize(
    ("capabilities", "build"),
    [(["7.5"], "cu128"), (["6.0"], "cu126"), (["7.0", "7.5"], "cu126"), (["12.0"], "cu128"), ([], "cu126")],
)
def test_the_install_line_names_a_build_with_kernels_for_every_gpu(capabilities: list[str], build: str) -> None:
    assert f"whl/{build}" in install_line(capabilities)


def test_the_drivers_files_give_its_version_and_the_gpus_that_may_be_opened(tmp_path: Path) -> None:
    assert read_driver(tmp_path) == Driver()
    proc = tmp_path / "proc" / "driver" / "nvidia"
    for number, model in enumerate(("Tesla T4", "Tesla T4")):
        folder = proc / "gpus" / f"0000:00:0{number}.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t {model}\nIRQ: 10\n")
    (proc / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build  (builder@host)\n"
        "GCC version:  gcc version 11.4.0\n"
    )
    host = read_driver(tmp_path)  # as a container sees its host
    assert (host.version, host.gpus) == ("550.54.15", ())
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    driver = read_driver(tmp_path)
    assert (driver.version, driver.gpus) == ("550.54.15", ("Tesla T4",))


def test_nvidia_smi_names_the_gpus_even_if_it_knows_no_compute_capability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\ncase $1 in *compute_cap*) echo 'Field \"compute_cap\" is not a valid field'; exit 2;; esac\n"
        "echo 'Quadro RTX 4000, Max-Q, 470.82.01'\n"
    )
    program.chmod(0o755)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    driver = read_driver(tmp_path)
    assert (driver.version, driver.gpus, driver.capabilities) == ("470.82.01", ("Quadro RTX 4000, Max-Q",), ())


def test_the_facts_of_this_machine_are_readable_and_decide_something() -> None:
    facts = read_gpu_facts()
    device = Device(choose_kind("auto", facts), facts)
    assert device.as_json()["torch"] == facts.torch
    assert device.name
    assert facts.build.startswith(f"torch {facts.torch} for ")


def test_asking_for_the_cpu_hides_the_gpus_from_a_process_and_makes_unsloth_take_the_cpu() -> None:
    code = "from gladstone.machine.gpu import use_device; print(use_device('cpu').kind)\n"
    code += "import os; print([os.environ[name] for name in ('CUDA_VISIBLE_DEVICES', 'UNSLOTH_FORCE_CPU')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["cpu", "['', '1']"]
