"""Commands as they are shown: a user can paste them into a shell, whatever the paths in them are called."""

import os
import shlex
import subprocess
from pathlib import Path


def command_line(*words: str | Path) -> str:
    """The words as one line for the shell of this system; a `Path` is never taken for an option.

    >>> command_line("runtime", "chat", Path("my models/it's.gguf")) if os.name != "nt" else ""
    'runtime chat \\'my models/it\\'"\\'"\\'s.gguf\\''
    """
    plain = [_apart(word) for word in words]
    return subprocess.list2cmdline(plain) if os.name == "nt" else shlex.join(plain)


def _apart(word: str | Path) -> str:
    """A path that begins with a dash names its folder too: else a command would read an option."""
    text = os.fspath(word)
    return os.path.join(os.curdir, text) if isinstance(word, Path) and text.startswith("-") else text  # noqa: PTH118 - a Path would drop the dot
