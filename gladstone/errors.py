"""The error tree of all stages.

    GladstoneError
    ├── ConfigError       a recipe, option or override that cannot be used
    ├── DataError         a row, a data file or a chat template
    ├── ArtifactError     a file made by a stage: damaged, missing, half-written, not matching its manifest
    ├── UnsupportedError  a request that this installation or this model cannot fulfil
    └── ToolError         a child process or the operating system failed

A command shows the message and exits with 1; any other exception is a bug and keeps its traceback.
"""

from collections.abc import Sequence


class GladstoneError(Exception):
    """Something the user can understand and act on: where, what was found, what was expected, what to do."""


class ConfigError(GladstoneError):
    """A recipe, an option or an override that cannot be used."""


class DataError(GladstoneError):
    """A data file, a row or a chat template that cannot be used."""


class ArtifactError(GladstoneError):
    """A model file or run folder that is missing, damaged or not what its manifest says."""


class UnsupportedError(GladstoneError):
    """A request that this installation, this machine or this model cannot fulfil."""


class ToolError(GladstoneError):
    """A child process or the operating system failed."""


MAX_LISTED_PROBLEMS = 10


def listed(headline: str, problems: Sequence[str], count: int | None = None) -> str:
    """Join several problems into one message: it lists at most 10 and counts the rest.

    `count` is the number of all problems if `problems` holds only the first ones.
    """
    count = len(problems) if count is None else count
    if count == 1:
        return f"{headline}: {problems[0]}"
    lines = [f"{headline} ({count:,} problems):"]
    lines += [f"  - {problem}" for problem in problems[:MAX_LISTED_PROBLEMS]]
    if count > MAX_LISTED_PROBLEMS:
        lines.append(f"  … and {count - MAX_LISTED_PROBLEMS:,} more")
    return "\n".join(lines)
