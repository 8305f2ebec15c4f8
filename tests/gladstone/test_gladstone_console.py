"""Command glue, progress and output of the commands."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gladstone.cli import STAGES
from gladstone.cli import main as gladstone_main
from gladstone.commands.group import Group
from gladstone.commands.progress import Lines, Silent, step
from gladstone.errors import ArtifactError, GladstoneError, UnsupportedError
from gladstone.machine.packages import require_packages
from gladstone.process.redirect_output import redirect_output
from tests.waiting import wait_until


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@click.group(cls=Group, lazy={"later": ("tests.gladstone.lazy_command:main", "Loaded when it is called.")})
def tool() -> None:
    """A command of the tests."""


@tool.command()
@click.argument("what")
def fail(what: str) -> None:
    """Fail in one of the ways there are."""
    if what == "error":
        raise ArtifactError("model.gguf: cut short. Copy it again.")
    if what == "interrupt":
        raise KeyboardInterrupt
    if what == "bug":
        raise ZeroDivisionError("a bug")
    click.echo("done")


@pytest.mark.parametrize(
    ("what", "code", "stdout", "stderr"),
    [
        ("nothing", 0, "done\n", ""),
        ("error", 1, "", "Error: model.gguf: cut short. Copy it again.\n"),
        ("interrupt", 130, "", "\nStopped.\n"),
    ],
)
def test_the_exit_code_says_how_it_ended(what: str, code: int, stdout: str, stderr: str) -> None:
    result = CliRunner().invoke(tool, ["fail", what])
    assert (result.exit_code, result.stdout, result.stderr) == (code, stdout, stderr)


@pytest.mark.parametrize("arguments", [["fail"], ["fail", "a", "b"], ["fail", "--no"], ["unknown"]])
def test_wrong_usage_ends_with_two(arguments: list[str]) -> None:
    result = CliRunner().invoke(tool, arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(tool, ["fail", "bug"], catch_exceptions=False)


def test_help_lists_a_lazy_command_without_loading_it_and_a_call_loads_it() -> None:
    sys.modules.pop("tests.gladstone.lazy_command", None)
    result = CliRunner().invoke(tool, ["--help"])
    assert result.exit_code == 0
    assert re.search(r"fail +Fail in one of the ways there are\.\n +later +Loaded when it is called\.", result.stdout)
    assert "tests.gladstone.lazy_command" not in sys.modules
    assert CliRunner().invoke(tool, ["later"]).stdout == "loaded\n"


def test_an_error_inside_a_nested_group_is_reported_once() -> None:
    outer = Group("outer", commands={"tool": tool})
    result = CliRunner().invoke(outer, ["tool", "fail", "error"])
    assert result.exit_code == 1
    assert result.stderr == "Error: model.gguf: cut short. Copy it again.\n"


def test_the_umbrella_lists_every_stage() -> None:
    result = CliRunner().invoke(gladstone_main, ["--help"])
    assert result.exit_code == 0
    for name, (_, summary) in STAGES.items():
        assert re.search(rf"{name} +{re.escape(summary)}", result.stdout)


def test_missing_packages_are_named_with_the_installation_that_helps() -> None:
    require_packages("The test", "finetune", ["json", "pathlib"])
    with pytest.raises(UnsupportedError) as caught:
        require_packages("The test", "finetune", ["json", "no_such_one", "no_such_two"])
    assert str(caught.value) == (
        "The test needs no_such_one, no_such_two, not installed here. Run: pip install 'gladstone[finetune]' "
        "(from a clone: pip install '.[finetune]')"
    )


def test_plain_progress_is_a_line_at_the_start_and_one_at_the_end() -> None:
    stream = io.StringIO()
    with step(Lines(stream), "Merging") as progress:
        progress.update(0.5, "tensor 3")
    assert re.fullmatch(r"Merging …\nMerging: done in \d+\.\d s   50%  tensor 3\n", stream.getvalue())


def fail_in_step(progress: Lines) -> None:
    with step(progress, "Merging"):
        progress.update(0.5)
        raise GladstoneError


def test_progress_says_when_a_step_failed() -> None:
    stream = io.StringIO()
    with pytest.raises(GladstoneError):
        fail_in_step(Lines(stream))
    assert re.fullmatch(r"Merging …\nMerging: stopped after \d+\.\d s\n", stream.getvalue())


def test_progress_that_takes_long_shows_sparse_lines() -> None:
    stream = io.StringIO()
    with step(Lines(stream, plain_interval_s=0.02), "Merging") as progress:
        progress.update(0.25, "tensor 1")
        wait_for(stream, "tensor 1")
    assert "Merging …   25%  tensor 1  0 s\n" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_progress_on_a_terminal_renews_its_line() -> None:
    stream = Terminal()
    with step(Lines(stream), "Merging"):
        wait_for(stream, "Merging …")
    assert stream.getvalue().startswith("\r\x1b[2KMerging …  0 s")
    assert re.search(r"\r\x1b\[2KMerging: done in \d+\.\d s\n$", stream.getvalue())


def test_one_progress_shows_steps_after_each_other() -> None:
    stream = io.StringIO()
    progress = Lines(stream)
    for name in ("One", "Two"):
        with step(progress, name):
            pass
    assert [line.split(":")[0] for line in stream.getvalue().splitlines()] == ["One …", "One", "Two …", "Two"]


def test_a_step_that_never_began_cannot_be_finished() -> None:
    with pytest.raises(RuntimeError, match=r"finish\(\) without start\(\)"):
        Lines(io.StringIO()).finish(False)


def test_silent_progress_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with step(Silent(), "Merging") as progress:
        progress.update(0.5)
    assert capfd.readouterr() == ("", "")


def wait_for(stream: io.StringIO, text: str) -> None:
    wait_until(lambda: text in stream.getvalue(), f"{text!r} is shown")


def test_output_of_python_of_c_and_of_children_goes_to_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "logs" / "train.log"
    print("before")
    with redirect_output(log):
        print("python out")
        print("python err", file=sys.stderr)
        os.write(1, b"c out\n")
        os.write(2, b"c err\n")
        subprocess.run(["echo", "child out"], check=True)
    print("after")
    assert capfd.readouterr() == ("before\nafter\n", "")
    assert sorted(log.read_text().splitlines()) == ["c err", "c out", "child out", "python err", "python out"]


def fail_quietly(log: Path, text: str) -> None:
    with redirect_output(log):
        print(text)
        raise ZeroDivisionError


def test_output_comes_back_after_an_error_and_the_log_grows(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "train.log"
    for number in range(2):
        with pytest.raises(ZeroDivisionError):
            fail_quietly(log, f"inside {number}")
    os.write(2, b"outside\n")
    assert capfd.readouterr() == ("", "outside\n")
    assert log.read_text() == "inside 0\ninside 1\n"


def test_progress_reaches_the_user_while_libraries_are_quiet(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from gladstone.commands.progress import Lines, step; from gladstone.process.redirect_output import redirect_output\n"
        "progress = Lines()\n"
        "with redirect_output(Path(sys.argv[1])), step(progress, 'Training'):\n"
        "    os.write(2, b'noise\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "log"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"Training …\nTraining: done in \d+\.\d s\n", done.stderr)
    assert (tmp_path / "log").read_text() == "noise\n"


def test_a_line_on_a_terminal_never_wraps() -> None:
    stream = Terminal()  # of unknown size: 80 columns
    with step(Lines(stream), "Merging") as progress:
        progress.update(0.5, "tensor " * 40)
        wait_for(stream, "tensor")
    renewed = re.findall(r"\r\x1b\[2K(Merging ….*?)(?=\r|$)", stream.getvalue())
    assert renewed
    assert {len(line) for line in renewed} == {79}


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with step(Lines(stream), "Merging") as progress:
        progress.update(0.5)
    assert re.fullmatch(r"Merging …\nMerging: done in \d+\.\d s   50%\n", stream.getvalue())
