"""Names in the folder of a fine-tuning run, which `finetune` writes and `export` and the demo read."""

from pathlib import Path

RECIPE = "recipe.yaml"
METRICS = "metrics.jsonl"
LOG = "train.log"
DATA, TOKENIZER, ADAPTER, CHECKPOINTS = "data", "tokenizer", "adapter", "checkpoints"  # folders


def set_path(folder: Path, name: str) -> Path:
    """The file with the rows of a set in a run's folder of data."""
    return folder / f"{name}.jsonl"
