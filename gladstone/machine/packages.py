"""Installed Python packages: their versions, what installs a missing one, and where llama.cpp's libraries are."""

import importlib.util
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from gladstone.errors import UnsupportedError


def require_packages(stage: str, extra: str, modules: Sequence[str]) -> None:
    """Raise UnsupportedError with the right `pip install` if a module is not installed. Imports nothing."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise UnsupportedError(
            f"{stage} needs {', '.join(missing)}, not installed here. Run: pip install 'gladstone[{extra}]' "
            f"(from a clone: pip install '.[{extra}]')"
        )


def installed_versions(*packages: str) -> dict[str, str]:
    """Versions of Python, Gladstone and each package; a package that is not installed is left out."""
    versions = {"python": platform.python_version()}
    for package in ("gladstone", *packages):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def llamacpp_folder() -> Path | None:
    """The folder of the installed llama.cpp's libraries, found without importing it; None if it is not installed."""
    spec = importlib.util.find_spec("llama_cpp")
    return Path(spec.origin).parent / "lib" if spec and spec.origin else None
