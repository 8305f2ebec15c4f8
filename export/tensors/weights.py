"""Finds the tensors of model and adapter folders, in safetensors or PyTorch files."""

import json
from pathlib import Path

from export.tensors.pickled_tensors import read_pickle
from export.tensors.safetensors_io import StoredTensor, read_header
from gladstone import file_names
from gladstone.errors import ArtifactError
from gladstone.file_names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PICKLED_ADAPTER_WEIGHTS


def read_folder(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of all shards of a model folder by name, in the order of the files.

    Raises ArtifactError for an unusable index or file, and for a folder without weights.
    """
    for pattern, index in (
        (file_names.WEIGHTS_PATTERN, file_names.WEIGHTS_INDEX),
        (file_names.PICKLED_WEIGHTS_PATTERN, file_names.PICKLED_WEIGHTS_INDEX),
    ):
        paths = _indexed(folder / index) or sorted(folder.glob(pattern))
        if paths:
            return {name: stored for path in paths for name, stored in read_file(path).items()}
    raise ArtifactError(f"{folder}: holds no weights (*.safetensors, or pytorch_model*.bin).")


def read_adapter_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of an adapter by name. Raises ArtifactError if there are none."""
    return read_file(weights_of(folder))


def weights_of(folder: Path) -> Path:
    """The file that holds an adapter's tensors. Raises ArtifactError if there is none."""
    found = next(
        (folder / name for name in (ADAPTER_WEIGHTS, PICKLED_ADAPTER_WEIGHTS) if (folder / name).is_file()), None
    )
    if found is None:
        raise ArtifactError(
            f"{folder}: has {ADAPTER_CONFIG}, but neither {ADAPTER_WEIGHTS} nor {PICKLED_ADAPTER_WEIGHTS}."
        )
    return found


def read_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name. Raises ArtifactError if it is missing, damaged or would run code."""
    if not path.is_file():
        raise ArtifactError(f"{path}: named by its index, but missing: the download or the copy is not finished.")
    return read_pickle(path) if path.suffix == ".bin" else read_header(path)


def _indexed(index: Path) -> list[Path]:
    """The files listed in an index; empty without an index."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
        return sorted({index.parent / str(each) for each in found["weight_map"].values()})
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{index}: unusable: {error}.") from None
