import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from export.cli import main
from export.tensors.safetensors_io import TensorSpec, plan_shards, read_header, writing
from export.tensors.weights import read_folder
from gladstone.artifacts import check_files, read_manifest
from gladstone.errors import ArtifactError
from tests.export.tiny_runs import write_adapter


def merge(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["merge", *map(str, arguments)], catch_exceptions=False)


def refused(result: Result) -> str:
    assert result.exit_code == 1, result.output
    return re.sub(r"(?s)^.*?Error: ", "", result.stderr).rstrip("\n")


def test_the_folder_is_a_model_that_transformers_loads_as_the_run_trained_it(
    tiny_run: Path, tiny_base: Path, tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "merged"
    result = merge(tiny_run, "--out", out, "--shard-gb", 0.01)
    assert result.exit_code == 0, result.output
    manifest = read_manifest(out)
    check_files(out, manifest)
    assert {path.name for path in out.iterdir()} == {record.path for record in manifest.files} | {"manifest.json"}
    assert (manifest.stage, manifest.config["onto"]) == ("merge", "16bit")
    ours = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, local_files_only=True)
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32, local_files_only=True)
    stored = {tensor.dtype for tensor in read_folder(out).values()}
    assert stored == {tensor.dtype for tensor in read_folder(tiny_base).values()}
    theirs = PeftModel.from_pretrained(base, str(tiny_run / "adapter")).merge_and_unload().state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.allclose(tensor, theirs[name], rtol=2**-8 if "BF16" in stored else 2**-10, atol=1e-6), name
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert tokenizer("Why?")["input_ids"] == AutoTokenizer.from_pretrained(tiny_run / "tokenizer")("Why?")["input_ids"]


