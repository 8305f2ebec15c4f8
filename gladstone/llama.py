"""llama.cpp through llama-cpp-python's low-level API: model, vocabulary, context. The file that names llama_cpp.

The high-level class is not used: its text layer costs the square of the answer's length, drops tokens of more than 32
bytes and freezes on invalid UTF-8. A failed GGML_ASSERT ends the process, so sizes are checked here before each call.
"""

import ctypes
import functools
import os
import unicodedata
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gladstone.errors import ArtifactError, UnsupportedError
from gladstone.gguf import COMPOSES, read_model
from gladstone.host import core_count
from gladstone.lora import Lora, check_lora

_log_tail: deque[str] = deque(maxlen=20)
_callbacks: list[object] = []  # a ctypes callback dies with its last reference


@functools.cache
def library() -> Any:
    """The ctypes module of llama.cpp, its log kept for error messages instead of printed."""
    # OpenMP's default lets idle threads spin: beside any other work, decoding then takes up to thirty times as long
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from llama_cpp import llama_cpp

    def keep(_level: int, text: bytes, _data: object) -> None:
        _log_tail.append(text.decode("utf-8", "replace").rstrip())

    callback = llama_cpp.llama_log_callback(keep)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    _callbacks.append(callback)
    return llama_cpp


def log_tail() -> str:
    """The last lines that llama.cpp logged."""
    return "\n".join(line for line in _log_tail if line)


