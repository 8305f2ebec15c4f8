import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gladstone.llamacpp.context import Context
from gladstone.llamacpp.model import Model
from gladstone.machine.huge_pages import Range, has_huge_pages, subtract_ranges

RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).filter(lambda pair: pair[0] < pair[1]))


@given(ranges=RANGES, others=RANGES)
def test_what_is_left_of_ranges_without_others(ranges: list[Range], others: list[Range]) -> None:
    left = subtract_ranges(ranges, others)
    assert all(begin < end for begin, end in left)
    assert points(left) == points(ranges) - points(others)


def points(ranges: list[Range]) -> set[int]:
    return {point for begin, end in ranges for point in range(begin, end)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("always [madvise] never", True),
        ("[always] madvise never", True),
        ("always madvise [never]", False),
        (None, False),
    ],
)
def test_huge_pages_are_available_if_the_system_provides_them_on_request(
    tmp_path: Path, text: str | None, expected: bool
) -> None:
    folder = tmp_path / "sys/kernel/mm/transparent_hugepage"
    folder.mkdir(parents=True)
    if text is not None:
        (folder / "enabled").write_text(f"{text}\n")
    assert has_huge_pages(tmp_path) == expected


@pytest.mark.skipif(not has_huge_pages(), reason="no huge pages here")
def test_copied_weights_lie_in_huge_pages(embedded_gguf: Path) -> None:
    # the difference of the two: what the process holds besides lies in huge pages too, on some systems
    with Model(embedded_gguf, mapped=False):
        copied = huge_bytes()
    with Model(embedded_gguf):
        mapped = huge_bytes()
    assert copied - mapped > 0.5 * embedded_gguf.stat().st_size


def huge_bytes() -> int:
    sizes = re.findall(r"AnonHugePages:\s+(\d+) kB", Path("/proc/self/smaps").read_text())
    return 1024 * sum(map(int, sizes))


def test_copied_weights_give_the_logits_of_mapped_ones(embedded_gguf: Path) -> None:
    logits = []
    for mapped in (True, False):
        with Model(embedded_gguf, mapped=mapped) as model, Context(model, 64, threads=1) as context:
            context.decode(model.tokenize("What is fever?"), 0)
            logits.append(context.logits().tobytes())
    assert logits[0] == logits[1]


def test_a_file_that_is_cut_short_meanwhile_does_not_touch_copied_weights(embedded_gguf: Path, tmp_path: Path) -> None:
    path = shutil.copy(embedded_gguf, tmp_path / "model.gguf")
    code = """
import os, sys
from pathlib import Path
from gladstone.llamacpp.context import Context
from gladstone.llamacpp.model import Model

path = Path(sys.argv[1])
with Model(path, mapped=False) as model, Context(model, 64, threads=1) as context:
    os.truncate(path, 4096)
    context.decode([1, 2, 3], 0)
    print(int(context.logits().argmax()))
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip().isdigit()) == (0, True)


def test_ctrl_c_ends_the_loading_and_is_not_lost(embedded_gguf: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from gladstone.llamacpp import model as llama

class Interrupting(llama.NewAllocations):
    def request_huge_pages(self):
        os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
llama.NewAllocations = Interrupting
llama.Model(Path(sys.argv[1]))
"""
    done = subprocess.run([sys.executable, "-c", code, embedded_gguf], capture_output=True, text=True, check=False)
    assert done.stderr.strip().endswith("KeyboardInterrupt")
    assert "ignored" not in done.stderr
    assert done.returncode == -signal.SIGINT
