"""The base's tensors with adapters folded in, one at a time: each is read, changed in float32 and handed on.
Names torch, bitsandbytes.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from export.merge.adapter import Adapter, read_adapter
from export.merge.tensor_names import is_table, same_values
from export.merge.updates import BiasUpdate, LowRankUpdate, Update
from export.merge.vocabulary_tables import (
    EMBEDDINGS,
    HEAD,
    Changes,
    Sizes,
    find_embedding,
    find_head,
    measure,
    without_copied_head,
)
from export.tensors.safetensors_io import StoredTensor, TensorSpec, plan_shards, writing
from export.tensors.weights import read_folder
from gladstone import file_names
from gladstone.artifacts import copy_file, write_json
from gladstone.commands.progress import Progress
from gladstone.errors import UnsupportedError, listed

Onto = Literal["16bit", "nf4"]
MERGED_ONTO = "merged onto"
ONTO_SAID: Mapping[Onto, str] = {"16bit": "the base in 16 bit", "nf4": "the base as QLoRA held it (NF4)"}
ONE_LEVEL = ("model.", "transformer.", "base_model.")  # what a checkpoint may leave out before its names
NF4_BLOCK = 64  # weights with a scale of their own, as QLoRA has it
SCORED_HEADS = ("lm_head", "embed_out", "output")  # never held in 4 bit


@dataclass(frozen=True)
class MergePlan:
    """What becomes of a base's tensors: the source of each, what changes it, and how it is kept."""

    sources: Mapping[str, StoredTensor]  # a table of the vocabulary that grew before the training is the adapter's
    updates: Mapping[str, tuple[Update, ...]]
    untied: bool
    nf4: frozenset[str] = frozenset()
    dtypes: Mapping[str, str] = field(default_factory=dict)  # the base's types, where the source is the adapter's
    sizes: Sizes | None = None  # of the vocabulary, where it is not the base's

    @property
    def changed(self) -> frozenset[str]:
        """Names of the tensors that differ from the base's."""
        return frozenset(self.updates) | self.nf4 | frozenset(self.dtypes)

    @property
    def rows(self) -> int:
        """Of the embedding: how many tokens the model can have. 0 where it has no embedding."""
        embedding = find_embedding(self.sources)
        return self.planned(embedding).shape[0] if embedding else 0

    def planned(self, name: str) -> TensorSpec:
        """A tensor of the merged model in the base's type."""
        source = self.sources[name]
        rows = self.sizes.rows.get(name) if self.sizes else None
        shape = source.shape if rows is None else (rows, *source.shape[1:])
        return TensorSpec(name, self.dtypes.get(name, source.dtype), shape)

    def read(self, name: str) -> Any:
        """A tensor: as stored if nothing changes it, in float32 otherwise. Raises UnsupportedError if it is broken."""
        import torch

        weight = self.sources[name].read()
        if name not in self.changed:
            return weight
        weight = weight.float()
        if name in self.nf4:
            weight = as_nf4(weight)
        for update in self.updates.get(name, ()):
            weight = update.apply(weight)
        # NaN and infinity show in the extremes, which take a tenth of the time of asking each weight
        if weight.numel() and not torch.isfinite(torch.stack(weight.aminmax())).all():
            raise UnsupportedError(f"{name} is not finite after the merge: the adapter is broken.")
        return weight


def read_plan(base: Path, adapters: Iterable[tuple[Path, float]], onto: Onto = "16bit") -> MergePlan:
    """The plan of a base and the adapters in folders, each with its weight. Raises what both raise."""
    kind = str(read_model_config(base).get("model_type", ""))
    return plan_merge(base, [read_adapter(folder, weight, model_type=kind) for folder, weight in adapters], onto)


