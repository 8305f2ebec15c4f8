"""llama.cpp through llama-cpp-python's low-level API: the library, a model, its vocabulary. Names llama_cpp.

The high-level class is not used: its text layer costs the square of the answer's length, drops tokens of more than 32
bytes and freezes on invalid UTF-8. A failed GGML_ASSERT ends the process, so sizes are checked here before each call.
"""

import ctypes
import functools
import os
import re
import threading
import unicodedata
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gladstone.errors import ArtifactError
from gladstone.gguf.header import COMPOSES, GgufHeader, read_model, usable_context
from gladstone.llamacpp.backends import load_best_backend
from gladstone.llamacpp.lora import Lora, check_lora
from gladstone.machine.huge_pages import NewMemory
from gladstone.report.terminal import one_line

USER_DEFINED = 1 << 4  # llama.h's LLAMA_TOKEN_ATTR_USER_DEFINED
NO_BYTE = b"[UNK_BYTE_0x"  # what llama.cpp makes of a letter that stands for no byte

LOG_NOISE = re.compile(r"^(?:\w+: )+")  # the names of llama.cpp's functions
LONGEST_REASON = 300  # characters

_log_tail: deque[str] = deque(maxlen=20)
_callbacks: list[object] = []  # a ctypes callback dies with its last reference


@functools.cache
def library() -> Any:
    """The ctypes module of llama.cpp, its log kept for error messages instead of printed."""
    from llama_cpp import llama_cpp

    def keep(_level: int, text: bytes, _data: object) -> None:
        _log_tail.append(text.decode("utf-8", "replace").rstrip())

    callback = llama_cpp.llama_log_callback(keep)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    load_best_backend(llama_cpp)  # before llama.cpp looks for some by itself, in the working directory too
    llama_cpp.llama_backend_init()
    _callbacks.append(callback)
    return llama_cpp


def clear_log() -> None:
    """Forget what was logged, before a call whose messages matter."""
    _log_tail.clear()


def log_tail() -> str:
    """The last lines that llama.cpp logged."""
    return "\n".join(line for line in _log_tail if line)


def last_reason() -> str:
    """The line of the log that says why a call failed, without the names of llama.cpp's functions and its end."""
    lines = [line for each in _log_tail for line in each.splitlines() if line.strip()]
    told = [line for line in lines if "error" in line.lower() or "failed" in line.lower()]
    line = (told or lines or ["it does not say why"])[0 if told else -1]
    return one_line(LOG_NOISE.sub("", line), LONGEST_REASON).rstrip(".")


