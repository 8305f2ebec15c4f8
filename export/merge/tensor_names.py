"""Normalises the tensor names of adapters: all versions of PEFT, Unsloth, and raw state dicts.

A file may hold a tensor twice: PEFT writes trained values under the module's own name and, if the vocabulary grew,
again under the names of the module's wrapper.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from export.tensors.safetensors_io import StoredTensor
from gladstone.errors import UnsupportedError

PREFIX = "base_model.model."
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.")  # of torch.compile and FSDP, if they were not removed
TABLES = ("embed_tokens", "wte", "shared", "embed_in", "word_embeddings", "lm_head", "embed_out")  # one row per token
NAMED = r"(?P<named>\.(?!weight$|bias$)[^.]+)?"  # the adapter's name, which PEFT removes when it saves
FORMS = {
    "down": re.compile(rf"\.lora_A{NAMED}\.weight$"),
    "up": re.compile(rf"\.lora_B{NAMED}\.weight$"),
    "up bias": re.compile(rf"\.lora_B{NAMED}\.bias$"),
    "embedding down": re.compile(rf"\.lora_embedding_A{NAMED}$"),
    "embedding up": re.compile(rf"\.lora_embedding_B{NAMED}$"),
    "magnitude": re.compile(rf"\.lora_magnitude_vector{NAMED}(?:\.weight)?$"),
    "rows": re.compile(rf"\.token_adapter\.trainable_tokens_delta{NAMED}$"),
    "old rows": re.compile(rf"\.token_adapter\.trainable_tokens_original{NAMED}$"),
    "frozen": re.compile(r"\.(?:original_module|token_adapter\.base_layer)\.(?P<rest>.+)$"),
    "layer": re.compile(r"\.base_layer\.(?P<rest>.+)$"),
    "trained": re.compile(r"\.modules_to_save\.(?:default\.)?(?P<rest>.+)$"),
}


@dataclass(frozen=True)
class Part:
    """The role of a tensor in a module: a factor of its update, its trained value or its frozen value."""

    module: str
    role: str  # a key of FORMS; 'trained' and 'frozen' hold the whole parameter
    parameter: str = "weight"

    @property
    def name(self) -> str:
        """The base's name for the tensor."""
        return f"{self.module}.{self.parameter}"


def read_parts(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> dict[Part, tuple[str, StoredTensor]]:
    """The tensors of an adapter file with their keys, by role; `config` is adapter_config.json.

    Raises UnsupportedError if two tensors contradict each other.
    """
    saved = tuple(config.get("modules_to_save") or ())
    if saved and config.get("ensure_weight_tying"):
        saved += ("lm_head",)  # saved like its embedding, but not listed
    parts: dict[Part, tuple[str, StoredTensor]] = {}
    for key in sorted(
        tensors, key=lambda key: (".modules_to_save." in key, key)
    ):  # PEFT loads the module's own name first
        part = _part(key, saved)
        known = parts.setdefault(part, (key, tensors[key]))
        if known[0] != key and not same_values(known[1], tensors[key]):
            raise UnsupportedError(f"the adapter holds {part.name} twice with other values: {known[0]} and {key}.")
    return parts


def pefts_name(key: str) -> str:
    """The key under which the installed PEFT saves and loads a tensor."""
    name = _plain(key)
    for role, form in FORMS.items():
        found = form.search(name)
        if found and role == "trained":
            return f"{PREFIX}{name[: found.start()]}.{found['rest']}"
        if found and found.groupdict().get("named"):
            name = name[: found.start("named")] + name[found.end("named") :]
        if found and role == "magnitude":
            name = name.removesuffix(".weight")
    return PREFIX + name


def _plain(key: str) -> str:
    name = key.removeprefix("module.")
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name.removeprefix(PREFIX)


def _part(key: str, saved: tuple[str, ...]) -> Part:
    name = _plain(key)
    for role, form in FORMS.items():
        found = form.search(name)
        if found:
            return _of_form(role, name[: found.start()], found.groupdict().get("rest") or "")
    module, _, parameter = name.rpartition(".")
    frozen = is_table(module) and parameter == "weight" and not module.endswith(saved)
    return Part(module, "frozen" if frozen else "trained", parameter)


def _of_form(role: str, module: str, rest: str) -> Part:
    """The part for a matched form; `rest` is the path of the parameter within the module."""
    if not rest:
        return Part(module, role)
    inner, _, parameter = f"{module}.{rest}".rpartition(".")
    if role == "layer":  # PEFT saves the untrained value of a wrapped table, and trained biases of other layers
        role = "frozen" if is_table(inner) and parameter == "weight" else "trained"
    return Part(inner, role, parameter)


def is_table(module: str) -> bool:
    """True for embeddings and heads: one row per token."""
    return module.rpartition(".")[2] in TABLES


def same_values(one: StoredTensor, other: StoredTensor) -> bool:
    """True if two stored tensors have equal shapes and values, also across dtypes."""
    if one.shape != other.shape:
        return False
    first, second = one.read(), other.read()
    return bool(first.dtype == second.dtype and first.equal(second)) or bool(first.float().equal(second.float()))
