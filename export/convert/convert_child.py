"""Child process that converts a merged model with llama.cpp's `conversion` package, one tensor at a time.

Run by `export.convert.convert` with the converter's folders first on PYTHONPATH, since its `gguf` and `conversion`
packages share their names with others on the registry. The merged model is never on disk, and memory holds one tensor
of it. Names torch, transformers.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.convert.convert import UNKNOWN_TOKENIZER
from export.convert.vocabulary_fixes import (
    SCORES,
    TOKENS,
    is_sentencepiece_bpe,
    mend,
    merge_scores,
    prepends_space,
    read_tokenizer,
)
from export.merge.plan import MergePlan, read_plan, set_vocabulary
from export.tensors.safetensors_io import DTYPES
from gladstone import file_names
from gladstone.errors import UnsupportedError
from gladstone.gguf.header import NFC_KEY, read_header
from gladstone.models.tokenizer import end_of_turn_token, load_tokenizer
from gladstone.process.child_main import serve
from gladstone.process.import_without_gc import import_without_gc

Tensors = dict[str, Callable[[], Any]]
FLOAT16_MOST = 65504.0


class UnknownTokenizerError(UnsupportedError):
    """The converter does not know the hash of this tokenizer."""


def convert(job: dict[str, Any]) -> None:
    """Write `job["out"]` from the base `job["base"]` and its adapters; `job["model"]` holds tokenizer and config."""
    folder = Path(job["model"])
    known, hparams = read_model(folder)
    with import_without_gc():
        import gguf
        import torch
        from transformers import AutoTokenizer  # noqa: F401 - the converter imports it in the middle of its work
    gguf.LazyNumpyTensor.astype = halving_by_torch(gguf.LazyNumpyTensor.astype)
    plan = plan_of(job)
    set_vocabulary(hparams, plan)
    if "n_positions" in hparams:  # the converter reads GPT-2's older name, which transformers 5 does not write
        hparams.setdefault("n_ctx", hparams["n_positions"])

    model_class = merged_class(known, hparams, plan, job)
    file_type = {"f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "f32": "ALL_F32"}[job["type"]]
    with torch.inference_mode():
        made = model_class(
            folder, gguf.LlamaFileType[file_type], Path(job["out"]), model_name=job["name"], hparams=hparams
        )
        if job["outline"]:
            write_outline(made, Path(job["out"]))
        else:
            made.write()
    if plan.untied and all(tensor.name != "output.weight" for tensor in read_header(Path(job["out"])).tensors):
        raise UnsupportedError(
            f"{known.__name__}: llama.cpp's converter writes no separate head, but the adapter was trained with "
            "untied head and embedding."
        )


_AnyModel: Any = object  # llama.cpp's class of the architecture, known once the config is read


class MergedModel(_AnyModel):  # type: ignore[misc]
    """Mixin over a converter class of llama.cpp that takes tensors from a merge plan instead of the folder."""

    merge_plan: MergePlan
    merge_job: dict[str, Any]
    merge_hparams: dict[str, Any]

    def set_type(self) -> None:
        describe(self.metadata, self.merge_job["about"])
        super().set_type()

    def set_vocab(self) -> None:
        folder = Path(self.merge_job["model"])
        json_of = read_tokenizer(folder)
        values = self.gguf_writer.kv_data[0]
        if json_of and is_sentencepiece_bpe(json_of) and not (folder / file_names.SENTENCEPIECE_MODEL).is_file():
            self._set_vocab_llama_hf()  # transformers 5 does not save the sentencepiece model
            values[SCORES].value = merge_scores(json_of, values[TOKENS].value)
            self.gguf_writer.add_add_space_prefix(prepends_space(json_of))
        else:
            self._set_known_vocab(folder)
        mend(values, json_of, self.merge_plan.rows, self.does_token_look_special)
        self._set_special_tokens(folder)

    def _set_special_tokens(self, folder: Path) -> None:
        # written explicitly, since llama.cpp's defaults depend on the pre-tokenizer's name
        tokenizer = load_tokenizer(folder)
        self.gguf_writer.add_add_bos_token(tokenizer.bos_id is not None)
        if tokenizer.normalizes_nfc:
            self.gguf_writer.add_bool(NFC_KEY, True)
        end = end_of_turn_token(tokenizer)
        if end is not None and end != tokenizer.eos_id:
            self.gguf_writer.add_eot_token_id(end)

    def _set_known_vocab(self, folder: Path) -> None:
        try:
            super().set_vocab()
        except (FileNotFoundError, ValueError):
            if not _is_byte_level(folder):
                raise
            self._set_vocab_gpt2()  # the architecture's own reader expects a sentencepiece model

    def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Iterable[tuple[str, Any]]:
        if name.endswith("embed_tokens.weight") and type(self).__name__.startswith("Gemma3"):
            # Gemma3 cuts the table to the tokens it counts, without those added to a sentencepiece model
            return [(self.map_tensor_name(name), data_torch)]
        tensors: Iterable[tuple[str, Any]] = super().modify_tensors(data_torch, name, bid)
        return tensors

    def set_gguf_parameters(self) -> None:
        super().set_gguf_parameters()
        scale = logit_scale(self.merge_hparams)
        if scale is not None:
            self.gguf_writer.add_logit_scale(scale)

    def get_vocab_base_pre(self, tokenizer: Any) -> str:
        try:
            return str(super().get_vocab_base_pre(tokenizer))
        except NotImplementedError:
            if self.merge_job["pre"] is None:
                raise UnknownTokenizerError(UNKNOWN_TOKENIZER) from None
            return str(self.merge_job["pre"])

    def index_tensors(self, remote_hf_model_id: str | None = None) -> Tensors:
        plan, file_type = self.merge_plan, self.merge_job["type"]
        named = ((name, lazy_tensor(plan, name, file_type)) for name in plan.sources)
        return dict(filter(None, (self.filter_tensors(tensor) for tensor in named)))


def merged_class(known: Any, hparams: dict[str, Any], plan: MergePlan, job: dict[str, Any]) -> Any:
    """The converter's class `known` of an architecture with `MergedModel` mixed in."""
    attributes = {"model_arch": known.model_arch, "merge_plan": plan, "merge_job": job, "merge_hparams": hparams}
    return type(known.__name__, (MergedModel, known), attributes)


