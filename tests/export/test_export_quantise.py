import os
from pathlib import Path

import pytest

from export.proof.quantised import check_header
from export.quantise.quantise import quantise
from export.quantise.types import QUANTS, Quantisation, check_quants, needs_imatrix
from gladstone.commands.progress import Silent
from gladstone.errors import ArtifactError, ConfigError, ToolError
from gladstone.gguf.header import read_info
from gladstone.llamacpp.model import Model
from tests.export.tiny_runs import rewrite_gguf


def test_names_are_folded_and_kept_once_in_order() -> None:
    assert check_quants(("Q8_0", "f16", "q4_K_m", "q8_0")) == ("q8_0", "f16", "q4_k_m")


def test_an_unknown_name_is_told_with_those_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        check_quants(("q8_0", "q9_0"))
    assert str(caught.value).startswith("--quant q9_0: unknown; known: f32, f16, q4_0, q4_1, q8_0,")


@pytest.mark.parametrize("name", sorted(filter(needs_imatrix, QUANTS)))
def test_types_that_need_an_importance_matrix_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--quant {name}: needs an importance matrix"):
        check_quants((name,))


@pytest.mark.parametrize("name", sorted(name for name in QUANTS if not needs_imatrix(name) and name != "q1_0"))
def test_every_known_type_can_be_made_and_loaded(f16: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out.gguf"
    quantise(f16, out, Quantisation(name), Silent())
    assert read_info(out).quantisation == name.upper()
    with Model(out) as model:
        assert model.vocab_size == 49_152
    assert check_header(out, f16).passed
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


@pytest.mark.parametrize("how", ["the same name", "a hard link", "a symbolic link"])
def test_quantising_a_file_onto_itself_is_refused_and_leaves_it_whole(f16: Path, tmp_path: Path, how: str) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(f16.read_bytes())
    target = source if how == "the same name" else tmp_path / "link.gguf"
    if how == "a hard link":
        os.link(source, target)
    elif how == "a symbolic link":
        target.symlink_to(source)
    with pytest.raises(ArtifactError, match="source and target are the same file"):
        quantise(source, target, Quantisation("q8_0"), Silent())
    assert source.read_bytes() == f16.read_bytes()


def test_a_source_that_is_cut_short_gives_the_quantisers_words_and_no_file(f16: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(f16.read_bytes()[:1_000_000])
    with pytest.raises(ToolError, match=r"(?s)quantising to q8_0 failed \(exit code -?\d+\)\. Its last lines:\n    \S"):
        quantise(cut, tmp_path / "out.gguf", Quantisation("q8_0"), Silent())
    assert [path.name for path in tmp_path.iterdir()] == ["cut.gguf"]


def test_a_header_that_changed_is_found(f16: Path, tmp_path: Path) -> None:
    changed = rewrite_gguf(f16, tmp_path / "changed.gguf", tokenizer__ggml__eos_token_id=0)
    point = check_header(changed, f16)
    assert not point.passed
    assert point.detail == "differs from the F16 in tokenizer.ggml.eos_token_id"
