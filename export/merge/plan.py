"""Plans a merge and reads its tensors one at a time, updated in float32. Names torch, bitsandbytes."""

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
from gladstone.strict_json import tagged

Onto = Literal["16bit", "nf4"]
MERGED_ONTO = "merged onto"
ONTO_SAID: Mapping[Onto, str] = {"16bit": "the base in 16 bit", "nf4": "the base in NF4, as in QLoRA training"}
ONE_LEVEL = ("model.", "transformer.", "base_model.")  # prefixes that a checkpoint may leave out
NF4_BLOCK = 64  # weights per scale in QLoRA
SCORED_HEADS = ("lm_head", "embed_out", "output")  # never quantised to 4 bit


@dataclass(frozen=True)
class MergePlan:
    """The merged model's tensors: where each is read, its updates, and its dtype."""

    sources: Mapping[str, StoredTensor]  # the adapter's own for an embedding or head that grew before the training
    updates: Mapping[str, tuple[Update, ...]]
    untied: bool
    nf4: frozenset[str] = frozenset()
    dtypes: Mapping[str, str] = field(default_factory=dict)  # the base's dtypes of tensors read from the adapter
    sizes: Sizes | None = None  # of a vocabulary that differs from the base's

    @property
    def changed(self) -> frozenset[str]:
        """Names of the tensors that differ from the base's."""
        return frozenset(self.updates) | self.nf4 | frozenset(self.dtypes)

    @property
    def rows(self) -> int:
        """Rows of the embedding; 0 without an embedding."""
        embedding = find_embedding(self.sources)
        return self.planned(embedding).shape[0] if embedding else 0

    def planned(self, name: str) -> TensorSpec:
        """Shape and dtype of a merged tensor; the dtype is the base's."""
        source = self.sources[name]
        rows = self.sizes.rows.get(name) if self.sizes else None
        shape = source.shape if rows is None else (rows, *source.shape[1:])
        return TensorSpec(name, self.dtypes.get(name, source.dtype), shape)

    def read(self, name: str) -> Any:
        """A merged tensor: as stored if unchanged, else float32. Raises UnsupportedError if it contains NaN or Inf."""
        import torch

        weight = self.sources[name].read()
        if name not in self.changed:
            return weight
        weight = weight.float()
        if name in self.nf4:
            weight = as_nf4(weight)
        for update in self.updates.get(name, ()):
            weight = update.apply(weight)
        # NaN and Inf show in the extremes, a tenth of the time of isfinite on every weight
        if weight.numel() and not torch.isfinite(torch.stack(weight.aminmax())).all():
            raise UnsupportedError(f"{name} contains NaN or Inf after the merge: the adapter is broken.")
        return weight


def read_plan(base: Path, adapters: Iterable[tuple[Path, float]], onto: Onto = "16bit") -> MergePlan:
    """The plan for a base and adapter folders with their weights. Raises as `read_adapter` and `plan_merge`."""
    kind = str(read_model_config(base).get("model_type", ""))
    return plan_merge(base, [read_adapter(folder, weight, model_type=kind) for folder, weight in adapters], onto)


def check_shapes(plan: MergePlan) -> None:
    """Raises UnsupportedError for updates whose shapes differ from the base's tensors; reads no weight."""
    wrong = []
    for name, updates in plan.updates.items():
        theirs = plan.sources[name].shape
        for update in updates:
            ours = update.shape if isinstance(update, LowRankUpdate) else theirs
            if ours != theirs and not (is_table(name.removesuffix(".weight")) and ours[1:] == theirs[1:]):
                wrong.append(f"{name} is {_by(theirs)} in the base, and changed by a matrix of {_by(ours)}")
    if wrong:
        raise UnsupportedError(listed("the adapter belongs to another base; name the right one with --base", wrong))


def _by(shape: Sequence[int]) -> str:
    return " × ".join(f"{length:,}" for length in shape)


def plan_merge(base: Path, adapters: Sequence[Adapter], onto: Onto = "16bit") -> MergePlan:
    """Match each update with a base tensor. Raises UnsupportedError if the base lacks it or two adapters conflict."""
    config = read_model_config(base)
    stored = without_copied_head(read_folder(base), config)
    embedding = find_embedding(stored) if find_head(stored) is None else None  # None unless the base is tied
    changes = [_placed(adapter, stored, tied=embedding is not None) for adapter in adapters]
    untied = embedding is not None and not all(change.keep_tied(embedding) for change in changes)
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    if untied and config.get("model_type") == "t5" and scaled:
        raise UnsupportedError("a T5 whose tied embedding or head was trained cannot be merged: its head has a scale.")
    sources = dict(stored)
    if embedding is not None:
        changes = [change.settled(embedding, apart=untied) for change in changes]
        if untied:
            sources[HEAD] = stored[embedding]
    frozen = _frozen(changes)
    types = {name: sources[name].dtype for name in frozen}
    sources |= frozen
    found: dict[str, list[tuple[Update, ...]]] = {}  # of each adapter
    for change in changes:
        for name, updates in change.updates.items():
            found.setdefault(name, []).append(updates)
    _refuse_clashes(found)
    together = {name: tuple(chain.from_iterable(groups)) for name, groups in found.items()}
    sizes = measure(sources, stored, together, changes[-1].folder) if changes else None
    nf4 = frozenset(_held_in_4_bit(stored, config)) if onto == "nf4" else frozenset[str]()
    return MergePlan(sources, together, untied, nf4, types, sizes)