def check_shapes(plan: MergePlan) -> None:
    """Raises UnsupportedError for updates of other shapes than the base's tensors have; reads no weight."""
    wrong = []
    for name, updates in plan.updates.items():
        theirs = plan.sources[name].shape
        for update in updates:
            ours = update.shape if isinstance(update, LowRankUpdate) else theirs
            if ours != theirs and not (is_table(name.removesuffix(".weight")) and ours[1:] == theirs[1:]):
                wrong.append(f"{name} is {_by(theirs)} in the base, and changed by a matrix of {_by(ours)}")
    if wrong:
        raise UnsupportedError(listed("the adapter belongs to another base: name the right one with --base", wrong))


def _by(shape: Sequence[int]) -> str:
    return " × ".join(f"{each:,}" for each in shape)


def plan_merge(base: Path, adapters: Sequence[Adapter], onto: Onto = "16bit") -> MergePlan:
    """Find each update's tensor. Raises UnsupportedError for one that the base lacks or that two adapters train."""
    config = read_model_config(base)
    stored = without_copied_head(read_folder(base), config)
    embedding = find_embedding(stored) if find_head(stored) is None else None  # of a tied base
    changes = [_placed(adapter, stored, tied=embedding is not None) for adapter in adapters]
    untied = embedding is not None and not all(each.keep_tied(embedding) for each in changes)
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    if untied and config.get("model_type") == "t5" and scaled:
        raise UnsupportedError("a T5 whose tied embedding or head was trained cannot be merged: its head has a scale.")
    sources = dict(stored)
    if embedding is not None:
        changes = [each.settled(embedding, apart=untied) for each in changes]
        if untied:
            sources[HEAD] = stored[embedding]
    frozen = _frozen(changes)
    types = {name: sources[name].dtype for name in frozen}
    sources |= frozen
    found: dict[str, list[tuple[Update, ...]]] = {}  # of each adapter
    for each in changes:
        for name, updates in each.updates.items():
            found.setdefault(name, []).append(updates)
    _refuse_clashes(found)
    together = {name: tuple(chain.from_iterable(each)) for name, each in found.items()}
    sizes = measure(sources, stored, together, changes[-1].folder) if changes else None
    nf4 = frozenset(_held_in_4_bit(stored, config)) if onto == "nf4" else frozenset[str]()
    return MergePlan(sources, together, untied, nf4, types, sizes)


def _placed(adapter: Adapter, stored: Mapping[str, StoredTensor], *, tied: bool) -> Changes:
    """An adapter's changes by the base's names. Raises UnsupportedError for one of a tensor that the base lacks."""
    names = {name: _place(name, stored) or (HEAD if tied and name == HEAD else None)
             for name in (*adapter.updates, *adapter.frozen)}  # fmt: skip
    lost = [name for name, place in names.items() if place is None]
    if lost:
        told = ", ".join(lost[:3])
        raise UnsupportedError(
            f"{adapter.folder}: the base has no tensor for its {told} (of {len(lost)}): it belongs to another base, to "
            "be named with --base."
        )
    updates = {str(names[name]): each for name, each in adapter.updates.items()}
    frozen = {str(names[name]): each for name, each in adapter.frozen.items()}
    return Changes(adapter.folder, updates, frozen, adapter.ties)


def _frozen(changes: Iterable[Changes]) -> dict[str, StoredTensor]:
    """The tables that took the place of the base's. Raises UnsupportedError where two adapters began with others."""
    found: dict[str, StoredTensor] = {}
    for each in changes:
        for name, table in each.frozen.items():
            if not same_values(found.setdefault(name, table), table):
                raise UnsupportedError(f"{each.folder}: was trained with another {name} than the other adapter.")
    return found


def read_model_config(base: Path) -> dict[str, Any]:
    """config.json of a model's folder."""
    config: dict[str, Any] = json.loads((base / file_names.CONFIG).read_text(encoding="utf-8"))
    return config


def _place(name: str, sources: Mapping[str, StoredTensor]) -> str | None:
    """The base's name for a tensor that PEFT calls `name`; checkpoints leave out or add one level."""
    for level in ONE_LEVEL:
        for each in (name, name.removeprefix(level), level + name):
            if each in sources:
                return each
    return None


