"""Reads and checks adapter_config.json."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.original.json_object import read_object
from gladstone.errors import ArtifactError, UnsupportedError
from gladstone.file_names import ADAPTER_CONFIG
from gladstone.strict_json import json_text

GENERATES = (None, "", "CAUSAL_LM", "SEQ_2_SEQ_LM")  # tasks of models that generate text
SHOWN_TARGETS = 300  # characters; longer lists are cut


@dataclass(frozen=True)
class Settings:
    """adapter_config.json of a LoRA, with the fields that the export needs checked."""

    folder: Path
    values: dict[str, Any]

    @property
    def base(self) -> str:
        """Name or path of the base on the training machine; '' if not named."""
        found = self.values.get("base_model_name_or_path")
        return found.strip() if isinstance(found, str) else ""

    @property
    def revision(self) -> str | None:
        """Revision of the base on the Hub, if named."""
        found = self.values.get("revision")
        return found if isinstance(found, str) and found else None

    @property
    def method(self) -> str:
        """The kind of LoRA as text."""
        kinds = [("use_dora", "DoRA"), ("use_rslora", "rsLoRA")]
        return ", ".join(["LoRA", *(name for key, name in kinds if self.values.get(key))])

    def describe(self) -> Iterator[tuple[str, str]]:
        """Names and values for the model card."""
        values = self.values
        yield "method", self.method
        yield "rank, alpha", f"{values['r']}, {values['lora_alpha']:g}"
        targets = values.get("target_modules")
        if targets:
            target_names = targets if isinstance(targets, str) else ", ".join(sorted(map(str, targets)))
            yield "layers", target_names if len(target_names) <= SHOWN_TARGETS else f"{target_names[:SHOWN_TARGETS]}…"
        if values.get("modules_to_save"):
            yield "trained in full", ", ".join(map(str, values["modules_to_save"]))
        yield "base, as the adapter names it", self.base or "not named"
        yield "PEFT", str(values.get("peft_version") or "not stated")


def read_settings(folder: Path) -> Settings:
    """Read the settings of the LoRA in a folder.

    Raises ArtifactError for a missing or broken file, UnsupportedError for another kind of adapter or task.
    """
    path = folder / ADAPTER_CONFIG
    if not path.exists():
        raise ArtifactError(f"{folder}: not an adapter: it has no {ADAPTER_CONFIG}.")
    values = read_object(path)
    kind = values.get("peft_type")
    if kind is None:
        raise ArtifactError(f"{path}: names no peft_type: expected LORA, as PEFT writes it.")
    if kind != "LORA":
        raise UnsupportedError(f"{folder}: an adapter of peft_type {kind}: only LORA can be merged or written as GGUF.")
    if values.get("task_type") not in GENERATES:
        raise UnsupportedError(
            f"{folder}: trained for task_type {values['task_type']}, not to generate text: only CAUSAL_LM and "
            "SEQ_2_SEQ_LM become a GGUF that answers."
        )
    rank, alpha = values.get("r"), values.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ArtifactError(
            f"{path}: r is {json_text(rank)} and lora_alpha {json_text(alpha)}: expected a whole number from 1 and a "
            "number."
        )
    return Settings(folder, values)
