"""Commands shown to a user, quoted so that they can be pasted into a shell whatever their paths contain."""

import os
import shlex
import subprocess
from pathlib import Path


def command_line(*words: str | Path) -> str:
    """Quote the words for this system's shell and join them. A `Path` never reads as an option.

    >>> command_line("runtime", "chat", Path("my models/it's.gguf")) if os.name != "nt" else ""
    'runtime chat \\'my models/it\\'"\\'"\\'s.gguf\\''
    """
    plain = [_not_an_option(word) for word in words]
    return subprocess.list2cmdline(plain) if os.name == "nt" else shlex.join(plain)


def _not_an_option(word: str | Path) -> str:
    """Prefix a path that begins with a dash with its folder, so that no command reads it as an option."""
    text = os.fspath(word)
    return os.path.join(os.curdir, text) if isinstance(word, Path) and text.startswith("-") else text  # noqa: PTH118 - a Path would drop the dot
