"""What an export refuses before it merges anything."""

from dataclasses import replace
from pathlib import Path

import pytest

from export.convert.convert import Conversion
from export.original.finding import find, opened
from export.preflight import PreflightPlan, check_length, check_outline, check_plan, given_matrix, plan_proof
from export.quantise.imatrix import read_imatrix
from export.quantise.types import parse_override
from export.torch_model.placement import Memory
from gladstone.commands.progress import Silent
from gladstone.errors import ArtifactError, ConfigError, DataError, GladstoneError, UnsupportedError
from tests.gladstone.wrong_files import imatrix, old_imatrix, vocabulary_only, written


@pytest.fixture(scope="module")
def conversion(tiny_base: Path, tiny_run: Path) -> Conversion:
    return Conversion("tiny", tiny_base, tiny_run / "tokenizer", ((tiny_run / "adapter", 1.0),))


def refusal(conversion: Conversion, plan: PreflightPlan) -> tuple[type[GladstoneError], str]:
    with pytest.raises(GladstoneError) as caught:
        check_plan(conversion, plan, Silent())
    return type(caught.value), str(caught.value)


def refusal_by_outline(path: Path, plan: PreflightPlan) -> tuple[type[GladstoneError], str]:
    """Of an outline: here of the model itself."""
    with pytest.raises(GladstoneError) as caught:
        check_outline(path, plan, read_imatrix(plan.matrix) if plan.matrix else None)
    return type(caught.value), str(caught.value)


def test_a_split_smaller_than_the_largest_tensor_is_refused(f16: Path) -> None:
    kind, message = refusal_by_outline(f16, PreflightPlan(("q8_0",), split_bytes=4_000_000))
    assert kind is ConfigError
    assert message.startswith("--split: q8_0 cannot be split into parts smaller than ")
    assert "for token_embd.weight" in message


def test_a_split_of_nothing_is_refused(conversion: Conversion) -> None:
    assert refusal(conversion, PreflightPlan(("q8_0",), split_bytes=0))[0] is ConfigError


def test_a_pattern_that_no_tensor_has_is_refused(conversion: Conversion) -> None:
    """The outline is made for it."""
    kind, message = refusal(conversion, PreflightPlan(("q4_0",), overrides=(parse_override("ffn_nowhere=q8_0"),)))
    assert kind is ConfigError
    assert "--tensor-type ffn_nowhere=q8_0: no tensor name matches" in message


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_an_importance_matrix_of_another_model_is_refused(form: str, f16: Path, tmp_path: Path) -> None:
    """It knows the first layer alone."""
    path = written(f"imatrix.{form}", imatrix() if form == "gguf" else old_imatrix())(tmp_path)
    kind, message = refusal_by_outline(f16, PreflightPlan(("q4_0",), matrix=given_matrix(str(path))))
    assert kind is UnsupportedError
    assert message == f"{path}: not of this model: it knows 1 layers, the model has 2."


def test_a_file_that_is_no_matrix_is_refused_before_the_model_is_looked_at(
    conversion: Conversion, tmp_path: Path
) -> None:
    path = written("tiny.gguf", vocabulary_only())(tmp_path)
    absent = replace(conversion, base=tmp_path / "absent")
    assert refusal(absent, PreflightPlan(("q4_0",), matrix=path)) == (
        ArtifactError,
        f"{path}: a GGUF, but not an importance matrix: it is a model.",
    )


def test_a_plan_that_can_be_is_not_refused(f16: Path) -> None:
    check_outline(f16, PreflightPlan(("f16", "q4_0"), (parse_override("ffn_down=q6_k"),), split_bytes=20_000_000), None)


def test_rows_and_text_are_no_matrix(tmp_path: Path) -> None:
    path = written("rows.jsonl", b'{"question": "?", "answer": "!"}\n')(tmp_path)
    assert given_matrix("train") is given_matrix(None) is given_matrix(str(path)) is None
    with pytest.raises(ArtifactError, match="cannot be read"):
        given_matrix(str(tmp_path / "none"))


def test_a_text_that_is_too_short_for_a_matrix_is_refused_and_no_more_is_read_than_needed() -> None:
    encode = str.split
    with pytest.raises(DataError, match=r"--imatrix notes\.txt: 511 tokens, an importance matrix needs at least 512"):
        check_length("notes.txt", ["word " * 500, "word " * 11], lambda text: [0] * len(encode(text)))
    seen: list[int] = []

    def counted(text: str) -> list[int]:
        seen.append(len(text))
        return [0] * len(encode(text))

    check_length("notes.txt", ["word " * 1_000_000] * 2, counted)
    assert sum(seen) <= 20_000


class Told(Silent):
    """Keeps the notes of all steps."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def update(self, fraction: float | None, note: str = "") -> None:
        self.notes.append(note)


def test_before_anything_is_merged_an_export_says_where_the_proof_computes_its_memory_and_its_time(
    tiny_run: Path,
) -> None:
    told = Told()
    with opened(find(tiny_run), Silent()) as original:
        plan_proof(original, "16bit", 1, told, Memory(8 * 10**9))
        (note,) = told.notes
        for fact in ("float32 on the CPU, the whole model", "(8.00 GB free)", "about "):
            assert fact in note
        with pytest.raises(UnsupportedError, match="too little memory for the proof"):
            plan_proof(original, "16bit", 1, told, Memory(10**8))