class Model:
    """A loaded GGUF: weights and vocabulary. Close it, or use it in a `with` block: it maps the whole file."""

    def __init__(  # noqa: PLR0913 - as of `Context`, one for each of llama.cpp's
        self,
        path: Path,
        *,
        vocab_only: bool = False,
        mapped: bool = True,
        gpu_layers: int = 0,
        tensor_split: Sequence[int] = (),
        loras: Sequence[Lora] = (),
        headers: Sequence[GgufHeader] | None = None,
    ) -> None:
        """With adapters laid over it. `tensor_split` says how many of the layers each GPU takes.

        `headers` are those of the file, if they were read just now: of a large vocabulary that takes half a second.
        The weights are `mapped` from the file, or else read into memory of their own, where huge pages can hold them.

        Raises ArtifactError if a header is not sound or llama.cpp cannot load a file.
        """
        headers = headers or read_model(path)
        for lora in loras:
            check_lora(lora.path, headers)
        self.headers = tuple(map(_without_lists, headers))
        self.path = path
        self.gpu_layers = gpu_layers
        self._lib = library()
        params = self._lib.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = gpu_layers
        split = (ctypes.c_float * self._lib.llama_max_devices())(*tensor_split)
        if any(tensor_split):
            params.tensor_split = split
        if not mapped:
            params.load_mode = self._lib.LLAMA_LOAD_MODE_NONE
        clear_log()
        self.handle = self._load_weights(path, params)
        if not self.handle:
            raise ArtifactError(f"{path}: llama.cpp cannot load it: {last_reason()}.")
        self.vocabulary = self._lib.llama_model_get_vocab(self.handle)
        if self._lib.llama_vocab_type(self.vocabulary) == self._lib.LLAMA_VOCAB_TYPE_NONE:  # any tokenizing would abort
            self.close()
            raise ArtifactError(f"{path}: the file carries no vocabulary, so no text can be put to the model.")
        self.vocab_size: int = self._lib.llama_vocab_n_tokens(self.vocabulary)
        self.context_tokens = usable_context(headers)
        self.eot: int = self._lib.llama_vocab_eot(self.vocabulary)
        self.bos: int = self._declared("bos", self._lib.llama_vocab_bos(self.vocabulary), instead=-1)
        self.eos: int = self._declared("eos", self._lib.llama_vocab_eos(self.vocabulary), instead=self.eot)
        self.end_tokens: set[int] = set()  # that end a turn by what the chat template says, beside the vocabulary's
        self.pad: int = self._lib.llama_vocab_pad(self.vocabulary)
        self.adds_bos: bool = self._lib.llama_vocab_get_add_bos(self.vocabulary)
        self.has_encoder: bool = self._lib.llama_model_has_encoder(self.handle)
        self.adds_eos: bool = self._lib.llama_vocab_get_add_eos(self.vocabulary)
        self.decoder_start: int = self._lib.llama_model_decoder_start_token(self.handle)
        self.embedding_size: int = self._lib.llama_model_n_embd_out(self.handle)
        # a state that is rolled up as it goes cannot be cut back to an earlier token
        self.can_cut: bool = not (
            self._lib.llama_model_is_recurrent(self.handle) or self._lib.llama_model_is_hybrid(self.handle)
        )
        self.composes: bool = self._metadata(COMPOSES) == "true"
        self.loras = [(self._load(lora.path), lora.scale) for lora in loras]

    def _load_weights(self, path: Path, params: Any) -> Any:
        """llama.cpp's model, None if it cannot load it. Ctrl-C ends the loading. Raises MemoryError if there is none.

        In a thread of its own: in the main one Ctrl-C would be raised, and lost, in what llama.cpp calls back.
        """
        memory, stopped = NewMemory(), threading.Event()

        def goes_on(_progress: float, _data: object) -> bool:
            # first called once the memory is there, and before anything is read into it
            memory.ask_for_huge_pages()
            return not stopped.is_set()

        params.progress_callback = self._lib.llama_progress_callback(goes_on)
        with ThreadPoolExecutor(1) as pool:
            try:
                loading = pool.submit(self._lib.llama_model_load_from_file, os.fsencode(path), params)
            except RuntimeError:
                raise MemoryError("no memory for a thread") from None
            try:
                return loading.result()
            except BaseException:
                stopped.set()
                if handle := loading.result():
                    self._lib.llama_model_free(handle)
                raise

    def _declared(self, name: str, token: int, *, instead: int) -> int:
        """A special token, or `instead` where the file names none.

        llama.cpp takes token 11 of a byte-pair vocabulary then, a comma in most of them.
        """
        is_guess = self._lib.llama_vocab_type(self.vocabulary) == self._lib.LLAMA_VOCAB_TYPE_BPE
        named = f"tokenizer.ggml.{name}_token_id" in self.headers[0].metadata
        return token if named or not is_guess else instead

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
            raise ArtifactError(f"{path}: llama.cpp cannot lay it over {self.path.name}: {last_reason()}.")
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
            count = self._lib.llama_tokenize(self.vocabulary, data, len(data), tokens, room, add_special, parse_special)
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
            size = self._lib.llama_token_to_piece(self.vocabulary, token, buffer, room, 0, special)
            if size >= 0:
                return self._spelt(token, buffer.raw[:size])
            room = -size
        raise ArtifactError(f"{self.path}: token {token} has no text.")

    def _spelt(self, token: int, piece: bytes) -> bytes:
        """A piece whose letters stand for bytes. One with others in it stands for itself, as in Command R's emojis."""
        if NO_BYTE in piece and NO_BYTE not in (text := self.token_text(token).encode("utf-8", "surrogateescape")):
            return text
        return piece

    def token_text(self, token: int) -> str:
        """The token as the vocabulary stores it (byte-level letters, '▁' and the like)."""
        text: bytes = self._lib.llama_vocab_get_text(self.vocabulary, token)
        return text.decode("utf-8", "surrogateescape")

    def ends_generation(self, token: int) -> bool:
        """True for end of sequence, end of turn and their kin."""
        if token in self.end_tokens:
            return True
        guessed = token == self._lib.llama_vocab_eos(self.vocabulary) != self.eos
        return not guessed and bool(self._lib.llama_vocab_is_eog(self.vocabulary, token))

    def is_user_defined(self, token: int) -> bool:
        """True for tokens that llama.cpp finds in every text, also where special ones are not to be parsed."""
        return bool(self._lib.llama_vocab_get_attr(self.vocabulary, token) & USER_DEFINED)

    def is_control(self, token: int) -> bool:
        """True for tokens that steer and have no text of their own."""
        return bool(self._lib.llama_vocab_is_control(self.vocabulary, token))


def _without_lists(header: GgufHeader) -> GgufHeader:
    """The vocabulary takes tens of megabytes, and llama.cpp has it too."""
    short = {key: value for key, value in header.metadata.items() if not isinstance(value, list) or len(value) < 1024}
    return replace(header, metadata=short)
