"""Reads Parquet batch by batch. Imports pyarrow."""

from collections.abc import Iterator
from pathlib import Path

from gladstone.errors import DataError
from gladstone.machine.packages import require_packages
from gladstone.rows.row_types import MAX_FIELDS, RowItem

BATCH_ROWS = 500


def read_table(path: Path) -> Iterator[RowItem]:
    """Yield one row per record; the source counts records from 1."""
    require_packages("Reading .parquet", "finetune", ["pyarrow"])
    import pyarrow
    from pyarrow.parquet import ParquetFile

    if not path.exists():
        raise DataError(f"{path}: no such data file.")
    try:
        with ParquetFile(path) as file:
            width = len(file.schema_arrow.names)
            if width > MAX_FIELDS:
                raise DataError(f"{path}: has {width:,} columns, more than {MAX_FIELDS:,}.")
            number = 0
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield row, f"{path}:{number}"
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = "".join(char if char.isprintable() else "?" for char in str(error)[:200])
        raise DataError(f"{path}: not a Parquet file, or damaged: {reason}") from None
