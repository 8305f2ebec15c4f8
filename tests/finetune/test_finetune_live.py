import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.cells import cell_len

from finetune.monitor.live_view import clock, sparkline
from tests.finetune.live_child import STEPS, TOTAL
from tests.waiting import PATIENCE_S

if sys.platform != "win32":
    import fcntl
    import pty
    import termios

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
ROOT = Path(__file__).parents[2]
CONTROL = re.compile(r"\x1b\[([\d;?]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)")


@dataclass
class Screen:
    """As much of a terminal as it takes to see what a renewed line leaves behind."""

    rows: list[str] = field(default_factory=lambda: [""])
    row: int = 0
    column: int = 0

    def feed(self, text: str) -> None:
        for numbers, letter, back, down, plain in CONTROL.findall(text):
            if letter == "A":
                self.row -= int(numbers or 1)
            elif letter == "K":
                assert numbers == "2"
                self.rows[self.row] = ""
            elif letter:
                assert letter == "m", f"an escape that the view has no use for: {numbers}{letter}"
            elif back:
                self.column = 0
            elif down:
                self.row, self.column = self.row + 1, 0
                self.rows += [""] * (self.row + 1 - len(self.rows))
            else:
                line = self.rows[self.row]
                self.rows[self.row] = line[: self.column].ljust(self.column) + plain + line[self.column + len(plain) :]
                self.column += len(plain)


@dataclass
class Terminal:
    """A child whose stderr is a pseudo-terminal, and all that it has written there."""

    child: subprocess.Popen[str]
    master: int
    written: str = ""

    def read_until(self, condition: Callable[[str], bool]) -> str:
        """All that was written when the condition holds."""
        end_s = time.monotonic() + PATIENCE_S
        while not condition(self.written):
            assert time.monotonic() < end_s, f"not seen in {PATIENCE_S} s: … {self.written[-900:]!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.written += os.read(self.master, 65536).decode("utf-8", "replace")
                except OSError:  # the child has closed its end
                    assert condition(self.written), self.written[-900:]
        return self.written

    def finish(self) -> str:
        assert self.child.stdin is not None
        self.child.stdin.write("\n")
        self.child.stdin.flush()
        return self.read_until(lambda text: "Training: done in" in text and text.endswith("\n"))


@contextmanager
def terminal(log: Path, columns: int, lines: int = 24, **variables: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.finetune.live_child", str(log)],
        cwd=ROOT,
        env=environment | {"TERM": "xterm-256color"} | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=slave,
        text=True,
    )
    os.close(slave)
    shown = Terminal(child, master)
    try:
        yield shown
    finally:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            assert stream is not None
            stream.close()
        os.close(shown.master)


def has_sample(text: str) -> bool:
    return "sample at step" in text and text.endswith("\n") is False and "…" in text.rpartition("sample at step")[2]


@pytest.mark.parametrize("columns", [40, 100])
def test_the_view_shows_the_training_and_leaves_one_line(tmp_path: Path, columns: int) -> None:
    with terminal(tmp_path / "log", columns) as shown:
        screen = Screen()
        screen.feed(shown.read_until(has_sample))
        text = "\n".join(screen.rows)
        assert f"Training  step {STEPS}/{TOTAL}" in text
        assert re.search(r"^loss \d\.\d{3}  [▁▂▃▄▅▆▇█]{9}$", text, re.MULTILINE)
        assert "validation 2.250 at step 6  best ★ 1.900" in text
        assert "tokens/s  peak memory" in text
        assert "sample at step 8: What is asthma? →" in text
        assert [row for row in screen.rows if cell_len(row) > columns and ": done in" not in row] == []
        whole = Screen()
        whole.feed(shown.finish())
        left = [row for row in whole.rows if row]
        assert [row.partition(":")[0] for row in left] == ["Loading", "a line that stays", "Training"]
        assert re.fullmatch(rf"Training: done in \d+\.\d s   75%  step {STEPS}/{TOTAL}", left[2])
        assert shown.child.wait(PATIENCE_S) == 0
    log = (tmp_path / "log").read_text()
    assert log.count("a library says this\n") == log.count("and C code this\n") == STEPS


