"""Importance matrices: against a computation of their own in torch, of models with experts, and hostile files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.convert.convert import Conversion, convert
from export.proof.trained import Trained
from export.quantise.imatrix import (
    Calibration,
    calibration,
    check_fits,
    compute_imatrix,
    is_imatrix,
    read_imatrix,
)
from export.quantise.quantise import quantise
from export.quantise.types import Quantisation
from gladstone.commands.progress import Silent
from gladstone.errors import ArtifactError, UnsupportedError
from gladstone.gguf.header import read_header
from gladstone.llamacpp.model import Model
from tests.gladstone.wrong_files import old_imatrix
from tests.tiny_models import write_mixture

CHUNKS = 2


@pytest.fixture(scope="module")
def text(trained: Trained) -> Calibration:
    rows = [*trained.rows] * 40
    return calibration("test.jsonl", rows, trained.template, "", CHUNKS)


@pytest.fixture(scope="module")
def matrix(f16: Path, text: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("imatrix") / "imatrix.gguf"
    compute_imatrix(f16, text, path, Silent())
    return path


def tokens_of(model: Path, text: Calibration) -> list[list[int]]:
    """The chunks, as llama-imatrix cuts them."""
    with Model(model, vocab_only=True) as opened:
        tokens = opened.tokenize(text.text, add_special=True, parse_special=True)
    return [tokens[number * 512 : (number + 1) * 512] for number in range(CHUNKS)]


def test_every_weight_of_every_block_has_an_entry_of_its_width(matrix: Path, f16: Path) -> None:
    found = read_imatrix(matrix)
    model = {tensor.name: tensor for tensor in read_header(f16).tensors}
    wanted = {name for name, tensor in model.items() if name.startswith("blk.") and len(tensor.shape) == 2}
    assert found.weights.keys() == wanted
    assert all(found.weights[name].size == model[name].shape[0] for name in wanted)
    assert found.chunks == CHUNKS
    check_fits(found, read_header(f16), matrix)


@pytest.mark.slow
def test_the_entries_are_the_mean_squares_that_torch_sees(
    matrix: Path, f16: Path, text: Calibration, trained: Trained
) -> None:
    import torch

    from export.proof.reference import Reference

    model = Reference(trained)._model
    sums: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def hook(_module: Any, inputs: Any) -> None:
            sums[name] = sums.get(name, 0) + inputs[0].double().pow(2).sum(dim=(0, 1))

        return hook

    named = {"self_attn.q_proj": "attn_q", "self_attn.o_proj": "attn_output", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}  # fmt: skip
    for number, block in enumerate(model.get_base_model().model.layers):
        for theirs, ours in named.items():
            block.get_submodule(theirs).register_forward_pre_hook(watch(f"blk.{number}.{ours}.weight"))
    chunks = tokens_of(f16, text)
    with torch.inference_mode():
        for chunk in chunks:
            model(torch.tensor([chunk]))
    found = read_imatrix(matrix).weights
    for name, total in sums.items():
        expected = (total / (CHUNKS * 512)).numpy()
        assert np.abs(found[name] - expected).max() <= 0.01 * expected.max(), name


@pytest.mark.slow
def test_a_model_with_experts_counts_each_experts_own_rows(text: Calibration, tiny_run: Path, tmp_path: Path) -> None:
    base = write_mixture(tmp_path / "base")
    path, out = tmp_path / "f16.gguf", tmp_path / "imatrix.gguf"
    convert(Conversion("experts", base, tiny_run / "tokenizer"), path, Silent())
    compute_imatrix(path, text, out, Silent())
    header = read_header(out, is_model=False)
    counts = next(tensor for tensor in header.tensors if tensor.name == "blk.0.ffn_up_exps.weight.counts")
    rows = np.fromfile(out, "<f4", 4, offset=header.data_offset + counts.offset)
    assert rows.sum() == 2 * CHUNKS * 512  # two experts for each token
    assert len(set(rows.tolist())) > 1
    found = read_imatrix(out)
    check_fits(found, read_header(path), out)
    quantise(path, tmp_path / "q.gguf", Quantisation("iq4_nl", imatrix=out), Silent())


def test_types_of_few_bits_can_be_made_with_it_and_load(matrix: Path, f16: Path, tmp_path: Path) -> None:
    for quant in ("iq1_s", "iq2_xxs", "iq3_xxs", "q2_k_s"):
        path = tmp_path / f"{quant}.gguf"
        quantise(f16, path, Quantisation(quant, imatrix=matrix), Silent())
        with Model(path) as model:
            assert model.vocab_size == 49_152


def test_it_changes_what_the_quantiser_makes(matrix: Path, f16: Path, tmp_path: Path) -> None:
    quantise(f16, tmp_path / "without.gguf", Quantisation("q4_0"), Silent())
    quantise(f16, tmp_path / "with.gguf", Quantisation("q4_0", imatrix=matrix), Silent())
    assert (tmp_path / "without.gguf").read_bytes() != (tmp_path / "with.gguf").read_bytes()


def test_a_text_of_less_than_a_chunk_is_refused(f16: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"short: \d+ tokens, an importance matrix needs at least 512"):
        compute_imatrix(f16, Calibration("short", "A few words.", 10), tmp_path / "out.gguf", Silent())
    assert list(tmp_path.iterdir()) == []


def test_rows_are_rendered_as_trained_and_mixed_the_same_way_each_time(trained: Trained) -> None:
    first = calibration("rows", trained.rows, trained.template, "<|im_end|>", 5)
    again = calibration("rows", trained.rows, trained.template, "<|im_end|>", 5)
    assert first.text == again.text
    assert first.sha256 == again.sha256
    assert first.text.count("<|im_start|>user") == len(trained.rows)
    assert sorted(trained.template.render(row.messages) for row in trained.rows) != [first.text]


def test_the_matrix_of_another_model_is_refused(matrix: Path, f16: Path, tmp_path: Path) -> None:
    found = read_imatrix(matrix)
    name = next(iter(found.weights))
    spoilt = type(found)({name: found.weights[name][:32]}, 1)
    with pytest.raises(
        UnsupportedError, match=f"not of this model: {name} has 32 entries there, the model has 64 columns"
    ):
        check_fits(spoilt, read_header(f16), matrix)
    spoilt = type(found)({"blk.9.attn_q.weight": found.weights[name]}, 1)
    with pytest.raises(UnsupportedError, match=r"the model has no such tensor"):
        check_fits(spoilt, read_header(f16), matrix)

    spoilt = type(found)({name: means for name, means in found.weights.items() if name.startswith("blk.0.")}, 1)
    with pytest.raises(UnsupportedError, match=r"not of this model: it knows 1 layers, the model has 2"):
        check_fits(spoilt, read_header(f16), matrix)


def test_a_model_is_no_importance_matrix(f16: Path) -> None:
    assert is_imatrix(f16)  # by its first bytes it could be
    with pytest.raises(ArtifactError, match="a GGUF, but not an importance matrix: it is a model"):
        read_imatrix(f16)


def test_the_older_binary_form_is_read_as_llama_quantize_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(old_imatrix(("blk.0.ffn_up.weight", "blk.1.ffn_up.weight"), columns=8))
    assert is_imatrix(path)
    found = read_imatrix(path)
    assert found.chunks == 2
    assert {name: means.tolist() for name, means in found.weights.items()} == {
        "blk.0.ffn_up.weight": [1.0] * 8,
        "blk.1.ffn_up.weight": [1.0] * 8,
    }
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ArtifactError, match="truncated or damaged"):
        read_imatrix(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_entries_that_cannot_be_mean_squares_are_refused(matrix: Path, tmp_path: Path, value: float) -> None:
    header = read_header(matrix, is_model=False)
    sums = next(tensor for tensor in header.tensors if tensor.name.endswith(".in_sum2"))
    data = bytearray(matrix.read_bytes())
    at = header.data_offset + sums.offset
    data[at : at + 4] = np.float32(value).tobytes()
    spoilt = tmp_path / "spoilt.gguf"
    spoilt.write_bytes(data)
    with pytest.raises(ArtifactError, match="not a mean of squares"):
        read_imatrix(spoilt)


def test_a_file_that_is_cut_short_is_refused(matrix: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(matrix.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="cut short"):
        read_imatrix(cut)


def test_rows_are_no_importance_matrix(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "?", "answer": "!"}))
    assert not is_imatrix(path)
    with pytest.raises(ArtifactError, match="cannot be read"):
        is_imatrix(tmp_path / "none")
