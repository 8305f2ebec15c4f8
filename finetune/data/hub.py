"""Datasets of the Hugging Face Hub, cached as JSON Lines. Names datasets, huggingface_hub."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from gladstone.artifacts import atomic_file
from gladstone.errors import DataError
from gladstone.machine.host import OTHER_CACHE, cache_dir, check_disk
from gladstone.machine.packages import require_packages
from gladstone.strict_json import json_text

HUB_PREFIX = "hub:"
SMALLEST_FREE_BYTES = 1 << 30
ASK_S = 10


def fetch(name: str, config: str | None, split: str, first_rows: int | None) -> Path:
    """Return the file of a dataset, streamed from the Hub unless it is cached. Raises DataError if that fails."""
    path = cache_path(name, config, split, first_rows)
    if path.is_file():
        return path
    require_packages("a dataset of the Hub", "finetune", ["datasets"])
    check_disk(path.parent, SMALLEST_FREE_BYTES, f"the dataset {name}", OTHER_CACHE)
    write_json_lines(_rows(name, config, split, first_rows), path)
    return path


def _rows(name: str, config: str | None, split: str, first_rows: int | None) -> Iterator[dict[str, Any]]:
    try:
        yield from islice(stream_rows(name, config, split), first_rows)
    except Exception as error:  # datasets passes on errors of its file systems and HTTP clients
        raise DataError(
            f"{HUB_PREFIX}{name}: cannot be fetched from the Hub ({type(error).__name__}: {_first_line(error)}). "
            "Without a network, download its file (Parquet, JSON, CSV; 'Files' on its page) and give that file's path."
        ) from error


def cache_path(name: str, config: str | None, split: str, first_rows: int | None) -> Path:
    """Return the path of a dataset in the cache."""
    parts = [name.replace("/", "--"), config or "default", split, *([f"first{first_rows}"] if first_rows else [])]
    return cache_dir() / "datasets" / ("_".join(part.replace("/", "-") for part in parts) + ".jsonl")


def stream_rows(name: str, config: str | None, split: str) -> Iterable[dict[str, Any]]:
    """Yield the rows of a dataset, or of a local folder laid out like one, without running any code of its own."""
    from datasets import load_dataset

    if not Path(name).is_dir():
        _ask_hub(name)
    rows: Iterable[dict[str, Any]] = load_dataset(name, config, split=split, streaming=True)
    return rows


def _ask_hub(name: str) -> None:
    """Raise at once if there is no such dataset or no network; `datasets` itself retries for half a minute."""
    from huggingface_hub import HfApi

    HfApi().dataset_info(name, timeout=ASK_S)


def write_json_lines(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Write rows as JSON Lines; values that JSON cannot represent (dates, bytes) become text.

    NaN, a missing value of datasets that came from pandas, and infinity become null.
    """
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json_text(row, default=str, non_finite=lambda _: None) + "\n")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