def test_shards_hold_every_tensor_once_and_have_an_index(tiny_run: Path, tiny_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    out = tmp_path / "merged"
    assert merge(tiny_run, "--out", out, "--shard-gb", "0.01").exit_code == 0
    whole = {path.name: load_file(path) for path in out.glob("*.safetensors")}
    names = [name for tensors in whole.values() for name in tensors]
    assert sorted(names) == sorted(read_folder(tiny_base))
    assert {name for name, tensor in read_folder(out).items()} == set(names)


def test_further_adapters_act_with_their_weights(tiny_run: Path, tiny_base: Path, tmp_path: Path) -> None:
    write_adapter(tiny_base, tmp_path / "other", target_modules=["q_proj"])
    results = []
    for weight in ("0", "0.5"):
        out = tmp_path / weight
        result = merge(tiny_run, "--out", out, "--weight", 0, "--adapter", f"{tmp_path / 'other'}={weight}")
        assert result.exit_code == 0, result.output
        results.append(read_folder(out))
    base = read_folder(tiny_base)
    for name, tensor in base.items():
        assert bool((results[0][name].read() == tensor.read()).all()), name
        assert bool((results[1][name].read() != tensor.read()).any()) == name.endswith("q_proj.weight"), name


def test_wrong_weights_and_folders_are_told(tiny_run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["merge", str(tiny_run), "--adapter", "other=much"])
    assert result.exit_code == 2
    assert "'other=much': expected FOLDER=WEIGHT" in result.stderr
    assert "no manifest" in refused(merge(tmp_path)) or "manifest.json" in refused(merge(tmp_path))
    assert "is the folder of the run" in refused(merge(tiny_run, "--out", tiny_run))
    missing = refused(merge(tiny_run, "--out", tmp_path / "out", "--adapter", tmp_path / "none"))
    assert f"{tmp_path / 'none'}: not an adapter" in missing
    assert not (tmp_path / "out").exists()


def test_a_merge_that_was_stopped_is_made_again_and_other_weights_are_left_alone(
    tiny_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    assert merge(tiny_run, "--out", out).exit_code == 0
    (out / "manifest.json").unlink()  # as if killed before the end
    (out / "config.json").unlink()
    (out / "model.safetensors").write_bytes(b"cut")
    assert merge(tiny_run, "--out", out).exit_code == 0
    assert merge(tiny_run, "--out", out).exit_code == 0  # a finished one as well
    check_files(out, read_manifest(out))
    (out / "pytorch.safetensors").write_bytes(b"mine")
    assert "holds other weights (pytorch.safetensors)" in refused(merge(tiny_run, "--out", out))
    assert (out / "pytorch.safetensors").read_bytes() == b"mine"


def test_the_largest_tensor_sets_the_memory(tiny_run: Path, tmp_path: Path) -> None:
    """A merge in a process of its own; what it takes beside its libraries does not grow with the shards."""
    out = tmp_path / "merged"
    script = (
        "from export.cli import main; from gladstone.machine.host import peak_memory_bytes; import torch\n"
        "before = peak_memory_bytes()\n"
        f"main(['merge', {str(tiny_run)!r}, '--out', {str(out)!r}], standalone_mode=False)\n"
        "print('grew', peak_memory_bytes() - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    grew = int(done.stdout.split()[-1])
    assert grew < 300e6, "reading the tokenizer and merging a model of 0.2 MB"


@pytest.mark.parametrize(
    ("sizes", "files"),
    [([4, 4, 4], [3]), ([8, 8], [1, 1]), ([20, 4, 4, 4], [1, 3]), ([4, 20, 4], [1, 1, 1]), ([], [0])],
)
def test_shards_are_filled_up_to_their_limit(sizes: list[int], files: list[int]) -> None:
    planned = [TensorSpec(f"t{number}", "F16", (size // 2,)) for number, size in enumerate(sizes)]
    shards = plan_shards(planned, 12)
    assert [len(tensors) for tensors in shards.values()] == files
    assert [tensor for tensors in shards.values() for tensor in tensors] == planned
    expected = ["model.safetensors"] if len(files) == 1 else [
        f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)
    ]  # fmt: skip
    assert list(shards) == expected


def test_what_is_written_is_what_the_formats_own_reader_reads(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    tensors = {
        "a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.tensor(3), "d": torch.empty(0, 4).half(),
    }  # fmt: skip
    kinds = {"a": "F32", "b": "BF16", "c": "I64", "d": "F16"}
    planned = [TensorSpec(name, kinds[name], tuple(tensor.shape)) for name, tensor in tensors.items()]
    path = tmp_path / "it.safetensors"
    with writing(path, planned) as shard:
        for tensor in tensors.values():
            shard.write(tensor)
    theirs, ours = load_file(path), read_header(path)
    assert list(ours) == list(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(theirs[name], tensor), name
        assert torch.equal(ours[name].read(), tensor), name


def test_a_shard_that_is_not_finished_leaves_no_file(tmp_path: Path) -> None:
    import torch

    def write_one_of_two() -> None:
        with writing(
            tmp_path / "it.safetensors", [TensorSpec("a", "F32", (2,)), TensorSpec("b", "F32", (2,))]
        ) as shard:
            shard.write(torch.zeros(2))

    with pytest.raises(ArtifactError, match="b was not written"):
        write_one_of_two()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "header",
    [
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 9]}}',
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}',
        '{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [1099511627776, 1099511627776], "data_offsets": [0, 8]}}',
        '{"a": 3}', "[]", "{", "[" * 5000,
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(tmp_path: Path, header: str) -> None:
    path = tmp_path / "it.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"\0" * 8)
    with pytest.raises(ArtifactError, match=r"it\.safetensors: no safetensors file, or damaged"):
        read_header(path)


def test_a_file_that_shrinks_while_it_is_read_is_told(tiny_base: Path, tmp_path: Path) -> None:
    path = shutil.copy(tiny_base / "model.safetensors", tmp_path)
    tensors = read_header(Path(path))
    last = max(tensors.values(), key=lambda tensor: tensor.offset)
    with Path(path).open("r+b") as file:
        file.truncate(last.offset + 1)
    with pytest.raises(ArtifactError, match="is cut short: the file has changed while it was read"):
        last.read()
