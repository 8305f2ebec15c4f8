"""One thing that a proof proves or refutes."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Point:
    """What was held against what; `measured` holds the figures, `cure` says what to do if it failed."""

    name: str
    passed: bool
    detail: str
    measured: dict[str, Any] = field(default_factory=dict)
    cure: str = ""

    def told(self) -> str:
        """A line or two for people."""
        line = f"{'proven' if self.passed else 'FAILED':7} {self.name}: {self.detail}"
        return line if self.passed or not self.cure else f"{line}\n        {self.cure}"
