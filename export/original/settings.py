"""adapter_config.json of an adapter by any tool: what kind it is, of which base, and what it says of itself."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.original.json_object import read_object
from gladstone.errors import ArtifactError, UnsupportedError
from gladstone.file_names import ADAPTER_CONFIG

GENERATES = (None, "", "CAUSAL_LM", "SEQ_2_SEQ_LM")  # tasks whose model writes text
SHOWN_TARGETS = 300  # characters: of long lists the beginning is told


@dataclass(frozen=True)
class Settings:
    """A LoRA's own settings, checked as far as the export needs them."""

    folder: Path
    values: dict[str, Any]

    @property
    def base(self) -> str:
        """The base by name or path, as it was where the adapter was trained; '' if there is none."""
        found = self.values.get("base_model_name_or_path")
        return found.strip() if isinstance(found, str) else ""

    @property
    def revision(self) -> str | None:
        """Which version of the base on the Hub, if the adapter names one."""
        found = self.values.get("revision")
        return found if isinstance(found, str) and found else None

    @property
    def method(self) -> str:
        """The kind of LoRA, for people."""
        kinds = [("use_dora", "DoRA"), ("use_rslora", "rsLoRA")]
        return ", ".join(["LoRA", *(name for key, name in kinds if self.values.get(key))])

    def describe(self) -> Iterator[tuple[str, str]]:
        """What it says of the training, as names and values."""
        values = self.values
        yield "method", self.method
        yield "rank, alpha", f"{values['r']}, {values['lora_alpha']:g}"
        targets = values.get("target_modules")
        if targets:
            told = targets if isinstance(targets, str) else ", ".join(sorted(map(str, targets)))
            yield "layers", told if len(told) <= SHOWN_TARGETS else f"{told[:SHOWN_TARGETS]}…"
        if values.get("modules_to_save"):
            yield "trained as a whole", ", ".join(map(str, values["modules_to_save"]))
        yield "base, as the adapter names it", self.base or "not named"
        yield "PEFT", str(values.get("peft_version") or "not stated")


def read_settings(folder: Path) -> Settings:
    """The settings of the LoRA in a folder.

    Raises ArtifactError for a file that is missing or broken, UnsupportedError for another kind of adapter or task.
    """
    path = folder / ADAPTER_CONFIG
    if not path.exists():
        raise ArtifactError(f"{folder}: not an adapter: it has no {ADAPTER_CONFIG}.")
    values = read_object(path)
    kind = values.get("peft_type")
    if kind is None:
        raise ArtifactError(f"{path}: names no peft_type: expected LORA, as PEFT writes it.")
    if kind != "LORA":
        raise UnsupportedError(
            f"{folder}: an adapter of peft_type {kind}: only LORA can be merged into a model or laid over a GGUF."
        )
    if values.get("task_type") not in GENERATES:
        raise UnsupportedError(
            f"{folder}: trained for task_type {values['task_type']}, not to write text: only CAUSAL_LM and "
            "SEQ_2_SEQ_LM become a GGUF that answers."
        )
    rank, alpha = values.get("r"), values.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ArtifactError(
            f"{path}: r is {json.dumps(rank)} and lora_alpha {json.dumps(alpha)}: expected a whole number from 1 and a "
            "number."
        )
    return Settings(folder, values)