def _refuse_clashes(found: Mapping[str, Sequence[tuple[Update, ...]]]) -> None:
    """Several adapters may change a tensor if all of them add to it."""
    for name, by_adapter in found.items():
        adds = all(
            isinstance(each, BiasUpdate) or (isinstance(each, LowRankUpdate) and each.magnitude is None)
            for updates in by_adapter
            for each in updates
        )
        if len(by_adapter) > 1 and not adds:
            raise UnsupportedError(f"{name} is changed by several adapters in ways that do not add up.")


def _held_in_4_bit(stored: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """The layers' matrices, which QLoRA quantises; neither embeddings nor the head."""
    kept = set((config.get("quantization_config") or {}).get("llm_int8_skip_modules") or ())
    for name, tensor in stored.items():
        module = name.removesuffix(".weight")
        last = module.rpartition(".")[2]
        embeds = name.endswith(EMBEDDINGS) or last in {"wpe", "embed_positions", "relative_attention_bias"}
        linear = name.endswith(".weight") and len(tensor.shape) == 2 and not embeds
        if linear and last not in SCORED_HEADS and last not in kept:
            yield name


def as_nf4(weight: Any) -> Any:
    """What QLoRA computes with in place of a weight: quantised to NF4 in blocks of 64, scales in 8 bit, and back."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(weight, blocksize=NF4_BLOCK, compress_statistics=True, quant_type="nf4")
    return dequantize_4bit(packed, state)


def planned_shards(plan: MergePlan, shard_bytes: int) -> dict[str, list[TensorSpec]]:
    """The files of the merged model and their tensors, in the base's types."""
    return plan_shards([plan.planned(name) for name in plan.sources], shard_bytes)


def write_shard(plan: MergePlan, path: Path, tensors: Sequence[TensorSpec], progress: Progress) -> None:
    """A file of the merged model in the base's types. In memory is never more than a tensor and its changed copy."""
    with writing(path, tensors) as shard:
        for written, tensor in enumerate(tensors, 1):
            shard.write(plan.read(tensor.name))
            progress.update(written / len(tensors))


def write_index(shards: Mapping[str, Sequence[TensorSpec]], out: Path) -> list[Path]:
    """The index of a model in several files, if it is in several."""
    if len(shards) == 1:
        return []
    where = {tensor.name: file for file, tensors in shards.items() for tensor in tensors}
    total = sum(tensor.size_bytes for tensors in shards.values() for tensor in tensors)
    write_json(out / file_names.WEIGHTS_INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    return [out / file_names.WEIGHTS_INDEX]


def set_vocabulary(config: dict[str, Any], plan: MergePlan) -> None:
    """Say in a model's config how many tokens it has, and that its head is its own, where a merge changed that."""
    text = config.get("text_config")
    for each in (config, *([text] if isinstance(text, dict) else [])):
        if plan.untied:
            each["tie_word_embeddings"] = False
        if plan.sizes and (each is not config or "vocab_size" in config or not text):
            each["vocab_size"] = plan.sizes.after


def copy_config(plan: MergePlan, base: Path, out: Path, ends: Sequence[int] = ()) -> list[Path]:
    """config.json, for what the merge changed of it, and generation_config.json, in which `ends` stop an answer too."""
    config = read_model_config(base)
    set_vocabulary(config, plan)
    write_json(out / file_names.CONFIG, config)
    files = [out / file_names.CONFIG]
    path = base / file_names.GENERATION_CONFIG
    if path.is_file():
        generation: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = generation.get("eos_token_id")
        stops = [known] if isinstance(known, int) else list(known or ())
        missing = [end for end in dict.fromkeys(ends) if end not in stops]
        if missing:
            write_json(out / path.name, generation | {"eos_token_id": [*missing, *stops]})
        else:
            copy_file(path, out / path.name)
        files.append(out / path.name)
    return files
