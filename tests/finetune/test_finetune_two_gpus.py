"""One training on two GPUs, as far as a processor can stand for them: Unsloth's CUDA classes, two processes on gloo."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gladstone.artifacts import read_manifest
from scripts.interpreter import available
from tests.families import write_family
from tests.faults.forked import Server, spoil_gradient
from tests.finetune.test_finetune_ranks import check_equal, finish, metrics, start
from tests.tiny_models import medical_rows, tiny_recipe, write_rows_file

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.skipif(not available(), reason="no triton")]

# writes the index of every GPU that a call of torch names
NAMED_GPUS = """
import re, torch
from torch.overrides import TorchFunctionMode
class Named(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        for value in (*args, *(kwargs or {{}}).values()):
            named = re.fullmatch(r"cuda(?::(\\d+))?", str(value)) if isinstance(value, (str, torch.device)) else None
            if named:
                with open({path!r}, "a") as file:
                    file.write(f"{{named[1] or torch.cuda.current_device()}}\\n")
        return function(*args, **(kwargs or {{}}))
Named().__enter__()
"""
OVERFLOWS_ONCE = spoil_gradient("PaddedForward", 1)


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Commands that see two T4s."""
    with Server(tmp_path_factory.mktemp("gpus"), 7, 5) as server:
        yield server


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of two short rows: triton's interpreter takes seconds for each."""
    folder = tmp_path_factory.mktemp("recipe")
    rows = [{name: " ".join(text.split()[:5]) for name, text in row.items()} for row in medical_rows()[:6]]
    made = tiny_recipe(
        write_family("qwen2", folder / "base"),
        write_rows_file(folder / "rows.jsonl", rows),
        lora={"targets": ["q_proj", "down_proj"]},
        training={"max_steps": 2, "batch_size": 2, "evaluations": 1},
    )
    made["data"] |= {"validation": 0, "test": 0}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(made))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def alone(recipe: Path, gpus: Server, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("alone") / "out"
    code, _, told = gpus.run("run", recipe, "--out", out)
    assert code == 0, told
    return metrics(out)


def test_each_process_computes_its_part_on_its_own_gpu(
    gpus: Server, recipe: Path, alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    named = [tmp_path / f"named-{rank}" for rank in range(2)]
    before = [NAMED_GPUS.format(path=str(path)) for path in named]
    finish(start(gpus, "run", recipe, "--out", tmp_path / "out", before=before))
    assert [set(path.read_text().split()) for path in named] == [{"0"}, {"1"}]
    facts = read_manifest(tmp_path / "out").facts
    assert (facts["device"], facts["dtype"], facts["processes"]) == ("cuda", "float16", 2)
    check_equal(metrics(tmp_path / "out"), alone, rel=1e-3)


def test_two_gpus_go_on_where_two_stopped(
    gpus: Server, recipe: Path, alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    finish(start(gpus, "run", recipe, "--out", out, "--max-steps", "1"))
    finish(start(gpus, "run", recipe, "--out", out, "--resume"))
    check_equal(metrics(out), alone, rel=1e-3)


def test_what_overflows_on_one_gpu_is_skipped_on_both(gpus: Server, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finish(start(gpus, "run", recipe, "--out", out, before=("", OVERFLOWS_ONCE)))
    facts = read_manifest(out).facts
    assert facts["skipped_steps"] == 1
    assert [(event["step"], event["grad_norm"], event["loss_scale"]) for event in facts["events"]] == [
        (1, "NaN", 65536.0)
    ]
