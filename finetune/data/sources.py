"""A recipe's data source as a file: a path, a dataset of the Hub, or rows that come with Gladstone."""

from importlib import resources
from pathlib import Path

from finetune.config.data import Source
from finetune.data.hub import HUB_PREFIX, fetch
from gladstone.errors import ConfigError, DataError
from gladstone.formats import Layout, find_layout
from gladstone.rows import ReadOptions

SAMPLE_PREFIX = "sample:"


def source_file(source: Source) -> Path:
    """Return the file of a source, which need not exist; a dataset of the Hub is downloaded if it is not cached.

    Raises ConfigError for an unknown sample, and what `fetch` raises.
    """
    if source.path.startswith(HUB_PREFIX):
        return fetch(source.path.removeprefix(HUB_PREFIX), source.config, source.split, source.first_rows)
    if not source.path.startswith(SAMPLE_PREFIX):
        return Path(source.path).expanduser()
    name = source.path.removeprefix(SAMPLE_PREFIX)
    path = Path(str(resources.files("finetune"))) / "samples" / f"{name}.jsonl"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.jsonl")))
        raise ConfigError(f"no sample called {name!r}; known samples: {known}.")
    return path


def source_layout(source: Source) -> Layout:
    """Return how the rows of a source are read. Raises ConfigError or DataError if there is no file or no layout."""
    path = source_file(source)
    if not path.exists():
        raise DataError(f"{path}: no such data file.")
    return find_layout(path, source.format, source.columns, ReadOptions(source.encoding, source.sheet))
