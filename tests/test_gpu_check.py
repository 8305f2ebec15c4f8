"""benchmarks/gpu_check on the processor: what it measures and prints is what it will measure and print on a GPU."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check.checks import CHECKS, Case
from benchmarks.gpu_check.families import FAMILIES
from benchmarks.gpu_check.results import CannotRunError, Result, json_line, row
from benchmarks.gpu_check.side import FailedError, Side
from tests.waiting import PATIENCE_S
from tests.warm_python import EXPORT, warm_python

PLAIN = (*EXPORT, "transformers.models.t5.modeling_t5", "transformers.models.gpt2.modeling_gpt2")


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with warm_python(tmp_path_factory.mktemp("warm"), PLAIN) as python, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(python))
        yield


def run(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, list[str], dict[str, Any]]:
    """The exit code, the lines of the table, and the line of JSON, which must be strict."""

    def refuse(word: str) -> None:
        raise AssertionError(f"not JSON: {word}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gpu_check", "--tiny", *options])
        with pytest.raises(SystemExit) as ended:
            gpu_check.main()
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("| ")][1:]
    return cast(int, ended.value.code), table, json.loads(lines[-1], parse_constant=refuse)


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_family_without_unsloth_is_checked_against_plain_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["nf4", "gradient", "steps", "sampling", "out-of-memory", "estimate"]
    code, table, said = run(capsys, "--families", "t5", "--only", *chosen)
    assert [(each["check"], each["family"]) for each in said["results"]] == [(name, "t5") for name in chosen]
    assert [each["ok"] for each in said["results"]] == [None, True, True, True, True, None]
    assert (code, said["passed"], said["failed"], said["not_run"]) == (0, 4, 0, 2)
    assert [line.split(" | ")[0].removeprefix("| ") for line in table] == chosen
    assert "float32" in said["results"][0]["got"]
    assert "needs a GPU" in said["results"][-1]["got"]
    assert said["results"][1]["figures"]["plain"]["cosine"] > 0.9999


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_every_check_of_a_family_works_on_the_processor(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, table, said = run(capsys, "--families", family, "--minutes", "20")
    both = [] if family == "t5" else [check.name for check in CHECKS if check.both]
    assert [each["check"] for each in said["results"]] == [*(check.name for check in CHECKS), *both]
    assert len(table) == len(said["results"])
    assert [each for each in said["results"] if each["ok"] is False] == []
    assert all(each["ok"] or "GPU" in each["got"] or "trained in" in each["got"] for each in said["results"])


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_without_time_nothing_is_checked_and_nothing_counts_as_passed(capsys: pytest.CaptureFixture[str]) -> None:
    code, table, said = run(capsys, "--families", "t5", "gpt2", "--minutes", "0")
    assert {each["ok"] for each in said["results"]} == {None}
    assert {each["family"] for each in said["results"]} == {"t5", "gpt2"}
    assert all("--minutes" in each["got"] for each in said["results"])
    assert len(table) == len(said["results"])
    assert (code, said["passed"]) == (1, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_without_a_gpu_it_says_how_the_checks_can_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--families", "t5"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit, match=r"GPU.*--tiny"):
        gpu_check.main()


def test_a_side_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    side = Side("tests.gpu_check_orders", {"family": "t5"}, tmp_path / "log")
    try:
        assert side.ask("work", PATIENCE_S, rows=2) == {"asked": 1, "family": "t5", "rows": 2}
        with pytest.raises(CannotRunError, match="no such device"):
            side.ask("refuse", PATIENCE_S)
        with pytest.raises(CannotRunError, match="no_such_module is not installed"):
            side.ask("import", PATIENCE_S, name="no_such_module")
        with pytest.raises(FailedError, match=r"RuntimeError: it broke"):
            side.ask("fail", PATIENCE_S, words="it broke")
        assert side.ask("work", PATIENCE_S)["asked"] == 5  # the same process
        with pytest.raises(FailedError, match="CUDA error"):
            side.ask("fail", PATIENCE_S, words="CUDA error: an illegal memory access")
        assert side.ask("work", PATIENCE_S)["asked"] == 1  # a new one
        with pytest.raises(FailedError, match=r"ended with 7.*noise of a library"):
            side.ask("die", PATIENCE_S)
        assert side.ask("work", PATIENCE_S)["asked"] == 1
        with pytest.raises(FailedError, match="in time"):
            side.ask("sleep", 0.2)
    finally:
        side.close()


class Answers:
    """A side with ready answers."""

    def __init__(self, **answers: dict[str, Any]) -> None:
        self._answers = answers

    def ask(self, order: str, _limit_s: float, **_arguments: Any) -> dict[str, Any]:
        return self._answers[order]


SAME = {"cosine": 1.0, "difference": 0.0}
LAYERS = {"nf4": 28, "other": 0, "bytes": 1}
LOSSES = [4.0 - step / 10 for step in range(10)]
SOUND: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nf4": ({"nf4": {"before": LAYERS, "after": LAYERS}}, {}),
    "gradient": (
        {"gradient": {"dtype": "bfloat16", "loss": 4.0, "adapter": "", "gradient": ""}}, {"gradient": {"loss": 4.03, **SAME}}),
    "steps": (
        {"steps": {"losses": [4.0, *LOSSES[:9]], "updates": [0, *range(9)], "skipped": 1, "adapter": ""}},
        {"steps": {"losses": LOSSES}}),
    "checkpointing": (
        {"checkpointing": {"peaks": {"off": 9, "standard": 5, "unsloth": 4},
                           "differences": {"standard": SAME, "unsloth": SAME}}}, {}),
    "sampling": ({"sampling": {"flags": [], "peaks": [100, 101], **SAME}}, {}),
    "out-of-memory": ({"out_of_memory": {"redone": 1, **SAME}}, {}),
    "resume": ({"resume": {"stopped": "--max-steps 5", "losses": [LOSSES, LOSSES], "adapters": 0.0}}, {}),
    "estimate": ({"estimate": {"bytes": {"off": [10, 9], "unsloth": [5, 5]}}}, {}),
    "speed": (
        {"save": {"adapter": ""}, "turn": {"seconds": [1.0], "tokens": 10, "peak": 5}, "forget": {}},
        {"turn": {"seconds": [2.0], "tokens": 10, "peak": 9}, "forget": {}}),
    "export": ({"export": {"checks": {"vocabulary": True}}}, {}),
}  # fmt: skip
SOUND["vram"] = SOUND["speed"]
SPOILT: list[tuple[str, dict[str, Any]]] = [
    ("nf4", {"after": {"nf4": 27, "other": 1, "bytes": 1}}),
    ("nf4", {"before": {"nf4": 28, "other": 1, "bytes": 1}}),
    ("gradient", {"loss": 4.2}),
    ("steps", {"skipped": 4}),
    ("steps", {"losses": LOSSES}),  # as if nothing had been skipped
    ("steps", {"losses": [4.0] * 10, "updates": [0] * 10}),
    ("checkpointing", {"peaks": {"off": 9, "standard": 4, "unsloth": 5}}),
    ("checkpointing", {"peaks": {"off": 9, "standard": 9, "unsloth": 8.9}}),
    ("checkpointing", {"differences": {"standard": SAME, "unsloth": {"cosine": 0.9, "difference": 0.5}}}),
    ("sampling", {"flags": ["model.gradient_checkpointing"]}),
    ("sampling", {"peaks": [100, 1900]}),
    ("sampling", {"peaks": [1900, 100]}),  # it was not recomputed before
    ("out-of-memory", {"redone": 0}),
    ("out-of-memory", {"difference": 0.1}),
    ("resume", {"losses": [LOSSES, [*LOSSES[:9], 3.2]]}),
    ("resume", {"stopped": ""}),
    ("resume", {"losses": [LOSSES, LOSSES[:5]]}),
    ("estimate", {"bytes": {"off": [10, 7], "unsloth": [5, 5]}}),
    ("speed", {"seconds": [3.0]}),
    ("vram", {"peak": 11}),
    ("export", {"checks": {"vocabulary": True, "answers": False}}),
    ("export", {"checks": {}}),
]  # fmt: skip


def find(name: str, **changes: Any) -> bool:
    """Whether a check passes when our side's answer is changed."""
    check = next(check for check in CHECKS if check.name == name)
    ours, plain = SOUND[name]
    order = {"speed": "turn", "vram": "turn"}.get(name, name.replace("-", "_"))
    said, other = (cast(Side, Answers(**each)) for each in (ours | {order: ours[order] | changes}, plain))
    return check.find(Case("mistral", "bf16", said, other, on_gpu=True, layers=28, left_s=lambda: 1.0)).ok


@pytest.mark.parametrize("name", [check.name for check in CHECKS])
def test_sound_figures_pass(name: str) -> None:
    assert find(name)


@pytest.mark.parametrize(("name", "changes"), SPOILT)
def test_figures_outside_of_what_is_wanted_fail(name: str, changes: dict[str, Any]) -> None:
    assert not find(name, **changes)


def test_every_check_has_a_way_to_fail() -> None:
    assert {check.name for check in CHECKS} == {name for name, _ in SPOILT}


def test_a_result_is_one_line_of_the_table_and_strict_json_whatever_it_holds() -> None:
    got = "a | pipe,\n two lines"
    result = Result("steps", "t5", "fp32", "falls", got, False, 2.4, {"losses": [float("nan"), 1.0], "peak": 3})
    line = row(result)
    assert "\n" not in line
    assert line.count("|") == 8
    said = json.loads(json_line([result], {"name": "a GPU"}, 2.0, tiny=True), parse_constant=pytest.fail)
    assert said["results"][0]["figures"] == {"losses": ["nan", 1.0], "peak": 3}
    assert (said["passed"], said["failed"], said["not_run"]) == (0, 1, 0)
