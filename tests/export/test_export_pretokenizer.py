"""Tokenizers that llama.cpp's converter has never seen."""

from pathlib import Path

import pytest

from export.convert.convert import Conversion, convert
from export.convert.pretokenizer import NAMES, choose
from gladstone.commands.progress import Silent
from gladstone.errors import UnsupportedError
from gladstone.gguf.header import read_header
from tests.families import FAMILIES, Family, write_family, write_tokenizer

ODD_SPLIT = r"[aeiou]+|[^aeiou]"  # at every vowel: no model's


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "split"), [("distilgpt2", "gpt-2"), pytest.param("llama3", "llama-bpe", marks=pytest.mark.long)]
)
def test_it_is_found_by_the_ids_of_texts(family: str, split: str, tmp_path: Path) -> None:
    base = write_family(family, tmp_path / "base")
    out = tmp_path / "out.gguf"
    convert(Conversion("tiny", base, base), out, Silent())
    metadata = read_header(out).metadata
    assert metadata["tokenizer.ggml.pre"] == split
    assert metadata["tokenizer.ggml.add_bos_token"] is FAMILIES[family].adds_bos


@pytest.mark.slow
@pytest.mark.long
def test_a_tokenizer_that_none_fits_is_refused_with_the_nearest(tmp_path: Path) -> None:
    base = write_family("llama3", tmp_path / "base")
    convert(Conversion("tiny", base, base), tmp_path / "out.gguf", Silent())
    odd = tmp_path / "odd"
    odd.mkdir()
    write_tokenizer(Family(ODD_SPLIT, "Llama", None, FAMILIES["llama3"].special, "<|begin_of_text|>"), odd)
    with pytest.raises(
        UnsupportedError, match=rf"none of llama\.cpp's {len(NAMES)} pre-tokenizers splits texts as it does"
    ):
        choose(tmp_path / "out.gguf", odd, Silent())


@pytest.mark.slow
def test_a_vocabulary_of_another_kind_has_none(tmp_path: Path) -> None:
    base = write_family("tinyllama", tmp_path / "base")
    convert(Conversion("tiny", base, base), tmp_path / "out.gguf", Silent())
    data = (tmp_path / "out.gguf").read_bytes()
    (tmp_path / "none.gguf").write_bytes(data.replace(b"tokenizer.ggml.pre", b"tokenizer.ggml.prx"))
    with pytest.raises(UnsupportedError, match="its vocabulary is of a kind that has no pre-tokenizer"):
        choose(tmp_path / "none.gguf", base, Silent())


def test_names_are_there_once() -> None:
    assert len({*NAMES}) == len(NAMES)