def _placed(adapter: Adapter, stored: Mapping[str, StoredTensor], *, tied: bool) -> Changes:
    """An adapter's updates keyed by the base's names. Raises UnsupportedError for a tensor that the base lacks."""
    names = {name: _place(name, stored) or (HEAD if tied and name == HEAD else None)
             for name in (*adapter.updates, *adapter.frozen)}  # fmt: skip
    lost = [name for name, place in names.items() if place is None]
    if lost:
        some = ", ".join(lost[:3])
        raise UnsupportedError(
            f"{adapter.folder}: the base has no tensor for its {some} (of {len(lost)}): it belongs to another base, to "
            "be named with --base."
        )
    updates = {str(names[name]): value for name, value in adapter.updates.items()}
    frozen = {str(names[name]): value for name, value in adapter.frozen.items()}
    return Changes(adapter.folder, updates, frozen, adapter.ties)


def _frozen(changes: Iterable[Changes]) -> dict[str, StoredTensor]:
    """Tables that replaced the base's before training. Raises UnsupportedError if two adapters disagree."""
    found: dict[str, StoredTensor] = {}
    for change in changes:
        for name, table in change.frozen.items():
            if not same_values(found.setdefault(name, table), table):
                raise UnsupportedError(f"{change.folder}: was trained with another {name} than the other adapter.")
    return found


def read_model_config(base: Path) -> dict[str, Any]:
    """config.json of a model's folder."""
    config: dict[str, Any] = json.loads((base / file_names.CONFIG).read_text(encoding="utf-8"))
    return config


def _place(name: str, sources: Mapping[str, StoredTensor]) -> str | None:
    """The base's name for PEFT's `name`, with one prefix added or removed; None if there is none."""
    for level in ONE_LEVEL:
        for spelling in (name, name.removeprefix(level), level + name):
            if spelling in sources:
                return spelling
    return None


def _refuse_clashes(found: Mapping[str, Sequence[tuple[Update, ...]]]) -> None:
    """Raises UnsupportedError if adapters change the same tensor other than by addition."""
    for name, by_adapter in found.items():
        adds = all(
            isinstance(update, BiasUpdate) or (isinstance(update, LowRankUpdate) and update.magnitude is None)
            for updates in by_adapter
            for update in updates
        )
        if len(by_adapter) > 1 and not adds:
            raise UnsupportedError(f"{name} is changed by several adapters, and their updates cannot be added.")


def _held_in_4_bit(stored: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """Names of the matrices that QLoRA quantises: those of the layers, without embeddings and head."""
    kept = set((config.get("quantization_config") or {}).get("llm_int8_skip_modules") or ())
    for name, tensor in stored.items():
        module = name.removesuffix(".weight")
        last = module.rpartition(".")[2]
        embeds = name.endswith(EMBEDDINGS) or last in {"wpe", "embed_positions", "relative_attention_bias"}
        linear = name.endswith(".weight") and len(tensor.shape) == 2 and not embeds
        if linear and last not in SCORED_HEADS and last not in kept:
            yield name


def as_nf4(weight: Any) -> Any:
    """A weight quantised to NF4 (blocks of 64, 8-bit scales) and dequantised, as QLoRA computes with it; same shape."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(weight, blocksize=NF4_BLOCK, compress_statistics=True, quant_type="nf4")
    return dequantize_4bit(packed, state)


def planned_shards(plan: MergePlan, shard_bytes: int) -> dict[str, list[TensorSpec]]:
    """The merged model's files and their tensors, in the base's dtypes."""
    return plan_shards([plan.planned(name) for name in plan.sources], shard_bytes)


def write_shard(plan: MergePlan, path: Path, tensors: Sequence[TensorSpec], progress: Progress) -> None:
    """Write one file of the merged model. Memory holds one tensor and its updated copy."""
    with writing(path, tensors) as shard:
        for written, tensor in enumerate(tensors, 1):
            shard.write(plan.read(tensor.name))
            progress.update(written / len(tensors))


def write_index(shards: Mapping[str, Sequence[TensorSpec]], out: Path) -> list[Path]:
    """Write the index of a model in several files; returns no path for a single file."""
    if len(shards) == 1:
        return []
    where = {tensor.name: file for file, tensors in shards.items() for tensor in tensors}
    total = sum(tensor.size_bytes for tensors in shards.values() for tensor in tensors)
    write_json(out / file_names.WEIGHTS_INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    return [out / file_names.WEIGHTS_INDEX]


def set_vocabulary(config: dict[str, Any], plan: MergePlan) -> None:
    """Update vocab_size and tie_word_embeddings in a config if the merge changed them."""
    text = config.get("text_config")
    for section in (config, *([text] if isinstance(text, dict) else [])):
        if plan.untied:
            section["tie_word_embeddings"] = False
        if plan.sizes and (section is not config or "vocab_size" in config or not text):
            section["vocab_size"] = plan.sizes.after


def copy_config(plan: MergePlan, base: Path, out: Path, ends: Sequence[int] = ()) -> list[Path]:
    """Write config.json with the merge's changes, and generation_config.json with `ends` among its stop tokens."""
    config = read_model_config(base)
    set_vocabulary(config, plan)
    write_json(out / file_names.CONFIG, config, tagged)
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
