"""What a manifest records of a GPU's memory; without one, nothing."""

import subprocess
import sys

from gladstone.machine.gpu_memory import gpu_memory_facts


def test_without_a_gpu_nothing_is_recorded() -> None:
    import torch

    assert not torch.cuda.is_available()
    assert gpu_memory_facts() is None


def test_asking_for_it_does_not_load_torch() -> None:
    code = (
        "import sys; from gladstone.machine.gpu_memory import gpu_memory_facts\n"
        "print(gpu_memory_facts(), 'torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["None", "False"]
