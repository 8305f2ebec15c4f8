"""The results of the checks: one table and one line of JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

COLUMNS = ("check", "family", "precision", "wanted", "got", "ok", "s")
VERDICTS = {True: "yes", False: "NO", None: "not run"}


class CannotRunError(Exception):
    """A check cannot be made here; the message says why."""


@dataclass(frozen=True)
class Result:
    """The result of one check: `ok` is None if it could not be made, and `got` then says why."""

    check: str
    family: str
    precision: str
    wanted: str
    got: str
    ok: bool | None
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)

    def cells(self) -> list[str]:
        """The columns of the table."""
        texts = (self.check, self.family, self.precision, self.wanted, self.got, VERDICTS[self.ok])
        return [*(" ".join(text.replace("|", "/").split()) for text in texts), f"{self.seconds:.0f}"]


def heading() -> str:
    """The first two lines of the table."""
    return f"| {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) - 1)}--:|"


def row(result: Result) -> str:
    """A line of the table."""
    return f"| {' | '.join(result.cells())} |"


def counts(results: Sequence[Result]) -> dict[str, int]:
    """How many checks passed, failed and were not run."""
    return {
        name: sum(result.ok is ok for result in results)
        for name, ok in (("passed", True), ("failed", False), ("not_run", None))
    }


def json_line(results: Sequence[Result], device: dict[str, Any], seconds: float, *, tiny: bool) -> str:
    """All results in strict JSON: a number that is not finite becomes a text."""
    said = {"device": device, "tiny": tiny, "seconds": round(seconds, 1), **counts(results)}
    return json.dumps(_finite(said | {"results": [asdict(result) for result in results]}), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value
