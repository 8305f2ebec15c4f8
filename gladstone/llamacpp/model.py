"""A model and its vocabulary, through llama-cpp-python's low-level API.

The high-level class is not used: its detokenizer takes quadratic time, drops tokens of more than 32 bytes and hangs on
invalid UTF-8. A failed GGML_ASSERT ends the process, so sizes are checked here before each call.
"""

import ctypes
import os
import threading
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gladstone.errors import ArtifactError, GladstoneError, UnsupportedError
from gladstone.gguf.header import NFC_KEY, GgufHeader, read_model, usable_context
from gladstone.llamacpp.devices import device_list
from gladstone.llamacpp.library import clear_log, failure_reason, lacks_memory, library
from gladstone.llamacpp.lora import Lora, check_lora
from gladstone.machine.huge_pages import NewAllocations

USER_DEFINED = 1 << 4  # llama.h's LLAMA_TOKEN_ATTR_USER_DEFINED
UNKNOWN_BYTE = b"[UNK_BYTE_0x"  # llama.cpp's text for a character that maps to no byte


class Model:
    """A loaded GGUF model: weights and vocabulary. Close it or use it in a `with` block: it maps the whole file."""

    def __init__(  # noqa: PLR0913 - as of `Context`, one for each of llama.cpp's
        self,
        path: Path,
        *,
        vocab_only: bool = False,
        mapped: bool = True,
        gpu_layers: int = 0,
        tensor_split: Sequence[int] = (),
        devices: Sequence[str] = (),
        loras: Sequence[Lora] = (),
        headers: Sequence[GgufHeader] | None = None,
    ) -> None:
        """Load the model and its adapters `loras`.

        `tensor_split` is the share of the layers for each of the GPUs `devices`, by llama.cpp's names; without names
        llama.cpp chooses. Without `gpu_layers` no GPU is used at all, not even for long prompts.

        `headers` are the file's headers if the caller has read them: with a large vocabulary that takes half a second.
        The weights are `mapped` from the file, or else read into anonymous memory, which can use huge pages.

        Raises ArtifactError if a header is damaged or llama.cpp cannot load a file, UnsupportedError for an
        architecture or adapter that llama.cpp does not support and for too little memory, MemoryError if there is none
        for a thread.
        """
        headers = headers or read_model(path)
        for lora in loras:
            check_lora(lora.path, headers)
        self.headers = tuple(map(_without_vocabulary, headers))
        self.path = path
        self.gpu_layers = gpu_layers
        self._lib = library()
        params = self._lib.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = gpu_layers
        split = (ctypes.c_float * self._lib.llama_max_devices())(*tensor_split)
        if any(tensor_split):
            params.tensor_split = split
        chosen = device_list(devices if gpu_layers else ())
        if devices or not gpu_layers:
            params.devices = ctypes.addressof(chosen)
        if not mapped:
            params.load_mode = self._lib.LLAMA_LOAD_MODE_NONE
        clear_log()
        self.handle = self._load_weights(path, params)
        if not self.handle:
            raise self._refusal(path)
        self.vocabulary = self._lib.llama_model_get_vocab(self.handle)
        if self._lib.llama_vocab_type(self.vocabulary) == self._lib.LLAMA_VOCAB_TYPE_NONE:  # any tokenizing would abort
            self.close()
            raise ArtifactError(f"{path}: the file has no vocabulary, so the model cannot read text.")
        self.vocab_size: int = self._lib.llama_vocab_n_tokens(self.vocabulary)
        self.context_tokens = usable_context(headers)
        self.eot: int = self._lib.llama_vocab_eot(self.vocabulary)
        self.bos: int = self._special_token("bos", self._lib.llama_vocab_bos(self.vocabulary), instead=-1)
        self.eos: int = self._special_token("eos", self._lib.llama_vocab_eos(self.vocabulary), instead=self.eot)
        self.end_tokens: set[int] = set()  # tokens that end a turn by the chat template, beyond the vocabulary's own
        self.pad: int = self._lib.llama_vocab_pad(self.vocabulary)
        self.adds_bos: bool = self._lib.llama_vocab_get_add_bos(self.vocabulary)
        self.has_encoder: bool = self._lib.llama_model_has_encoder(self.handle)
        self.adds_eos: bool = self._lib.llama_vocab_get_add_eos(self.vocabulary)
        self.decoder_start: int = self._lib.llama_model_decoder_start_token(self.handle)
        self.embedding_size: int = self._lib.llama_model_n_embd_out(self.handle)
        # a recurrent state cannot be rolled back to an earlier token
        self.can_truncate: bool = not (
            self._lib.llama_model_is_recurrent(self.handle) or self._lib.llama_model_is_hybrid(self.handle)
        )
        self.normalizes_nfc: bool = self._metadata(NFC_KEY) == "true"
        self.loras = [(self._load_adapter(lora.path), lora.scale) for lora in loras]

    def _load_weights(self, path: Path, params: Any) -> Any:
        """llama.cpp's model, None if it cannot load it. Ctrl-C stops the loading. Raises MemoryError without a thread.

        Runs in its own thread: in the main thread Ctrl-C would be raised, and lost, in llama.cpp's callback.
        """
        memory, stopped = NewAllocations(), threading.Event()

        def goes_on(_progress: float, _data: object) -> bool:
            # the first call comes after the allocation and before the first read
            memory.request_huge_pages()
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

    def _special_token(self, name: str, token: int, *, instead: int) -> int:
        """A special token, or `instead` if the file names none: llama.cpp guesses token 11 of a BPE vocabulary then.

        In most vocabularies that is a comma.
        """
        is_guess = self._lib.llama_vocab_type(self.vocabulary) == self._lib.LLAMA_VOCAB_TYPE_BPE
        named = f"tokenizer.ggml.{name}_token_id" in self.headers[0].metadata
        return token if named or not is_guess else instead

    def _metadata(self, key: str) -> str:
        """A short metadata value as llama.cpp formats it; '' if there is none."""
        buffer = ctypes.create_string_buffer(64)
        size = self._lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if size >= 0 else ""

    def _load_adapter(self, path: Path) -> Any:
        """Load an adapter; llama.cpp frees it with the model."""
        clear_log()
        handle = self._lib.llama_adapter_lora_init(self.handle, os.fsencode(path))
        if not handle:
            error = self._refusal(path, f" for {self.path.name}")
            self.close()
            raise error
        return handle

    def _refusal(self, path: Path, whose: str = "") -> GladstoneError:
        """Why llama.cpp did not load a file: the file is damaged, or memory is too small for it."""
        if not lacks_memory():
            return ArtifactError(f"{path}: llama.cpp cannot load it{whose}: {failure_reason()}.")
        less = " Put fewer layers on the GPU (--gpu-layers), or take a smaller quantisation." if self.gpu_layers else ""
        return UnsupportedError(f"{path}: not enough memory to load it{whose}: {failure_reason()}.{less}")

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
        """Tokenize a text. `parse_special` turns the text of special tokens into the tokens: never use it on user text.

        The text is normalized (NFC) first if the file says that its tokenizer does so: llama.cpp itself never does.
        Raises ArtifactError if the vocabulary cannot represent the text.
        """
        if self.normalizes_nfc and not text.isascii():
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

    def add_bos_eos(self, tokens: list[int]) -> list[int]:
        """Add BOS to a prompt if the vocabulary asks for it and the template did not write it; EOS for an encoder."""
        if self.adds_bos and self.bos >= 0 and tokens[:1] != [self.bos]:
            tokens = [self.bos, *tokens]
        if self.has_encoder and self.adds_eos and tokens[-1:] != [self.eos]:
            tokens = [*tokens, self.eos]
        return tokens

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of a token, of any length; empty for a special token unless `special` is set.

        Raises ArtifactError if the token has no text.
        """
        room = 64
        for _ in range(2):
            buffer = ctypes.create_string_buffer(room)
            size = self._lib.llama_token_to_piece(self.vocabulary, token, buffer, room, 0, special)
            if size >= 0:
                return self._decode_piece(token, buffer.raw[:size])
            room = -size
        raise ArtifactError(f"{self.path}: token {token} has no text.")

    def _decode_piece(self, token: int, piece: bytes) -> bytes:
        """The piece, or the token's own text if it has characters that map to no byte (Command R's emojis)."""
        if UNKNOWN_BYTE in piece and UNKNOWN_BYTE not in (
            text := self.token_text(token).encode("utf-8", "surrogateescape")
        ):
            return text
        return piece

    def token_text(self, token: int) -> str:
        """The token as the vocabulary stores it (byte-level characters, '▁' and so on)."""
        text: bytes = self._lib.llama_vocab_get_text(self.vocabulary, token)
        return text.decode("utf-8", "surrogateescape")

    def ends_generation(self, token: int) -> bool:
        """True for end of sequence, end of turn and other tokens that end generation."""
        if token in self.end_tokens:
            return True
        guessed = token == self._lib.llama_vocab_eos(self.vocabulary) != self.eos
        return not guessed and bool(self._lib.llama_vocab_is_eog(self.vocabulary, token))

    def is_user_defined(self, token: int) -> bool:
        """True for tokens that llama.cpp recognises in any text, even without `parse_special`."""
        return bool(self._lib.llama_vocab_get_attr(self.vocabulary, token) & USER_DEFINED)

    def is_control(self, token: int) -> bool:
        """True for control tokens, which have no text."""
        return bool(self._lib.llama_vocab_is_control(self.vocabulary, token))


def _without_vocabulary(header: GgufHeader) -> GgufHeader:
    """The header without its vocabulary, which takes tens of megabytes and which llama.cpp holds too."""
    short = {key: value for key, value in header.metadata.items() if not isinstance(value, list) or len(value) < 1024}
    return replace(header, metadata=short)
