"""Finds out whether a path holds a run, an adapter or a model."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from export.original.adapter import read_adapter_folder
from export.original.folder import Folder
from export.original.model import Original, SourceOptions
from export.original.names import STATE_NAME, in_hub_cache
from export.original.run import read_run
from gladstone import file_names, run_folder
from gladstone.artifacts import MANIFEST_NAME, read_manifest
from gladstone.commands.progress import Progress
from gladstone.commands.shell import command_line
from gladstone.errors import ArtifactError, ConfigError

OF_ADAPTER = (file_names.ADAPTER_CONFIG, file_names.ADAPTER_WEIGHTS, file_names.PICKLED_ADAPTER_WEIGHTS)
MODELS = ("model*.safetensors", file_names.PICKLED_WEIGHTS_PATTERN)
SHOWN = 6  # folders listed in a message


class Found(Protocol):
    """A source found on disk, checked without its base; `open` makes it usable."""

    @property
    def home(self) -> Path:
        """The folder that the user gave."""

    @property
    def warnings(self) -> Sequence[str]:
        """Known problems of its training."""

    def open(self, work: Path, progress: Progress) -> Original:
        """Open the source, with its tokenizer placed in `work`."""


def find(path: Path, options: SourceOptions | None = None) -> Found:
    """The source at a folder or one of its files. Raises ArtifactError that says what is there instead."""
    try:
        return _find(path, options or SourceOptions())
    except PermissionError as error:
        raise ArtifactError(f"{error.filename or path}: cannot be read: {error.strerror}.") from None


def _find(path: Path, options: SourceOptions) -> Found:
    if not path.exists():
        hub = " To export a model of the Hub: `hf download OWNER/NAME --local-dir FOLDER`." if _is_hub_id(path) else ""
        raise ArtifactError(f"{path}: no such folder.{hub}")
    if path.is_file():
        return _find_by_file(path, options)
    home = path.parent if path.name == run_folder.ADAPTER and _is_run(path.parent) else path
    stage = _stage(home)
    if stage == "merge":
        return Folder(home, options, read_manifest(home))
    if stage is not None and stage != "base":
        return read_run(home, options)
    _refuse_unfinished(home)
    return _find_foreign(home, options)


def default_out(found: Found, name: str) -> Path:
    """The default output folder. Raises ConfigError for a source in the Hub's cache."""
    if in_hub_cache(found.home.resolve()):
        raise ConfigError(f"{found.home}: is in the Hub's cache. Choose an output folder with --out.")
    return found.home / name


@contextmanager
def opened(found: Found, progress: Progress) -> Iterator[Original]:
    """The opened source, for the duration of the block."""
    with tempfile.TemporaryDirectory(prefix="gladstone-") as work:
        yield found.open(Path(work), progress)


def _find_by_file(path: Path, options: SourceOptions) -> Found:
    """The source that a file belongs to; decides between adapter and model in one folder."""
    if path.name in OF_ADAPTER:
        return read_adapter_folder(path.parent, path.parent, options)
    if path.name == file_names.CONFIG or any(path.match(pattern) for pattern in MODELS):
        return Folder(path.parent, options)
    if path.name == MANIFEST_NAME:
        return find(path.parent, options)
    if path.suffix == ".gguf":
        raise ArtifactError(
            f"{path}: a GGUF is the result of an export. Give the folder it was made from; "
            f"`{command_line('runtime', 'chat', path)}` runs it."
        )
    raise ArtifactError(f"{path}: a file. Give the folder of a run, of an adapter or of a model.")


def _find_foreign(home: Path, options: SourceOptions) -> Found:
    adapter, model = (home / file_names.ADAPTER_CONFIG).is_file(), _is_model(home)
    if adapter and model:
        weights = next(path for pattern in MODELS for path in sorted(home.glob(pattern)))
        raise ArtifactError(
            f"{home}: holds both an adapter and a model. Give one of the files: "
            f"{home / file_names.ADAPTER_CONFIG} or {weights}."
        )
    if adapter:
        return read_adapter_folder(home, home, options)
    if model:
        return Folder(home, options)
    return _find_below(home, options)


