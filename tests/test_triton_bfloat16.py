"""The arithmetic that triton's interpreter lacks."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.interpreter import available


@pytest.mark.skipif(not available(), reason="no triton for this machine")
def test_the_interpreter_computes_in_bfloat16_as_torch_does() -> None:
    command = [sys.executable, "-m", "tests.triton_bfloat16_child"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0", "0"], done.stderr
