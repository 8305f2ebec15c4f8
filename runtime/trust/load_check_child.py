"""The child of `runtime.trust.load_check`: loads a model and generates a few tokens. It may crash or hang."""

import ctypes
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gladstone.errors import ArtifactError, GladstoneError
from gladstone.gguf.check_model import shorten
from gladstone.gguf.header import read_model
from gladstone.gguf.types import TENSOR_TYPE_NUMBERS, Pooling
from gladstone.llamacpp.context import Context
from gladstone.llamacpp.library import LOG_NOISE, library
from gladstone.llamacpp.model import Model
from gladstone.process.child_main import serve
from gladstone.report import terminal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CONTEXT_TOKENS, PROMPT_TOKENS, ANSWER_TOKENS = 64, 24, 4
PIECES = 8192  # tokens of the vocabulary that are converted to text
MAX_OUTPUT_BYTES = 1 << 20
SHOWN_CHARACTERS = 300
# every leading and trailing byte of UTF-8, characters of all planes, and markup that breaks tokenizers
ODD_TEXT = (
    "The heart moves blood. "
    + "".join(map(chr, (*range(1, 0x800), *range(0x800, 0xD800, 331), *range(0xE000, 0x110000, 4099))))
    + "<|im_start|>user\n</s><s>[INST] <0x0A> ▁▁ \t \r\n\n" + " " * 70 + "a" * 300 + "é\u0301\u200d🧑‍🚀 ﷽ ½ﬁ"
)  # fmt: skip
POINTER = re.compile(r"\.? (?:It|llama\.cpp) says:?$")


def check(job: dict[str, Any]) -> dict[str, Any]:
    """Check the file that the job names; returns "passed", or "refused" with the reason."""
    library()
    _limit(job["memory_bytes"], job["processor_s"])
    try:
        try_out(Path(job["path"]), vocab_only=job["vocab_only"])
    except GladstoneError as error:
        return {"refused": in_one_line(str(error))}
    return {"passed": True}


def try_out(path: Path, *, vocab_only: bool) -> None:
    """Use the model as the engine does. Raises GladstoneError; a crash of llama.cpp ends the process."""
    if not vocab_only:
        _try_weights(path)
    with Model(path, vocab_only=vocab_only) as model:
        tokens = _try_vocabulary(model)
        if vocab_only:
            return
        with Context(model, CONTEXT_TOKENS, batch_tokens=CONTEXT_TOKENS, threads=1) as context:
            generates = library().llama_get_memory(context.handle) is not None
            generates = generates and library().llama_model_has_decoder(model.handle)
            if generates:
                _try_generation(context, model, tokens)
        if not generates:
            _try_embedding(model, tokens)


def _try_weights(path: Path) -> None:
    """Raise ArtifactError if any weight is NaN or Inf; generating a few tokens would not use all of them."""
    import numpy as np

    is_sound = library()._lib.ggml_validate_row_data
    is_sound.argtypes, is_sound.restype = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_bool
    for header in read_model(path):
        data = np.memmap(header.path, np.uint8, "r")
        for tensor in header.tensors:
            begin = data.ctypes.data + header.data_offset + tensor.offset
            if not is_sound(TENSOR_TYPE_NUMBERS[tensor.type_name], begin, tensor.size_bytes):
                raise ArtifactError(f"the weights of {shorten(tensor.name)} contain NaN or Inf")


def _try_vocabulary(model: Model) -> list[int]:
    """Convert tokens to text and text to tokens; returns a prompt. Raises ArtifactError for ids out of range."""
    for token in range(0, model.vocab_size, max(1, model.vocab_size // PIECES)):
        model.piece(token, special=True)
        model.piece(token)
        model.ends_generation(token)
    for special in (False, True):
        tokens = model.tokenize(ODD_TEXT, add_special=special, parse_special=special)
    tokens = (tokens[:PROMPT_TOKENS] + tokens[-PROMPT_TOKENS:])[: CONTEXT_TOKENS - ANSWER_TOKENS - 2]
    tokens = tokens or list(range(min(PROMPT_TOKENS, model.vocab_size)))
    if min(tokens) < 0 or max(tokens) >= model.vocab_size:
        raise ArtifactError("its vocabulary gives a text token ids that are out of range")
    return tokens


def _try_generation(context: Context, model: Model, tokens: list[int]) -> None:
    if model.has_encoder:
        if model.decoder_start < 0:
            raise ArtifactError("it does not name the decoder's start token")
        context.encode(tokens)
        tokens = [model.decoder_start]
    context.decode(tokens, 0, all_logits=True)
    for index in range(len(tokens)):
        _check_finite(context.logits(index))
    for position in range(len(tokens), len(tokens) + ANSWER_TOKENS):
        context.decode([int(context.logits(-1).argmax())], position)
        _check_finite(context.logits(-1))


def _try_embedding(model: Model, tokens: list[int]) -> None:
    with Context(model, CONTEXT_TOKENS, threads=1, pooling="model") as context:
        if model.has_encoder:
            context.encode(tokens)
        else:
            context.decode(tokens, 0, all_logits=True)
        pooling = library().llama_pooling_type(context.handle)
        if pooling != Pooling.RANK:
            vector = context.embedding(sequence=0 if pooling else None)
            _check_finite(vector)


def _check_finite(values: "npt.NDArray[np.float32]") -> None:
    import numpy as np

    # a logit of minus infinity is legitimate: some models forbid tokens so
    if np.isnan(values).any() or not np.isfinite(values.max()):
        raise ArtifactError("its logits contain NaN or Inf")


def in_one_line(message: str) -> str:
    """The first line of an error, with the line of llama.cpp's log that gives the cause."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    first, rest = POINTER.sub("", lines[0]), lines[1:]
    if not rest:
        return first
    reason = next((line for line in rest if "error" in line.lower() or "failed" in line.lower()), rest[-1])
    return f"{first}: {terminal.one_line(LOG_NOISE.sub('', reason), SHOWN_CHARACTERS)}"


def _limit(memory_bytes: int, processor_s: float) -> None:
    """Let the system end this process if it exceeds these limits. Its parent watches too."""
    try:
        import resource
    except ImportError:  # Windows
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    second = int(used.ru_utime + used.ru_stime + processor_s) + 1
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_CPU: second, resource.RLIMIT_FSIZE: MAX_OUTPUT_BYTES}
    private = _private_bytes()
    if private is not None:
        limits[resource.RLIMIT_DATA] = private + memory_bytes
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (soft, hard))


def _private_bytes() -> int | None:
    """Writable private memory in bytes, as Linux counts it for RLIMIT_DATA; mapped files do not count."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    match = re.search(r"^VmData:\s+(\d+) kB", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


if __name__ == "__main__":
    serve(check)
