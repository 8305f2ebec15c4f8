"""Finds the llama.cpp pre-tokenizer that matches a tokenizer unknown to the converter.

The converter recognises tokenizers by the hash of a sample's token ids. For any other tokenizer, each pre-tokenizer is
tried on difficult texts; the first that yields the same ids on all of them is taken.
"""

import struct
import tempfile
from pathlib import Path

from export.proof.texts import proof_texts
from gladstone.commands.progress import Progress, step
from gladstone.errors import ArtifactError, UnsupportedError
from gladstone.gguf.types import ValueType
from gladstone.llamacpp.model import Model
from gladstone.models.tokenizer import load_tokenizer

# one name of each kind in llama.cpp (src/llama-vocab.cpp), the most common first
NAMES = (
    "llama-bpe", "qwen2", "gpt-2", "gpt-4o", "deepseek-r1-qwen", "tekken", "smollm", "deepseek-llm", "deepseek-coder",
    "deepseek-v3", "falcon3", "falcon", "mpt", "starcoder", "phi-2", "command-r", "qwen35", "stablelm2", "olmo", "dbrx",
    "smaug-bpe", "poro-chat", "chatglm-bpe", "glm4", "viking", "jais", "codeshell", "bloom", "gpt3-finnish", "exaone",
    "exaone4", "chameleon", "minerva-7b", "superbpe", "trillion", "granite-docling", "bailingmoe", "seed-coder",
    "hunyuan", "hunyuan-dense", "kimi-k2", "llama4", "refact", "roberta-bpe", "gigachat", "jais-2", "mellum",
    "tiny_aya", "youtu", "lfm2", "pixtral", "minicpm5", "grok-2", "afmoe", "minimax-m2", "solar-open", "joyai-llm",
    "default",
)  # fmt: skip
KEY = b"tokenizer.ggml.pre"
TEXTS = 300


def choose(header: Path, tokenizer: Path, progress: Progress) -> str:
    """The pre-tokenizer for a GGUF with the vocabulary of a tokenizer folder; reads no weight.

    Raises UnsupportedError if none splits texts as the tokenizer does.
    """
    trained = load_tokenizer(tokenizer)
    texts = proof_texts([], list(trained.special_tokens), TEXTS)
    wanted = trained.encode_all(texts)
    before, after = _around(header)
    fewest = len(texts) + 1, ""
    with step(progress, "Looking for a matching pre-tokenizer"), tempfile.TemporaryDirectory() as work:
        path = Path(work) / "vocabulary.gguf"
        for place, name in enumerate(NAMES):
            path.write_bytes(before + _text(name.encode()) + after)
            wrong = _differing(path, texts, wanted)
            if not wrong:
                return name
            fewest = min(fewest, (wrong, name))
            progress.update((place + 1) / len(NAMES))
    raise UnsupportedError(
        f"{tokenizer}: none of llama.cpp's {len(NAMES)} pre-tokenizers splits texts as it does; the closest, "
        f"{fewest[1]}, differs on {fewest[0]} of {len(texts)} texts."
    )


def _differing(path: Path, texts: list[str], wanted: list[list[int]]) -> int:
    try:
        with Model(path, vocab_only=True) as model:
            pairs = zip(texts, wanted, strict=True)
            return sum(model.tokenize(text, parse_special=True) != ids for text, ids in pairs)
    except ArtifactError:  # some kinds need what this vocabulary lacks
        return len(texts)


def _around(header: Path) -> tuple[bytes, bytes]:
    """The bytes of a tensor-less GGUF before and after the name of its pre-tokenizer."""
    data = header.read_bytes()
    data = data[:8] + struct.pack("<Q", 0) + data[16:]
    found = data.find(_text(KEY) + struct.pack("<I", ValueType.STRING))
    if found < 0:
        raise UnsupportedError(f"{header}: its vocabulary is of a kind that has no pre-tokenizer.")
    begin = found + len(_text(KEY)) + 4
    (length,) = struct.unpack_from("<Q", data, begin)
    return data[:begin], data[begin + 8 + length :]


def _text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data