def _find_below(home: Path, options: SourceOptions) -> Found:
    """The only adapter or model in a subfolder. Raises ArtifactError if there is none or more than one."""
    below = sorted(folder for folder in home.iterdir() if folder.is_dir())
    found = [folder for folder in below if (folder / file_names.ADAPTER_CONFIG).is_file() or _is_model(folder)]
    if len(found) == 1 and (found[0] / file_names.ADAPTER_CONFIG).is_file():
        return read_adapter_folder(home, found[0], options, (f"the adapter is in {found[0]}.",))
    if len(found) == 1:
        return Folder(found[0], options, notes=(f"the model is in {found[0]}.",))
    if found:
        names = ", ".join(folder.name for folder in found[-SHOWN:])
        raise ArtifactError(f"{home}: holds {len(found)} folders that can be exported: give one of them ({names}).")
    raise ArtifactError(
        f"{home}: {_what_it_holds(home)}: neither a run, an adapter nor a model (expected {_EXPECTED})."
    )


_EXPECTED = (
    f"{MANIFEST_NAME} of `finetune run`, {file_names.ADAPTER_CONFIG} with {file_names.ADAPTER_WEIGHTS}, or "
    f"{file_names.CONFIG} with {file_names.WEIGHTS_PATTERN}"
)


def _what_it_holds(home: Path) -> str:
    names = sorted(path.name for path in home.iterdir())
    if not names:
        return "empty"
    if (home / file_names.ADAPTER_WEIGHTS).is_file() or (home / file_names.PICKLED_ADAPTER_WEIGHTS).is_file():
        return f"holds an adapter's weights without their {file_names.ADAPTER_CONFIG}"
    return f"holds {', '.join(names[:SHOWN])}{' …' if len(names) > SHOWN else ''}"


def _is_model(folder: Path) -> bool:
    return (folder / file_names.CONFIG).is_file() and any(any(folder.glob(pattern)) for pattern in MODELS)


def _stage(folder: Path) -> str | None:
    """The stage of a folder that Gladstone finished; None for one of another tool, which may have a manifest too."""
    try:
        found = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None if _is_model(folder) or (folder / file_names.ADAPTER_CONFIG).is_file() else _unreadable(folder)
    ours = isinstance(found, dict) and {"schema", "stage"} <= found.keys()
    return str(found["stage"]) if ours else None


def _unreadable(folder: Path) -> str | None:
    """Treat an unreadable manifest as a run's, so that reading it reports the error."""
    return "finetune" if (folder / MANIFEST_NAME).is_file() else None


def _is_run(folder: Path) -> bool:
    return _stage(folder) == "finetune" or _was_begun(folder)


def _was_begun(folder: Path) -> bool:
    """True if `finetune run` began in this folder."""
    marks = sum((folder / name).exists() for name in (run_folder.LOG, run_folder.RECIPE, run_folder.DATA))
    return marks > 1 or any(folder.glob("checkpoints/step-*/state.json"))


def _refuse_unfinished(folder: Path) -> None:
    """Raises ArtifactError for the folder of an interrupted command of Gladstone."""
    if _stage(folder) is not None:
        return
    if _was_begun(folder):
        raise ArtifactError(
            f"{folder}: an unfinished run (no {MANIFEST_NAME}). Repeat the same `finetune run` with --resume."
        )
    if (folder / STATE_NAME).is_file():
        raise ArtifactError(f"{folder}: an unfinished export (no {MANIFEST_NAME}). Repeat the command that makes it.")


def _is_hub_id(path: Path) -> bool:
    return not path.is_absolute() and len(path.parts) == 2 and path.parts[0] not in (".", "..", "~")
