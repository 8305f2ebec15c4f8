"""Importance matrices of a model whose weights, inputs and expert numbers lie on a device with memory of its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.convert.convert import Conversion, convert
from export.quantise.imatrix_child import Collector, evaluate
from gladstone.commands.progress import Silent
from tests.device.rpc_device import MIB, rpc_device
from tests.faults.tiny_ggufs import tiny_bpe
from tests.tiny_models import write_mixture

pytestmark = pytest.mark.device
TEXT = "The heart moves the blood through the body, and the lungs give it air. " * 12


def check_equal_on_the_device(path: Path, text: str) -> dict[str, Any]:
    """Returns the sums; those of the processor are the reference."""
    job = {"model": str(path), "text": text, "name": "text", "chunks": 2, "chunk_tokens": 64}
    expected, chunks = evaluate(job)
    with rpc_device(1024 * MIB) as device:
        empty = device.allocated_bytes()
        found, chunks_there = evaluate(job | {"gpu_layers": 99})
        assert device.allocated_bytes() >= empty
    assert chunks == chunks_there == 2
    _check_close(expected, found)
    return found.sums


def _check_close(expected: Collector, found: Collector) -> None:
    assert set(found.sums) == set(expected.sums)
    for name, sums in expected.sums.items():
        assert np.array_equal(found.counts[name], expected.counts[name]), name
        assert np.abs(found.sums[name] - sums).max() < 0.02 * np.abs(sums).max(), name


def test_every_weight_has_the_sums_that_the_processor_finds(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_bpe().content())
    sums = check_equal_on_the_device(path, TEXT)
    assert len(sums) == 14  # seven products in each of two blocks
    assert not any("#" in name or "RPC" in name for name in sums)


@pytest.mark.long
def test_every_expert_has_the_rows_that_the_processor_sends_to_it(tmp_path: Path) -> None:
    base = write_mixture(tmp_path / "base")
    path = tmp_path / "experts.gguf"
    convert(Conversion("experts", base, base), path, Silent())
    sums = check_equal_on_the_device(path, TEXT)
    assert sums["blk.0.ffn_up_exps.weight"].shape == (4, 64)
