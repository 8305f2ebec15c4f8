"""The settings of a benchmark."""

from dataclasses import dataclass
from pathlib import Path

DEFAULT_ROWS, DEFAULT_ANSWERS = 100, 40


@dataclass(frozen=True)
class BenchConfig:
    """What to measure and how. `speed_repeats` 0 skips the timings; `threads` None uses all cores.

    `columns` maps fields of `qa` to columns of the file. With `context_tokens` None the context is the largest that
    every model can have on this machine.
    """

    models: tuple[Path, ...]
    data: Path
    format_name: str = "auto"
    out: Path = Path("bench-report")
    rows: int = DEFAULT_ROWS
    answers: int = DEFAULT_ANSWERS
    max_tokens: int = 128
    threads: int | None = None
    seed: int = 0
    metrics: tuple[str, ...] = ()
    regex: str | None = None
    json_schema: Path | None = None
    speed_repeats: int = 5
    columns: tuple[tuple[str, str], ...] = ()
    encoding: str | None = None
    sheet: str | None = None
    skip_bad: bool = False
    context_tokens: int | None = None
    reasoning_tokens: int | None = None
    chat_template: str | None = None
    template_args: tuple[str, ...] = ()
    raw: bool = False
    no_think: bool = False
    prefill_tokens: int = 256
    decode_tokens: int = 64
