"""The live view of a training on a terminal: progress, losses, throughput, and the latest sample.

The view must never end a training: if the terminal is gone, output is dropped. The cursor stays visible, so that the
terminal is usable however the process ends.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Any, cast

from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.live import Live
from rich.text import Text

from finetune.monitor.callbacks import Callback
from finetune.monitor.metrics_log import History, StepStats
from finetune.monitor.smoothing import thinned
from gladstone.commands.progress import Lines, duplicate_stderr, is_terminal, terminal_size
from gladstone.machine.gpu_memory import gpu_memory_facts
from gladstone.machine.host import peak_memory_bytes, readable_bytes
from gladstone.report.terminal import one_line, visible

REFRESHES_PER_S = 2.0
BARS = "▁▂▃▄▅▆▇█"
RECENT_STEPS, SAMPLE_LINES, WIDEST = 20, 3, 100


def make_display() -> Lines:
    """A LiveView if stderr is a terminal that can show it, else plain lines."""
    stream = duplicate_stderr()
    return LiveView(stream) if is_terminal(stream) else Lines(stream)


class LiveView(Lines, Callback):
    """Progress display and training callback in one; pass it to a run as both."""

    def __init__(self, stream: Any, memory: Callable[[], str] | None = None) -> None:
        super().__init__(cast("Any", _UnbreakableStream(stream)))
        self._console = _TerminalConsole(file=cast("IO[str]", self._stream), force_terminal=True, highlight=False)
        self._memory = memory or memory_in_use
        self._view: Live | None = None
        self._lock = threading.Lock()
        self._total, self._made, self._first_s, self._last_s = 0, 0, 0.0, 0.0
        self._last: StepStats | None = None
        self._losses: list[float] = []
        self._skipped: list[int] = []
        self._steps: list[int] = []
        self._recent: list[StepStats] = []
        self._validation: tuple[int, float] | None = None
        self._best: tuple[int, float] | None = None
        self._sample: tuple[int, str, str] | None = None

    def start(self, name: str) -> None:
        self._name, self._state, self._begin_s = name, "", time.monotonic()
        self._last, self._made = None, 0
        self._view = Live(
            get_renderable=self.render,
            console=self._console,
            refresh_per_second=REFRESHES_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._view.start()

    def show(self, text: str) -> None:
        """Write permanent lines above the view."""
        if self._view is None:
            super().show(visible(text))
        else:
            self._console.print(Text(visible(text)))

    def finish(self, failed: bool) -> None:
        if self._view is None:
            raise RuntimeError("finish() without start()")
        self._view.stop()
        self._view = None
        self._write(f"{visible(self._summary(failed))}\n")

    def on_train_begin(self, history: History, total: int) -> None:
        """Show what was logged before a resume."""
        with self._lock:
            self._total, self._best = total, history.best
            self._validation = history.validation[-1] if history.validation else None
            self._steps = [stats.step for stats in history.steps]
            self._losses = [stats.loss_nats_per_token for stats in history.steps]
            self._skipped = [stats.step for stats in history.steps if stats.skipped]

    def on_step_end(self, stats: StepStats, total: int) -> None:
        """Show a step."""
        with self._lock:
            if self._last is None:
                self._first_s = time.monotonic() - stats.step_s
            self._last_s = time.monotonic()
            self._last, self._total, self._made = stats, total, self._made + 1
            self._steps.append(stats.step)
            self._losses.append(stats.loss_nats_per_token)
            self._skipped += [stats.step] if stats.skipped else []
            self._recent = [*self._recent[1 - RECENT_STEPS :], stats]

    def on_validation_end(self, step: int, loss: float) -> None:
        """Show the validation loss."""
        with self._lock:
            self._validation = (step, loss)
            if self._best is None or loss < self._best[1]:
                self._best = self._validation

    def on_sample(self, step: int, prompt: str, text: str) -> None:
        """Show an answer to a fixed prompt."""
        with self._lock:
            self._sample = (step, one_line(prompt), one_line(text))

    def render(self) -> RenderableType:
        """The current view: one line, or all lines during training."""
        with self._lock:
            if self._last is None:
                return Text(visible(self._present()), no_wrap=True, overflow="ellipsis")
            return Group(*self._lines(self._last))

    def _lines(self, last: StepStats) -> list[RenderableType]:
        size = terminal_size(self._stream)
        lines: list[RenderableType] = [
            self._headline(last),
            _bar(last.step / max(self._total, 1), min(size.columns, WIDEST)),
            self._loss_line(last, min(size.columns, WIDEST)),
        ]
        if self._skipped:
            skipped = f"skipped {len(self._skipped):,}, the last at step {self._skipped[-1]:,}: gradient not finite"
            lines.append(Text(skipped, "yellow"))
        if self._validation is not None and self._best is not None:
            lines.append(_validation_line(self._validation, self._best))
        lines.append(Text(f"{self._tokens_per_s():,.0f} tokens/s  {self._memory()}"))
        if self._sample is not None:
            lines += _sample_lines(self._sample, self._console, size.columns)
        return lines[: max(size.lines - 1, 1)]

    def _headline(self, last: StepStats) -> Text:
        step_s = (self._last_s - self._first_s) / self._made
        left_s = max(0.0, step_s * (self._total - last.step) - (time.monotonic() - self._last_s))
        text = Text(one_line(self._name), "bold")
        text.append(f"  step {last.step:,}/{self._total:,}", "not bold")
        if last.step < self._total:
            text.append(f"  {clock(left_s)} left", "not bold")
        return text

    def _loss_line(self, last: StepStats, width: int) -> Text:
        text = Text("loss ", no_wrap=True)
        text.append(f"{last.loss_nats_per_token:.3f}  ", "bold")
        text.append(sparkline(self._steps, self._losses, width - text.cell_len), "cyan")
        return text

    def _tokens_per_s(self) -> float:
        spent_s = sum(stats.step_s for stats in self._recent)
        return sum(stats.tokens for stats in self._recent) / spent_s if spent_s else 0.0


def _bar(share: float, width: int) -> Text:
    done = round(min(share, 1.0) * width)
    return Text("━" * done, "green", no_wrap=True).append("─" * (width - done), "dim")


def _validation_line(validation: tuple[int, float], best: tuple[int, float]) -> Text:
    text = Text(f"validation {validation[1]:.3f} at step {validation[0]:,}")
    if validation == best:
        text.append("  ★ best", "green")
    else:
        text.append(f"  best ★ {best[1]:.3f} at step {best[0]:,}", "yellow")
    return text


def _sample_lines(sample: tuple[int, str, str], console: Console, width: int) -> list[RenderableType]:
    step, prompt, text = sample
    shown = Text(f"sample at step {step:,}: ", "dim")
    shown.append(f"{prompt[: width * SAMPLE_LINES]} → ", "dim")
    shown.append(text[: width * SAMPLE_LINES], "not dim")
    wrapped = list(shown.wrap(console, width))
    if len(wrapped) > SAMPLE_LINES:
        wrapped[SAMPLE_LINES - 1].truncate(width - 1)
        wrapped[SAMPLE_LINES - 1].append("…")
    return list(wrapped[:SAMPLE_LINES])


def sparkline(steps: Sequence[int], values: Sequence[float], width: int) -> str:
    """At most `width` bars scaled from the lowest to the highest value; each bar is the mean of a group of values.

    >>> sparkline([1, 2, 3], [4.0, 2.0, 1.0], 10)
    '█▃▁'
    """
    if width < 1:
        return ""
    shown = thinned(steps, values, width).values
    if not len(shown):
        return ""
    low, span = shown.min(), (shown.max() - shown.min()) or 1.0
    return "".join(BARS[int((value - low) / span * (len(BARS) - 1))] for value in shown)


def clock(seconds: float) -> str:
    """3725 → '1:02:05', 65 → '1:05'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def memory_in_use() -> str:
    """Peak memory of the process, and of the GPU if there is one."""
    text = f"peak memory {readable_bytes(peak_memory_bytes())}"
    gpu = gpu_memory_facts()
    return f"{text}, GPU {readable_bytes(gpu['peak_allocated_bytes'])}" if gpu else text


class _TerminalConsole(Console):
    """A console that measures its own stream, not the standard streams as rich does, and never hides the cursor."""

    @property
    def size(self) -> ConsoleDimensions:
        found = terminal_size(cast("Any", self.file))
        return ConsoleDimensions(found.columns, found.lines)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        raise NotImplementedError

    def show_cursor(self, show: bool = True) -> bool:
        return False


class _UnbreakableStream:
    """A stream that ignores write errors, as when the connection of a terminal is lost."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.encoding = "utf-8"

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        return bool(self._stream.isatty())

    def fileno(self) -> int:
        return int(self._stream.fileno())
