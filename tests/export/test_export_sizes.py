"""What is said before anything is made, against what is made."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from export.cli import main
from export.convert.convert import Conversion, outline
from export.proof.file import verify_file
from export.proof.trained import Trained
from export.quantise.quantise import Fallback, describe_fallbacks, predict, quantise
from export.quantise.size_estimate import LADDER, best_fit, context_bytes, parse_bytes
from export.quantise.split import split_gguf
from export.quantise.types import QUANTS, Override, Quantisation, needs_imatrix, parse_override
from gladstone.commands.progress import Silent
from gladstone.errors import ArtifactError, ConfigError, ToolError
from gladstone.gguf.header import read_header, read_info, read_model
from gladstone.llamacpp.context import Context
from gladstone.llamacpp.model import Model

CUT_BYTES = 50_000  # less than the whole: the layers go into a second part, the embedding just fits the first


@pytest.fixture(scope="module")
def measured(tiny_base: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("outline") / "outline.gguf"
    outline(Conversion("tiny", tiny_base, tiny_run / "tokenizer", ((tiny_run / "adapter", 1.0),)), path, Silent())
    return path


def export(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def test_an_outline_has_the_length_of_the_file_and_takes_no_disk(measured: Path, f16: Path) -> None:
    assert measured.stat().st_size == f16.stat().st_size
    assert measured.stat().st_blocks * 512 < f16.stat().st_size / 2
    assert read_header(measured).tensors == read_header(f16).tensors


@pytest.mark.parametrize("quant", ["f16", "q8_0", "q4_k_m", "q2_k", "q3_k_l", "iq4_xs"])
def test_a_predicted_size_is_that_of_the_file_to_the_byte(
    measured: Path, f16: Path, tmp_path: Path, quant: str
) -> None:
    predicted = predict(measured, Quantisation(quant))
    made = quantise(f16, tmp_path / "out.gguf", Quantisation(quant), Silent())
    assert predicted.size_bytes == made.size_bytes == (tmp_path / "out.gguf").stat().st_size
    assert predicted.fallbacks == made.fallbacks


def test_a_tensor_that_cannot_take_its_type_is_told(f16: Path, tmp_path: Path) -> None:
    """Rows of 64 and 128 weights are no multiple of 256."""
    made = quantise(f16, tmp_path / "out.gguf", Quantisation("q4_k_m"), Silent())
    names = {tensor.name: tensor.type_name for tensor in read_header(tmp_path / "out.gguf").tensors}
    assert {each.tensor for each in made.fallbacks} == {
        name for name in names if names[name] in ("Q5_0", "Q8_0") and name != "token_embd.weight"
    }
    assert all(names[each.tensor] == each.got.upper() for each in made.fallbacks)
    assert describe_fallbacks("q4_k_m", made.fallbacks).startswith(
        f"q4_k_m: {len(made.fallbacks)} tensors cannot have this type: "
    )


def test_fallbacks_are_told_together_by_what_became_of_them() -> None:
    found = (Fallback("a", 576, "q4_K", "q5_0"), Fallback("b", 576, "q4_K", "q5_0"), Fallback("c", 576, "q6_K", "q8_0"))
    assert describe_fallbacks("q4_k_m", found) == (
        "q4_k_m: 3 tensors cannot have this type: 2 with rows of 576 weights become q5_0 instead of q4_K, "
        "1 with rows of 576 weights become q8_0 instead of q6_K."
    )


def test_an_override_changes_the_tensors_that_it_names_alone(f16: Path, tmp_path: Path) -> None:
    how = Quantisation("q4_0", (Override(r"ffn_down", "q8_0"), Override(r"blk\.0\.attn_q", "f16")))
    quantise(f16, tmp_path / "plain.gguf", Quantisation("q4_0"), Silent())
    quantise(f16, tmp_path / "out.gguf", how, Silent())
    plain, found = (
        {tensor.name: tensor.type_name for tensor in read_header(tmp_path / name).tensors}
        for name in ("plain.gguf", "out.gguf")
    )
    assert {name for name in found if found[name] != plain[name]} == {
        "blk.0.ffn_down.weight", "blk.1.ffn_down.weight", "blk.0.attn_q.weight",
    }  # fmt: skip
    assert found["blk.1.ffn_down.weight"] == "Q8_0"
    assert found["blk.0.attn_q.weight"] == "F16"


def test_an_override_that_names_no_tensor_is_refused(f16: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--tensor-type ffn_dwn=q8_0: no tensor name matches; names are .*blk\.0\."):
        quantise(f16, tmp_path / "out.gguf", Quantisation("q4_0", (Override("ffn_dwn", "q8_0"),)), Silent())


@pytest.mark.parametrize("text", ["ffn_down", "=q8_0", "ffn_down=q9", "ffn(=q8_0"])
def test_an_override_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--tensor-type "):
        parse_override(text)


def test_a_type_whose_blocks_fit_no_row_fails_with_the_quantisers_words(f16: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="no tensor type fallback is defined for type q1_0"):
        quantise(f16, tmp_path / "out.gguf", Quantisation("q1_0"), Silent())


def test_the_ladder_holds_known_types_once() -> None:
    assert len({*LADDER}) == len(LADDER)
    assert {*LADDER} <= QUANTS.keys()


def test_a_context_takes_what_llama_cpp_says(measured: Path) -> None:
    few, many = context_bytes(measured, 512), context_bytes(measured, 2048)
    cache = 2 * 2 * 2 * 16 * 2  # layers, keys and values, heads, width of one, bytes
    assert many - few >= (2048 - 512) * cache
    assert many < 1 << 30


def test_the_best_that_fits_is_taken(measured: Path) -> None:
    beside = context_bytes(measured, 512)
    whole = {quant: predict(measured, Quantisation(quant)).size_bytes + beside for quant in ("f16", "q8_0", "q6_k")}
    assert best_fit(measured, whole["f16"], (), 512, imatrix=False).quant == "f16"
    assert best_fit(measured, whole["f16"] - 1, (), 512, imatrix=False).quant == "q8_0"
    found = best_fit(measured, whole["q8_0"] - 1, (), 512, imatrix=False)
    assert found.memory_bytes < whole["q8_0"]
    assert not needs_imatrix(found.quant)
    with pytest.raises(ConfigError, match=r"--fit 1\.0 MB: not even \S+ fits: .* --imatrix train\|FILE"):
        best_fit(measured, 1_000_000, (), 512, imatrix=False)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4_000_000_000), ("3.5g", 3_500_000_000), ("500 MB", 500_000_000), ("2GiB", 2 << 30), ("77", 77)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text, "--fit") == size


@pytest.mark.parametrize("text", ["", "GB", "0", "-1GB", "4 GBytes", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a size"):
        parse_bytes(text, "--fit")


@pytest.fixture
def parts(f16: Path, tmp_path: Path) -> list[Path]:
    copy = tmp_path / "tiny.v1-f16.gguf"
    copy.write_bytes(f16.read_bytes())
    return split_gguf(copy, f16.stat().st_size - CUT_BYTES, Silent())


def test_a_split_file_is_loaded_as_the_whole_one(parts: list[Path], f16: Path) -> None:
    assert [path.name for path in parts] == [
        f"tiny.v1-f16-{number:05}-of-{len(parts):05}.gguf" for number in range(1, len(parts) + 1)
    ]
    assert {path.name for path in parts[0].parent.iterdir()} == {path.name for path in parts}
    assert len(parts) > 1
    assert all(path.stat().st_size <= f16.stat().st_size - CUT_BYTES for path in parts)
    whole, split = read_info(f16), read_info(parts[0])
    assert (split.parameters, split.tensor_types, split.template) == (
        whole.parameters,
        whole.tensor_types,
        whole.template,
    )
    tokens = list(range(100, 140))
    found = []
    for path in (f16, parts[0]):
        with Model(path) as model, Context(model, 64) as context:
            context.decode(tokens, 0)
            found.append(context.logits().copy())
    assert (found[0] == found[1]).all()


def test_a_part_that_is_missing_or_not_the_first_is_told(parts: list[Path]) -> None:
    with pytest.raises(ArtifactError, match=r"part 2 of \d; give the first, tiny\.v1-f16-00001-of-"):
        read_model(parts[1])
    parts[-1].unlink()
    with pytest.raises(ArtifactError, match=rf"missing from its folder: {parts[-1].name}"):
        read_model(parts[0])


def test_a_part_under_another_name_is_told(parts: list[Path]) -> None:
    renamed = parts[0].rename(parts[0].with_name("model.gguf"))
    with pytest.raises(ArtifactError, match=r"one of \d parts, but its name"):
        read_model(renamed)


def test_what_cannot_be_cut_is_refused_and_what_is_small_stays_whole(f16: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tiny.gguf"
    copy.write_bytes(f16.read_bytes())
    with pytest.raises(
        ConfigError, match=r"--split: tiny\.gguf cannot be split into parts smaller than [\d,]+ bytes, for token_embd"
    ):
        split_gguf(copy, 1_000_000, Silent())
    assert split_gguf(copy, 1_000_000_000, Silent()) == [copy]
    assert copy.read_bytes() == f16.read_bytes()


@pytest.mark.slow
def test_a_dry_run_tells_sizes_and_makes_nothing(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = export("gguf", tiny_run, "--quant", "q8_0", "--quant", "q4_k_m", "--dry-run", "--out", out)
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["type", "q8_0", "q4_k_m", "Note:"]
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.long
def test_fit_makes_the_type_that_it_chose(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = export("gguf", tiny_run, "--fit", "2GB", "--context", 512, "--out", out)
    assert result.exit_code == 0, result.output
    assert (out / "tiny-f16.gguf").is_file()
    assert export("gguf", tiny_run, "--fit", "2GB", "--quant", "q8_0").exit_code == 2


@pytest.mark.slow
@pytest.mark.long
def test_one_pass_feeds_every_plain_type(tiny_run: Path, tmp_path: Path, trained: Trained) -> None:
    out = tmp_path / "out"
    result = export("gguf", tiny_run, "--quant", "bf16", "--quant", "f16", "--quant", "q8_0", "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("Merging and converting") == 2  # the beginning and the end of one step
    assert {path.suffixes[-1] and path.name for path in out.glob("*.gguf")} == {
        "tiny-bf16.gguf", "tiny-f16.gguf", "tiny-q8_0.gguf",
    }  # fmt: skip
    assert all(point.passed for point in verify_file(out / "tiny-f16.gguf", trained, Silent()))
    assert read_info(out / "tiny-bf16.gguf").tensor_types["BF16"] > 0


@pytest.mark.slow
@pytest.mark.long
def test_an_export_with_importance_and_parts_goes_on_and_changes_with_what_is_asked(
    tiny_run: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text((tiny_run / "data" / "train.jsonl").read_text() * 60)
    out = tmp_path / "out"
    arguments = [
        "gguf",
        tiny_run,
        "--quant",
        "iq3_xxs",
        "--quant",
        "f16",
        "--imatrix",
        rows,
        "--imatrix-chunks",
        2,
        "--out",
        out,
    ]
    result = export(*arguments)
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.glob("*.gguf")} == {"tiny-iq3_xxs.gguf", "tiny-f16.gguf", "tiny-imatrix.gguf"}
    made_ns = (out / "tiny-iq3_xxs.gguf").stat().st_mtime_ns
    again = export(*arguments)
    assert again.exit_code == 0, again.output
    assert "tiny-imatrix.gguf, made before" in again.stderr
    assert (out / "tiny-iq3_xxs.gguf").stat().st_mtime_ns == made_ns
    split = export(*arguments, "--split", (out / "tiny-f16.gguf").stat().st_size - CUT_BYTES)
    assert split.exit_code == 0, split.output
    names = {path.name for path in out.glob("*.gguf")}
    assert "tiny-f16.gguf" not in names
    assert sum(name.startswith("tiny-f16-0000") for name in names) > 1


def test_a_type_of_few_bits_without_importance_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    result = export("gguf", tmp_path / "none", "--quant", "iq2_m")
    assert result.exit_code == 1
    assert "--quant iq2_m: needs an importance matrix: --imatrix train." in result.stderr