def read_model(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The converter's class for a model, and its config. Raises UnsupportedError for an unknown architecture."""
    with import_without_gc():
        from conversion import ModelBase

        hparams = ModelBase.load_hparams(folder, False)  # imports the family's configuration
        return known_class(hparams), hparams


def logit_scale(hparams: Mapping[str, Any]) -> float | None:
    """The factor of a T5's logits, which llama.cpp does not derive; None for other models.

    As in transformers: never for mT5, always for UMT5, for T5 if its head is tied unless the config says otherwise.
    """
    kind, small = hparams.get("model_type"), float(hparams.get("d_model", 1)) ** -0.5
    if kind == "t5":
        return small if hparams.get("scale_decoder_outputs", hparams.get("tie_word_embeddings", True)) else 1.0
    return {"mt5": 1.0, "umt5": small}.get(str(kind))


def plan_of(job: Mapping[str, Any]) -> MergePlan:
    """The merge plan of a job. Raises as `read_plan` does."""
    return read_plan(Path(job["base"]), [(Path(path), weight) for path, weight in job["adapters"]], job["onto"])


def halving_by_torch(astype: Callable[..., Any]) -> Callable[..., Any]:
    """`astype` of a lazy array that casts float32 to float16 with torch: the same bits in a tenth of numpy's time."""

    def cast(lazy: Any, dtype: Any, *args: Any, **kwargs: Any) -> Any:
        if (lazy.dtype, np.dtype(dtype)) != (np.float32, np.float16):
            return astype(lazy, dtype, *args, **kwargs)
        meta = type(lazy).meta_with_dtype_and_shape(dtype, lazy.shape)
        return type(lazy)(meta=meta, args=(lazy,), func=as_half)

    return cast


def as_half(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Float16 of the same shape, rounded to nearest, ties to even."""
    import torch

    rounded: npt.NDArray[np.float16] = torch.from_numpy(values).to(torch.float16).numpy()
    return rounded


def describe(metadata: Any, about: dict[str, Any]) -> None:
    """Replace what the converter guesses from names by what is known of the model."""
    for name, value in about.items():
        setattr(metadata, name, value)


def known_class(hparams: dict[str, Any]) -> Any:
    """The class of an architecture. Raises UnsupportedError if the converter has none."""
    from conversion import ModelType, get_model_architecture, get_model_class

    architecture = get_model_architecture(hparams, ModelType.TEXT)
    try:
        return get_model_class(architecture)
    except NotImplementedError:
        raise UnsupportedError(f"llama.cpp's converter does not know the architecture {architecture!r}.") from None


def write_outline(made: Any, out: Path) -> None:
    """Write the header in a sparse file of full length; reads no weight."""
    made.prepare_tensors()
    made.prepare_metadata(vocab_only=False)
    writer = made.gguf_writer
    writer.write_header_to_file(path=out)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    pad = writer.ggml_pad
    size = pad(writer.fout[0].tell(), writer.data_alignment)
    size += sum(pad(info.nbytes, writer.data_alignment) for info in writer.tensors[0].values())
    writer.fout[0].truncate(size)
    writer.fout[0].flush()


def lazy_tensor(plan: MergePlan, name: str, file_type: str) -> Callable[[], Any]:
    """A lazy tensor, read and merged when the converter writes it."""
    from conversion.base import LazyTorchTensor

    planned = plan.planned(name)

    def load() -> Any:
        import torch

        kind = torch.float32 if name in plan.changed else getattr(torch, DTYPES[planned.dtype])
        meta = LazyTorchTensor.meta_with_dtype_and_shape(kind, planned.shape)
        return LazyTorchTensor(meta=meta, args=(name,), func=lambda name: _checked(plan.read(name), name, file_type))

    return load


def _checked(tensor: Any, name: str, file_type: str) -> Any:
    """Raises UnsupportedError for a weight beyond F16, which would become Inf."""
    if file_type == "f16" and tensor.is_floating_point() and tensor.dim() > 1:
        low, high = tensor.aminmax()
        if max(-float(low), float(high)) > FLOAT16_MOST:
            raise UnsupportedError(f"{name} has weights beyond what F16 holds ({FLOAT16_MOST:,.0f}): use --quant bf16.")
    return tensor


def _is_byte_level(folder: Path) -> bool:
    """True for a byte-level BPE tokenizer, as in GPT-2."""
    path = folder / file_names.TOKENIZER
    if not path.is_file() or (folder / file_names.SENTENCEPIECE_MODEL).is_file():
        return False
    return '"ByteLevel"' in path.read_text(encoding="utf-8")


if __name__ == "__main__":
    serve(convert)
