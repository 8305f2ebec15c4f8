"""One check of a proof."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Check:
    """The result of one comparison; `measured` holds the figures, `cure` says what to do after a failure."""

    name: str
    passed: bool
    detail: str
    measured: dict[str, Any] = field(default_factory=dict)
    cure: str = ""
    limited: bool = False  # passed except for what a GGUF cannot hold, which `detail` names

    @property
    def verdict(self) -> str:
        """FAILED, limited or passed."""
        return "FAILED" if not self.passed else "limited" if self.limited else "passed"

    def describe(self) -> str:
        """One line for the user, and a second one with the cure after a failure."""
        line = f"{self.verdict:7} {self.name}: {self.detail}"
        return line if self.passed or not self.cure else f"{line}\n        {self.cure}"
