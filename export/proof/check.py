"""One thing that a proof proves or refutes."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Check:
    """What was held against what; `measured` holds the figures, `cure` says what to do if it failed."""

    name: str
    passed: bool
    detail: str
    measured: dict[str, Any] = field(default_factory=dict)
    cure: str = ""
    limited: bool = False  # passed, but for what a GGUF cannot hold, which `detail` names

    @property
    def verdict(self) -> str:
        """In a word."""
        return "FAILED" if not self.passed else "limited" if self.limited else "proven"

    def told(self) -> str:
        """A line or two for people."""
        line = f"{self.verdict:7} {self.name}: {self.detail}"
        return line if self.passed or not self.cure else f"{line}\n        {self.cure}"
