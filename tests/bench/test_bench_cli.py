import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from bench.cli import main
from gladstone.artifacts import Manifest, read_manifest, write_manifest
from tests.waiting import PATIENCE_S, wait_until


def run_bench(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["run", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_missing_data_file_is_one_message(embedded_gguf: Path, tmp_path: Path, out: Path) -> None:
    data = tmp_path / "no.jsonl"
    assert run_bench(embedded_gguf, "--data", data, "--out", out) == (1, f"Error: {data}: no such data file.\n")


def test_an_empty_data_file_is_one_message(embedded_gguf: Path, tmp_path: Path, out: Path) -> None:
    data = tmp_path / "empty.jsonl"
    data.touch()
    assert run_bench(embedded_gguf, "--data", data, "--out", out) == (1, f"Error: {data}: the data file is empty.\n")


def test_a_row_without_its_field_is_named_with_its_keys(embedded_gguf: Path, tmp_path: Path, out: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"question": "a", "answer": "b"}\n{"question": "a", "reply": "b"}\n')
    assert run_bench(embedded_gguf, "--data", data, "--out", out) == (
        1,
        f"Error: {data}, read as 'qa', bad rows (--skip-bad leaves them out): {data}:2: no field 'answer'; the row has 'question', 'reply'.\n",
    )


def test_a_single_row_is_refused_because_it_gives_no_interval(embedded_gguf: Path, tmp_path: Path, out: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"question": "a", "answer": "b"}\n')
    assert run_bench(embedded_gguf, "--data", data, "--out", out) == (
        1,
        f"Error: {data}: holds 1 row, expected at least 2, because one row gives no interval.\n",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty, expected a GGUF model."),
        (b"hello there\n", "expected a GGUF model, this is a text file. It begins: 'hello there'."),
        (b"PK\x03\x04" + bytes(60), "expected a GGUF model, this is a zip archive. Unpack it."),
    ],
)
def test_a_file_that_is_no_model_is_one_message(
    content: bytes, message: str, rows_file: Path, tmp_path: Path, out: Path
) -> None:
    model = tmp_path / "bad.gguf"
    model.write_bytes(content)
    assert run_bench(model, "--data", rows_file, "--out", out) == (1, f"Error: {model}: {message}\n")


def test_a_model_cut_short_is_one_message(embedded_gguf: Path, rows_file: Path, tmp_path: Path, out: Path) -> None:
    model = tmp_path / "cut.gguf"
    with embedded_gguf.open("rb") as whole:
        model.write_bytes(whole.read(50_000_000))
    code, output = run_bench(embedded_gguf, model, "--data", rows_file, "--out", out)
    assert code == 1
    assert re.fullmatch(
        rf"Error: {model}: not a usable GGUF file: tensor '.+' ends [\d,]+ bytes after the file's end: the file is cut "
        r"short, it has 50,000,000 of [\d,]+ bytes\. Download or copy it again\.\n",
        output,
    )


def test_the_same_model_twice_is_one_message(embedded_gguf: Path, rows_file: Path, tmp_path: Path, out: Path) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(embedded_gguf)
    assert run_bench(embedded_gguf, link, "--data", rows_file, "--out", out) == (
        1,
        f"Error: {embedded_gguf}: given 2 times. Give each model file once.\n",
    )


def test_a_finished_report_is_not_overwritten(embedded_gguf: Path, rows_file: Path, out: Path) -> None:
    out.mkdir()
    write_manifest(out, Manifest("bench", (), {}, {}, {}))
    assert run_bench(embedded_gguf, "--data", rows_file, "--out", out) == (
        1,
        f"Error: {out}: already holds finished work (manifest.json). Choose another folder with --out, or remove it.\n",
    )


def test_an_unknown_format_is_a_usage_error(embedded_gguf: Path, rows_file: Path, out: Path) -> None:
    code, output = run_bench(embedded_gguf, "--data", rows_file, "--format", "csv", "--out", out)
    assert code == 2
    assert "Error: Invalid value for '--format': 'csv' is not one of 'auto', 'qa', 'alpaca'," in output


def test_an_unknown_encoding_is_a_usage_error(embedded_gguf: Path, rows_file: Path, out: Path) -> None:
    code, output = run_bench(embedded_gguf, "--data", rows_file, "--encoding", "klingon", "--out", out)
    assert code == 2
    assert "'--encoding': unknown encoding 'klingon'" in output
    assert not out.exists()


def test_no_model_is_a_usage_error(rows_file: Path) -> None:
    code, output = run_bench("--data", rows_file)
    assert code == 2
    assert output.endswith("Error: Missing argument 'MODELS...'.\n")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # evaluate imports datasets and with it much that warns
def test_an_unknown_metric_stops_before_any_model_runs(
    embedded_gguf: Path, rows_file: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, output = run_bench(embedded_gguf, "--data", rows_file, "--metric", "no_such", "--out", out)
    assert code == 1
    assert "\nError: --metric no_such: " in output
    assert "perplexity and answers" not in output
    assert list(out.iterdir()) == []


def test_a_row_that_does_not_fit_the_context_is_named(embedded_gguf: Path, tmp_path: Path, out: Path) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [{"question": "a " * 5000, "answer": "b"}, {"question": "a", "answer": "b"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, output = run_bench(embedded_gguf, "--data", data, "--out", out, "--speed-repeats", 0)
    assert code == 1
    assert re.search(rf"{data}:1: 5,0\d\d tokens, more than the context of 4,096 tokens\.\n$", output)
    assert "perplexity and answers" not in output
    assert "--skip-bad" in output
    assert "--context 5120" in output


@pytest.mark.slow
def test_a_model_against_a_copy_of_itself_differs_in_no_metric(
    embedded_gguf: Path, rows_file: Path, tmp_path: Path, out: Path
) -> None:
    import shutil

    copy = tmp_path / "copy.gguf"
    shutil.copy(embedded_gguf, copy)
    options = [
        "--data",
        rows_file,
        "--out",
        out,
        "--max-tokens",
        8,
        "--answers",
        2,
        "--speed-repeats",
        1,
        "--threads",
        1,
    ]
    code, output = run_bench(embedded_gguf, copy, *options)
    assert code == 0
    assert output.endswith(f"Report:\n  {out}/report.html\n  {out}/report.md\n  {out}/report.json\n")
    data = json.loads((out / "report.json").read_text())
    verdicts = {name: gap["verdict"] for name, gap in data["models"][1]["differences"].items()}
    assert set(verdicts.values()) == {"too few answers to judge"}
    gaps = data["models"][1]["differences"]
    assert {gap["mean"] for gap in gaps.values()} == {0}
    assert all(gap["low"] == gap["high"] == 0 for name, gap in gaps.items() if name != "exact_match")
    assert (
        data["warnings"][0]
        == f"copy and {embedded_gguf.stem} are the same file: every difference between them is noise."
    )
    assert len(data["items"]) == 3
    assert [len(item["models"]["copy"]) for item in data["items"]] == [3, 3, 1]
    assert 100e6 < data["models"][0]["peak_memory_bytes"] < 1e9
    manifest = read_manifest(out)
    assert set(manifest.parents) == {"copy", embedded_gguf.stem}
    assert manifest.template_sha256 == data["models"][0]["template_sha256"]
    again = run_bench(embedded_gguf, "--data", rows_file, "--out", out)
    assert again[0] == 1


@pytest.mark.slow
def test_ctrl_c_ends_the_child_and_leaves_no_report(embedded_gguf: Path, rows_file: Path, out: Path) -> None:
    command = [sys.executable, "-c", "from bench.cli import main; main()", "run", str(embedded_gguf)]
    command += ["--data", str(rows_file), "--out", str(out), "--max-tokens", "2000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as parent:
        children = _wait_for_child(psutil.Process(parent.pid))
        parent.send_signal(signal.SIGINT)
        assert parent.stderr is not None
        output = parent.stderr.read()
        assert parent.wait(PATIENCE_S) == 130
    assert output.endswith("\nStopped.\n")
    assert not any(child.is_running() for child in children)
    assert list(out.iterdir()) == []


@pytest.mark.slow
def test_the_child_ends_when_its_parent_is_killed(embedded_gguf: Path, rows_file: Path, out: Path) -> None:
    command = [sys.executable, "-c", "from bench.cli import main; main()", "run", str(embedded_gguf)]
    command += ["--data", str(rows_file), "--out", str(out), "--max-tokens", "2000"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2]) as parent:
        children = _wait_for_child(psutil.Process(parent.pid))
        parent.kill()
    _gone, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []


def _wait_for_child(parent: psutil.Process) -> list[psutil.Process]:
    wait_until(parent.children, "a child appears")
    time.sleep(1.5)  # into the work
    return parent.children()


def test_the_error_of_a_child_that_crashes_names_the_model_and_ends_with_its_traceback(embedded_gguf: Path) -> None:
    from bench.measure import child as children
    from bench.measure.measure import QualityJob
    from gladstone.errors import ToolError

    job = QualityJob(embedded_gguf, (), 0, 8, None, frame=None)  # type: ignore[arg-type]  # what the child trips over
    with pytest.raises(ToolError) as caught:
        children.run_quality(job, "the-model", lambda count: None)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("the-model: the process that measures this model failed (exit code 1).")
    assert "AttributeError: 'NoneType' object" in lines[-1]
    assert len(lines) <= 21


def test_a_child_that_is_killed_is_told_with_the_signal(embedded_gguf: Path) -> None:
    from bench.measure import child as children
    from bench.measure.measure import QualityJob
    from bench.results import Item
    from gladstone.chat.messages import Message
    from gladstone.errors import ToolError

    items = tuple(Item(f"a:{n}", (Message("user", "Hello"),), Message("assistant", "Hello.")) for n in range(200))

    def kill(count: int) -> None:
        for child in psutil.Process().children():
            os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(ToolError, match=r"^m: the process that measures this model failed \(SIGKILL"):
        children.run_quality(QualityJob(embedded_gguf, items, 0, 8, 1), "m", kill)


def test_a_job_survives_its_journey_to_the_child() -> None:
    from bench.measure.child_main import decode_job, encode_job
    from bench.measure.measure import QualityJob, SpeedJob
    from bench.results import Item
    from gladstone.chat.messages import Message

    items = (Item("rows:1", (Message("system", "ü\n"), Message("user", "q\u2028")), Message("assistant", "a", "why")),)
    for job in (QualityJob(Path("m.gguf"), items, 1, 8, None), SpeedJob(Path("m.gguf"), items, 16, 4, 2)):
        assert decode_job(json.loads(json.dumps(encode_job(job), default=str))) == job


def test_the_help_of_a_subcommand_loads_nothing_heavy() -> None:
    code = (
        "import sys; from bench.cli import main\n"
        "try: main(['run', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'llama_cpp', 'evaluate', 'sacrebleu', 'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "print(heavy, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stderr == "set()\n"
