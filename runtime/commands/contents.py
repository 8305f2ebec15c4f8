"""What `runtime info` shows for a GGUF without a model: an importance matrix, an adapter and the like."""

from collections import Counter
from pathlib import Path
from typing import Any

from gladstone.artifacts import check_file, is_in_manifest, read_manifest
from gladstone.gguf.header import GgufHeader, read_header
from gladstone.gguf.kinds import identify_kind
from gladstone.machine.host import readable_bytes

# keys that say what the file was made from and for, with the names shown for them
SHOWN = {
    "general.name": "name",
    "general.architecture": "architecture",
    "general.basename": "base name",
    "general.base_model.0.name": "base model",
    "general.base_model.0.repo_url": "base's address",
    "adapter.type": "adapter",
    "adapter.lora.alpha": "alpha",
    "imatrix.datasets": "text",
    "imatrix.chunk_count": "chunks",
    "imatrix.chunk_size": "tokens a chunk",
    "controlvector.model_hint": "for models of",
    "controlvector.layer_count": "layers",
    "clip.projector_type": "projector",
}


def read_contents(path: Path) -> dict[str, Any]:
    """Names and JSON values. Raises ArtifactError for a damaged file, or one that differs from its manifest."""
    header = read_header(path, is_model=False)
    kind = identify_kind(header.metadata, (tensor.name for tensor in header.tensors))
    assert kind is not None  # noqa: S101 - the caller has met it as one
    return {
        "file": str(path),
        "kind": kind.noun,
        "use": kind.use(path),
        **{name: header.metadata[key] for key, name in SHOWN.items() if key in header.metadata},
        **_sizes(header),
        "manifest": _manifest(path),
    }


def render_contents(contents: dict[str, Any]) -> str:
    """Render the contents as lines of text."""
    shown = contents | {"size": readable_bytes(contents["size_bytes"])}
    del shown["size_bytes"]
    lists = {name: ", ".join(map(str, value)) for name, value in shown.items() if isinstance(value, list)}
    types = {"tensor types": ", ".join(f"{count} {name}" for name, count in contents["tensor types"].items())}
    return "\n".join(f"{name:<15} {value}" for name, value in (shown | lists | types).items())


def _sizes(header: GgufHeader) -> dict[str, Any]:
    types = Counter(tensor.type_name for tensor in header.tensors)
    pairs = {tensor.name.removesuffix(".lora_a") for tensor in header.tensors if tensor.name.endswith(".lora_a")}
    ranks = {tensor.shape[1] for tensor in header.tensors if tensor.name.endswith(".lora_a") and len(tensor.shape) > 1}
    lora = {"weights changed": len(pairs), "rank": sorted(ranks)} if pairs else {}
    return {**lora, "tensor types": dict(types), "size_bytes": header.size_bytes}


def _manifest(path: Path) -> str:
    if not is_in_manifest(path):
        return "no manifest"
    manifest = read_manifest(path.parent)
    check_file(path, manifest.record(path.name))
    return f"verified (made by {manifest.stage}: size and sha256 as recorded)"