class Model:
    """A loaded GGUF: weights and vocabulary. Close it, or use it in a `with` block: it maps the whole file."""

    def __init__(
        self, path: Path, *, vocab_only: bool = False, gpu_layers: int = 0, loras: Sequence[Lora] = ()
    ) -> None:
        """With adapters laid over it. Raises ArtifactError if a header is not sound or llama.cpp cannot load a file."""
        headers = read_model(path)
        for lora in loras:
            check_lora(lora.path, headers)
        self.path = path
        self._lib = library()
        params = self._lib.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = gpu_layers
        _log_tail.clear()
        self.handle = self._lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self.handle:
            raise ArtifactError(f"{path}: llama.cpp cannot load it. It says:\n{log_tail()}")
        self._vocab = self._lib.llama_model_get_vocab(self.handle)
        if self._lib.llama_vocab_type(self._vocab) == self._lib.LLAMA_VOCAB_TYPE_NONE:  # any tokenizing would abort
            self.close()
            raise ArtifactError(f"{path}: the file carries no vocabulary, so no text can be put to the model.")
        self.vocab_size: int = self._lib.llama_vocab_n_tokens(self._vocab)
        self.context_tokens: int = self._lib.llama_model_n_ctx_train(self.handle)
        self.bos: int = self._lib.llama_vocab_bos(self._vocab)
        self.eos: int = self._lib.llama_vocab_eos(self._vocab)
        self.eot: int = self._lib.llama_vocab_eot(self._vocab)
        self.pad: int = self._lib.llama_vocab_pad(self._vocab)
        self.adds_bos: bool = self._lib.llama_vocab_get_add_bos(self._vocab)
        self.has_encoder: bool = self._lib.llama_model_has_encoder(self.handle)
        self.adds_eos: bool = self._lib.llama_vocab_get_add_eos(self._vocab)
        self.decoder_start: int = self._lib.llama_model_decoder_start_token(self.handle)
        self.composes: bool = self._metadata(COMPOSES) == "true"
        self.loras = [(self._load(lora.path), lora.scale) for lora in loras]

    def _metadata(self, key: str) -> str:
        """A short value as llama.cpp writes it, '' where there is none."""
        buffer = ctypes.create_string_buffer(64)
        size = self._lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if size >= 0 else ""

    def _load(self, path: Path) -> Any:
        """An adapter, which goes with the model."""
        handle = self._lib.llama_adapter_lora_init(self.handle, os.fsencode(path))
        if not handle:
            self.close()
            raise ArtifactError(f"{path}: llama.cpp cannot lay it over {self.path.name}. It says:\n{log_tail()}")
        return handle

    def close(self) -> None:
        """Free the weights. Closing twice is harmless."""
        if self.handle:
            self._lib.llama_model_free(self.handle)
            self.handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Token ids. `parse_special` turns the text of special tokens into the tokens: never use it on user text.

        Characters are composed first where the file says that its tokenizer does: llama.cpp itself never does.
        """
        if self.composes and not text.isascii():
            text = unicodedata.normalize("NFC", text)
        data = text.encode("utf-8", "surrogatepass")
        room = len(data) + 8
        for _ in range(2):
            tokens = (self._lib.llama_token * room)()
            count = self._lib.llama_tokenize(self._vocab, data, len(data), tokens, room, add_special, parse_special)
            if count >= 0:
                return list(tokens[:count])
            room = -count
        raise ArtifactError(f"{self.path}: the vocabulary cannot tokenize a text of {len(data)} bytes.")

    def framed(self, tokens: list[int]) -> list[int]:
        """A prompt's tokens with BOS in front if the vocabulary wants one and the template did not write it.

        What an encoder reads ends with EOS.
        """
        if self.adds_bos and self.bos >= 0 and tokens[:1] != [self.bos]:
            tokens = [self.bos, *tokens]
        if self.has_encoder and self.adds_eos and tokens[-1:] != [self.eos]:
            tokens = [*tokens, self.eos]
        return tokens

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of a token, of any length; empty for a special token unless `special` is set."""
        room = 64
        for _ in range(2):
            buffer = ctypes.create_string_buffer(room)
            size = self._lib.llama_token_to_piece(self._vocab, token, buffer, room, 0, special)
            if size >= 0:
                return buffer.raw[:size]
            room = -size
        raise ArtifactError(f"{self.path}: token {token} has no text.")

    def token_text(self, token: int) -> str:
        """The token as the vocabulary stores it (byte-level letters, '▁' and the like)."""
        text: bytes = self._lib.llama_vocab_get_text(self._vocab, token)
        return text.decode("utf-8", "surrogateescape")

    def ends_generation(self, token: int) -> bool:
        """True for end of sequence, end of turn and their kin."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    def is_control(self, token: int) -> bool:
        """True for tokens that steer and have no text of their own."""
        return bool(self._lib.llama_vocab_is_control(self._vocab, token))


class Context:
    """The evaluation state of a model: KV cache and logits of the last batch."""

    def __init__(  # noqa: PLR0913 - one parameter for each of llama.cpp's
        self,
        model: Model,
        context_tokens: int,
        *,
        batch_tokens: int = 512,
        sequences: int = 1,
        threads: int | None = None,
        watch: Any = None,
    ) -> None:
        """`context_tokens` are shared by all `sequences`; `watch` is called before and after each operation.

        Raises UnsupportedError if there is no memory for it.
        """
        self.model = model
        self._lib = library()
        params = self._lib.llama_context_default_params()
        params.n_ctx = context_tokens
        # what an encoder reads goes through it in one piece: every token sees every other
        params.n_batch = params.n_ubatch = context_tokens if model.has_encoder else min(batch_tokens, context_tokens)
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads or core_count()
        params.no_perf = True
        if watch is not None:
            params.cb_eval = watch
        _log_tail.clear()
        self.handle = self._lib.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise UnsupportedError(f"no memory for a context of {context_tokens} tokens. llama.cpp says:\n{log_tail()}")
        self._lay_over(model.loras)
        self.context_tokens: int = self._lib.llama_n_ctx(self.handle)
        self.batch_tokens: int = self._lib.llama_n_batch(self.handle)
        self._memory = self._lib.llama_get_memory(self.handle)
        self._batch = self._lib.llama_batch_init(self.batch_tokens, 0, sequences)
        self._encoded = False

    def _lay_over(self, loras: Sequence[tuple[Any, float]]) -> None:
        if not loras:
            return
        handles = (self._lib.llama_adapter_lora_p_ctypes * len(loras))(*(handle for handle, _ in loras))
        scales = (ctypes.c_float * len(loras))(*(scale for _, scale in loras))
        if self._lib.llama_set_adapters_lora(self.handle, handles, len(loras), scales) != 0:
            self._lib.llama_free(self.handle)
            raise UnsupportedError(f"llama.cpp cannot use these adapters.\n{log_tail()}")

    def close(self) -> None:
        """Free the context (before its model). Closing twice is harmless."""
        if self.handle:
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self.handle)
            self.handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def decode(self, tokens: Sequence[int], start: int, *, sequence: int = 0, all_logits: bool = False) -> None:
        """Evaluate at most `batch_tokens` tokens at positions `start`, `start`+1, …; logits of the last, or of all.

        Raises ValueError for sizes that llama.cpp would abort on, and before an encoder has read anything.
        """
        if self.model.has_encoder and not self._encoded:
            raise ValueError("nothing was encoded that the answer could be to")
        self._fill(tokens, start, sequence, all_logits=all_logits)
        code = self._lib.llama_decode(self.handle, self._batch)
        if code != 0:
            raise UnsupportedError(f"llama.cpp could not evaluate {len(tokens)} tokens (code {code}).\n{log_tail()}")

    def encode(self, tokens: Sequence[int]) -> None:
        """Let the encoder of an encoder–decoder model read a text; what was read and written before is forgotten.

        Raises ValueError for sizes that llama.cpp would abort on.
        """
        self._lib.llama_memory_clear(self._memory, True)
        self._fill(tokens, 0, 0, all_logits=True)
        code = self._lib.llama_encode(self.handle, self._batch)
        if code != 0:
            raise UnsupportedError(f"llama.cpp could not encode {len(tokens)} tokens (code {code}).\n{log_tail()}")
        self._encoded = True

    def _fill(self, tokens: Sequence[int], start: int, sequence: int, *, all_logits: bool) -> None:
        count = len(tokens)
        if not 0 < count <= self.batch_tokens:
            raise ValueError(f"a batch holds 1 to {self.batch_tokens} tokens, not {count}")
        if start < 0 or start + count > self.context_tokens:
            raise ValueError(f"positions {start} to {start + count} do not fit a context of {self.context_tokens}")
        if min(tokens) < 0 or max(tokens) >= self.model.vocab_size:
            raise ValueError("a token id is outside the vocabulary")
        batch = self._batch
        batch.n_tokens = count
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = start + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = all_logits
        batch.logits[count - 1] = True

    def logits(self, index: int = -1) -> npt.NDArray[np.float32]:
        """Logits (V,) of the batch's token `index`; a view that the next `decode` overwrites: copy to keep."""
        pointer = self._lib.llama_get_logits_ith(self.handle, index)
        return np.ctypeslib.as_array(pointer, shape=(self.model.vocab_size,))

    def forget(self, start: int = 0, *, sequence: int = 0) -> None:
        """Drop what the cache holds of a sequence from position `start` on."""
        if not self._lib.llama_memory_seq_rm(self._memory, sequence, start, -1):
            self._lib.llama_memory_clear(self._memory, True)  # recurrent models cannot drop a part
            if start:
                raise UnsupportedError("this model's state cannot be cut back: start the sequence again")