def test_a_view_of_few_lines_is_cut_to_them(tmp_path: Path) -> None:
    with terminal(tmp_path / "log", columns=60, lines=4) as shown:
        screen = Screen()
        screen.feed(shown.read_until(lambda text: "loss" in text))
        lasting = ("Loading", "a line that stays")
        assert len([row for row in screen.rows if row and not row.startswith(lasting)]) <= 4


def test_a_sample_can_neither_steer_the_terminal_nor_style_it(tmp_path: Path) -> None:
    with terminal(tmp_path / "log", columns=100) as shown:
        written = shown.read_until(has_sample)
    assert "\x1b]" not in written
    assert "\x9b" not in written
    assert "\x07" not in written
    assert "␛]0;taken over␇[bold red]plain[/] �2Jend of the answer" in re.sub(r"\x1b\[[\d;]*m|\r?\n", "", written)


def test_the_cursor_is_never_hidden_and_ctrl_c_tells_where_it_stopped(tmp_path: Path) -> None:
    with terminal(tmp_path / "log", columns=80) as shown:
        shown.read_until(has_sample)
        shown.child.send_signal(signal.SIGINT)
        written = shown.read_until(lambda text: "Training: stopped after" in text and text.endswith("\n"))
        assert shown.child.wait(PATIENCE_S) != 0
    assert "\x1b[?25" not in written
    screen = Screen()
    screen.feed(written)
    assert [row.partition(":")[0] for row in screen.rows if row][:3] == ["Loading", "a line that stays", "Training"]


def test_no_color_leaves_no_colour(tmp_path: Path) -> None:
    colour = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7])[;m]")
    with terminal(tmp_path / "log", columns=80) as shown:
        assert colour.search(shown.read_until(has_sample))
    with terminal(tmp_path / "log", columns=80, NO_COLOR="1") as shown:
        assert not colour.search(shown.read_until(has_sample))


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path) -> None:
    with terminal(tmp_path / "log", columns=80, TERM="dumb") as shown:
        shown.read_until(lambda text: "Training …" in text)
        written = shown.finish()
    assert "\x1b" not in written
    lines = written.replace("\r\n", "\n").splitlines()
    assert [line.partition(":")[0] for line in lines] == ["Loading …", "Loading", "Training …", "Training"]


def test_a_terminal_that_goes_away_does_not_end_the_training(tmp_path: Path) -> None:
    with terminal(tmp_path / "log", columns=80) as shown:
        shown.read_until(has_sample)
        other, shown.master = shown.master, os.open(os.devnull, os.O_RDONLY)
        os.close(other)  # the last one: what the child writes from here on fails
        time.sleep(1.2)  # the view renews itself meanwhile, on nothing
        assert shown.child.stdin is not None
        shown.child.stdin.write("\n")
        shown.child.stdin.flush()
        assert shown.child.stdout is not None
        assert shown.child.stdout.read() == "done\n"
        assert shown.child.wait(PATIENCE_S) == 0


@pytest.mark.parametrize(
    ("values", "width", "text"),
    [
        ([], 5, ""),
        ([1.0], 5, "▁"),
        ([1.0, 1.0], 5, "▁▁"),
        ([8, 7, 6, 5, 4, 3, 2, 1], 8, "█▇▆▅▄▃▂▁"),
        ([3.0, 1.0], 0, ""),
    ],
)
def test_a_sparkline_goes_from_the_lowest_to_the_highest(values: list[float], width: int, text: str) -> None:
    assert sparkline(range(len(values)), values, width) == text


def test_a_sparkline_of_many_steps_fits_its_width_and_passes_over_nan() -> None:
    values = [float(value) for value in range(20_000)]
    values[7] = float("nan")
    line = sparkline(range(20_000), values, 40)
    assert len(line) == 40
    assert line[0] == "▁"
    assert line[-1] == "█"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (65, "1:05"), (3725, "1:02:05"), (59.7, "1:00")])
def test_a_clock_has_hours_only_if_there_are_any(seconds: float, text: str) -> None:
    assert clock(seconds) == text
