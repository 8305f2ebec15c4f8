"""llama.cpp's context: the KV cache of a model and the evaluation of batches, through the low-level API.

A failed GGML_ASSERT ends the process, so sizes are checked here before each call.
"""

import ctypes
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gladstone.errors import UnsupportedError
from gladstone.gguf.types import Pooling
from gladstone.llamacpp.library import clear_log, failure_reason, library, log_tail
from gladstone.llamacpp.model import Model
from gladstone.machine.host import core_count
from gladstone.machine.openmp import adapt_to_other_work
from gladstone.machine.thread_placement import place_threads
from gladstone.machine.thread_tuner import ThreadTuner, make_thread_tuner

Ints = Sequence[int] | npt.NDArray[np.integer[Any]]
AnyArray = npt.NDArray[Any]
CACHE_TYPES = {
    "f32": 0,
    "f16": 1,
    "q8_0": 8,
    "q5_1": 7,
    "q5_0": 6,
    "q4_1": 3,
    "q4_0": 2,
    "bf16": 30,
}  # ggml.h's numbers
BATCH_TOKENS = 512
# with more cells in use, llama.cpp's flash attention splits them among the threads for a single token and adds up the
# partial results: the thread count then changes the last bits
UNDIVIDED_CELLS = 256
POOLINGS = {
    "model": Pooling.UNSPECIFIED, "none": Pooling.NONE, "mean": Pooling.MEAN, "cls": Pooling.CLS, "last": Pooling.LAST,
}  # fmt: skip


class Context:
    """The evaluation state of a model: the KV cache of its sequences and the outputs of the last batch.

    Not thread-safe, except for `abort`, which any thread may call.
    """

    def __init__(  # noqa: PLR0913 - one parameter for each of llama.cpp's
        self,
        model: Model,
        context_tokens: int,
        *,
        batch_tokens: int | None = None,
        sequences: int = 1,
        threads: int | None = None,
        prefill_threads: int | None = None,
        cache_type: str = "f16",
        flash_attention: bool | None = None,
        kv_offload: bool = True,
        outputs: int | None = None,
        pooling: str | None = None,
        watch: Any = None,
    ) -> None:
        """All `sequences` share `context_tokens`; a batch holds 512 tokens by default.

        At most `outputs` tokens of a batch may have logits; the default, all, takes more memory. `watch` is a callback
        before and after each operation. With `pooling` ("model", "none", "mean", "cls" or "last") the context computes
        embeddings instead of logits. `flash_attention` None lets llama.cpp choose. With `kv_offload` the cache of a
        layer lies where the layer does, else all of it in CPU memory. Without `threads` the thread count adapts while
        it computes, see `adapt`. Raises UnsupportedError if there is not enough memory.
        """
        self.model = model
        self._lib = library()
        adapt_to_other_work()
        params = self._lib.llama_context_default_params()
        params.n_ctx = context_tokens
        # an encoder takes its input in one batch, since every token attends to every other
        whole = context_tokens if model.has_encoder or pooling is not None else BATCH_TOKENS
        params.n_batch = params.n_ubatch = min(batch_tokens or whole, context_tokens)
        params.n_seq_max, params.n_outputs_max = sequences, outputs or 0
        params.kv_unified = sequences > 1  # llama.cpp aborts when part of a separate cache is copied
        params.n_threads = threads or core_count()
        params.n_threads_batch = prefill_threads or threads or core_count()
        params.type_k = params.type_v = CACHE_TYPES[cache_type]
        if flash_attention is not None:
            params.flash_attn_type = int(flash_attention)
        params.offload_kqv = kv_offload
        params.no_perf = True
        if pooling is not None:
            params.embeddings, params.pooling_type = True, POOLINGS[pooling]
        if watch is not None:
            params.cb_eval = watch
        self._stop = ctypes.create_string_buffer(2)
        self.handle = self._allocate(params)
        self._scales: tuple[float, ...] = ()
        self.set_adapters([scale for _, scale in model.loras])
        self.context_tokens: int = self._lib.llama_n_ctx(self.handle)
        self.batch_tokens: int = self._lib.llama_n_batch(self.handle)
        self.sequences = sequences
        self._memory = self._lib.llama_get_memory(self.handle)
        self._batch = _Batch(self._lib, self.batch_tokens, sequences)
        self._threads = (params.n_threads, params.n_threads_batch)
        self._thread_tuner: ThreadTuner | None = (
            make_thread_tuner() if threads is None and not model.gpu_layers else None
        )
        self._divides = flash_attention is not False and cache_type in ("f16", "f32")
        self._encoded, self._cells = False, 0  # `_cells`: upper bound of the cells in use
        self._outputs_at = _logits_address(self._lib)
        self._rows_at: int | None = None
        self._rows = np.zeros((0, model.vocab_size), np.float32)  # view (N, V) of llama.cpp's outputs

    def _allocate(self, params: Any) -> Any:
        """llama.cpp's context, which `abort` can stop. Raises UnsupportedError if there is not enough memory."""
        # strlen of a text whose first byte is 0 is 0: an abort callback that needs no Python, which llama.cpp would
        # otherwise call before each of a thousand operations
        params.abort_callback = ctypes.cast(_strlen(), type(params.abort_callback))
        params.abort_callback_data = ctypes.cast(self._stop, ctypes.c_void_p)
        clear_log()
        handle = self._lib.llama_init_from_model(self.model.handle, params)
        if not handle:
            raise UnsupportedError(f"no memory for a context of {params.n_ctx} tokens: {failure_reason()}.")
        return handle

    def set_adapters(self, scales: Sequence[float]) -> None:
        """Set the scale of each of the model's adapters; a scale of 0 leaves the adapter out.

        Cached tokens keep the values computed with the earlier scales. Raises UnsupportedError if llama.cpp refuses.
        """
        if scales is self._scales or tuple(scales) == self._scales:
            return
        used = [(handle, scale) for (handle, _), scale in zip(self.model.loras, scales, strict=True) if scale]
        handles = (self._lib.llama_adapter_lora_p_ctypes * len(used))(*(handle for handle, _ in used))
        scales_used = (ctypes.c_float * len(used))(*(scale for _, scale in used))
        if self._lib.llama_set_adapters_lora(self.handle, handles, len(used), scales_used) != 0:
            self.close()
            raise UnsupportedError(f"llama.cpp cannot use these adapters.\n{log_tail()}")
        self._scales = tuple(scales)

    def close(self) -> None:
        """Free the context (before its model). Closing twice is harmless."""
        if self.handle:
            self._lib.llama_free(self.handle)
            self.handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def decode(self, tokens: Sequence[int], start: int, *, sequence: int = 0, all_logits: bool = False) -> None:
        """Evaluate at most `batch_tokens` tokens at positions `start`, `start`+1, …; logits of the last, or of all.

        Raises ValueError for sizes on which llama.cpp would abort and if an encoder has no input yet, UnsupportedError
        if llama.cpp fails.
        """
        count = len(tokens)
        wanted = np.full(count, all_logits)
        wanted[-1:] = True
        self.evaluate(tokens, np.arange(start, start + count), np.full(count, sequence), wanted)

    def evaluate(self, tokens: Ints, positions: Ints, sequences: Ints, wanted: Sequence[bool] | AnyArray) -> bool:
        """Evaluate `tokens` (N,), N at most `batch_tokens`, at `positions` (N,) of `sequences` (N,).

        `wanted` (N,) marks the tokens with outputs. Returns False if `abort` was called meanwhile: the cache may then
        hold some of the tokens, and the caller must cut it back. Raises ValueError for sizes on which llama.cpp would
        abort and if an encoder has no input yet, UnsupportedError if llama.cpp fails.
        """
        if self.model.has_encoder and not self._encoded:
            raise ValueError("the encoder has no input: call encode() first")
        if len(tokens) == 1:
            self._check(1, tokens[0], tokens[0], positions[0], positions[0])
            self._batch.fill_one(tokens[0], positions[0], sequences[0], wanted[0])
        else:
            tokens, positions = np.asarray(tokens), np.asarray(positions)
            self._check_all(tokens, positions)
            self._batch.fill(tokens, positions, sequences, wanted)
        self._cells += len(tokens)
        code = self._compute(self._lib.llama_decode, len(tokens))
        if code == 2:
            return False
        if code != 0:
            raise UnsupportedError(f"llama.cpp could not evaluate {len(tokens)} tokens (code {code}).\n{log_tail()}")
        return True

    def encode(self, tokens: Ints, sequences: int = 1) -> bool:
        """Run the encoder of an encoder–decoder model on `tokens` (N,); all sequences are cleared first.

        The first `sequences` sequences can decode from it. Returns False if `abort` was called meanwhile. Raises
        ValueError for sizes on which llama.cpp would abort, UnsupportedError if llama.cpp fails.
        """
        self._lib.llama_memory_clear(self._memory, True)
        count = len(tokens)
        self._check_all(np.asarray(tokens), np.arange(count))
        self._batch.fill(tokens, np.arange(count), np.zeros(count, dtype=np.int32), np.ones(count, dtype=np.int8))
        self._batch.share(count, sequences)
        code = self._compute(self._lib.llama_encode, count)
        if code == 2:
            return False
        if code != 0:
            raise UnsupportedError(f"llama.cpp could not encode {count} tokens (code {code}).\n{log_tail()}")
        self._encoded = True
        return True

    def _compute(self, call: Any, tokens: int) -> int:
        """Evaluate the batch with the fastest thread count; returns llama.cpp's code."""
        tuner = self._thread_tuner
        if tuner is None:
            return int(call(self.handle, self._batch.struct))
        divides = tokens == 1 and self._divides and self._cells > UNDIVIDED_CELLS
        threads = tuner.threads(tokens, divides=divides)
        one, more = self._threads
        if threads != (one if tokens == 1 else more):
            self._set_threads(*((threads, more) if tokens == 1 else (one, threads)))
        begin_s = time.perf_counter()
        if tuner.is_placement(threads):
            with place_threads(threads):
                code = int(call(self.handle, self._batch.struct))
        else:
            code = int(call(self.handle, self._batch.struct))
        end_s = time.perf_counter()
        if code == 0:
            tuner.record(tokens, end_s - begin_s, end_s)
        return code

    def _check_all(self, tokens: AnyArray, positions: AnyArray) -> None:
        least = (tokens.min(), positions.min()) if len(tokens) else (0, 0)
        most = (tokens.max(), positions.max()) if len(tokens) else (0, 0)
        self._check(len(tokens), least[0], most[0], least[1], most[1])

    def _check(self, count: int, least_token: int, most_token: int, first: int, last: int) -> None:
        if not 0 < count <= self.batch_tokens:
            raise ValueError(f"a batch holds 1 to {self.batch_tokens} tokens, not {count}")
        if first < 0 or last >= self.context_tokens:
            raise ValueError(f"positions {first} to {last + 1} do not fit a context of {self.context_tokens}")
        if least_token < 0 or most_token >= self.model.vocab_size:
            raise ValueError("a token id is outside the vocabulary")

    def abort(self) -> None:
        """Stop the evaluation that another thread is running, and every later one, until `resume`."""
        self._stop[0] = b"\x01"

    def resume(self) -> None:
        """Allow evaluations again after `abort`."""
        self._stop[0] = b"\x00"

    def use_threads(self, threads: int, prefill_threads: int) -> None:
        """Fix the thread counts: `threads` for single tokens, `prefill_threads` for batches."""
        self._thread_tuner = None
        self._set_threads(threads, prefill_threads)

    def adapt(self, tuner: ThreadTuner) -> None:
        """Adapt the thread count to the measured speed; does nothing if a GPU computes.

        Results stay the same to the last bit, except for single tokens after more than 256 others: see
        `InitialThreads.keep_initial`.
        """
        if not self.model.gpu_layers:
            self._thread_tuner = tuner

    @property
    def thread_tuner(self) -> ThreadTuner | None:
        """The object that chooses the thread count; None if the count is fixed."""
        return self._thread_tuner

    def _set_threads(self, threads: int, prefill_threads: int) -> None:
        self._threads = threads, prefill_threads
        self._lib.llama_set_n_threads(self.handle, threads, prefill_threads)

    def logits(self, index: int = -1) -> npt.NDArray[np.float32]:
        """Logits (V,) float32 of the batch's token `index`: a view that the next evaluation overwrites.

        Raises ValueError if the token has none.
        """
        pointer = self._lib.llama_get_logits_ith(self.handle, index)
        if not pointer:
            raise ValueError(f"the batch has no logits of token {index}")
        return np.ctypeslib.as_array(pointer, shape=(self.model.vocab_size,))

    def all_logits(self, count: int) -> npt.NDArray[np.float32]:
        """Logits (count, V) float32 of the batch's wanted tokens in order: a view that the next batch overwrites."""
        address = self._outputs_at(self.handle)
        if address != self._rows_at or len(self._rows) < count:
            pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
            self._rows = np.ctypeslib.as_array(pointer, shape=(count, self.model.vocab_size))
            self._rows_at = address
        return self._rows[:count]

    def embedding(self, index: int = -1, *, sequence: int | None = None) -> npt.NDArray[np.float32]:
        """Embedding (D,) float32 of the batch's token `index`, or of a whole sequence: a view, like `logits`.

        Raises ValueError if there is none.
        """
        if sequence is None:
            pointer = self._lib.llama_get_embeddings_ith(self.handle, index)
        else:
            pointer = self._lib.llama_get_embeddings_seq(self.handle, sequence)
        if not pointer:
            raise ValueError("the batch has no embedding of it")
        return np.ctypeslib.as_array(pointer, shape=(self.model.embedding_size,))

    def forget(self, start: int = 0, *, sequence: int = 0) -> None:
        """Remove a sequence's tokens from position `start` on from the cache.

        Raises UnsupportedError if a recurrent model's state would have to be cut back: the sequence is then empty.
        """
        if self.sequences == 1:
            self._cells = min(self._cells, start)
        if not self._lib.llama_memory_seq_rm(self._memory, sequence, start, -1):
            self._lib.llama_memory_seq_rm(self._memory, sequence, 0, -1)  # recurrent models cannot remove a part
            if start:
                raise UnsupportedError("this model's state cannot be truncated: start the sequence again")

    def share(self, source: int, target: int, count: int) -> None:
        """Copy the first `count` tokens of sequence `source` to the empty sequence `target`; both share the cells."""
        self._lib.llama_memory_seq_cp(self._memory, source, target, 0, count)

    def clear(self) -> None:
        """Remove all sequences from the cache."""
        self._cells = 0
        self._lib.llama_memory_clear(self._memory, False)


class _Batch:
    """llama.cpp's batch struct over numpy arrays, filled without a loop over tokens."""

    def __init__(self, lib: Any, tokens: int, sequences: int) -> None:
        self._arrays: dict[str, AnyArray] = {
            "token": np.zeros(tokens, np.int32),
            "pos": np.zeros(tokens, np.int32),
            "n_seq_id": np.ones(tokens, np.int32),
            "logits": np.zeros(tokens, np.int8),
        }
        self._sequences = np.zeros((tokens, sequences), np.int32)
        rows = self._sequences.ctypes.data + self._sequences.strides[0] * np.arange(tokens + 1, dtype=np.uintp)
        rows[-1] = 0
        self._rows = rows
        self.struct = lib.llama_batch()
        for name, array in self._arrays.items():
            setattr(self.struct, name, array.ctypes.data_as(_field_type(lib.llama_batch, name)))
        self.struct.seq_id = rows.ctypes.data_as(_field_type(lib.llama_batch, "seq_id"))

    def fill(self, tokens: Ints, positions: Ints, sequences: Ints, wanted: Sequence[bool] | AnyArray) -> None:
        count = len(tokens)
        self.struct.n_tokens = count
        self._arrays["token"][:count] = tokens
        self._arrays["pos"][:count] = positions
        self._arrays["logits"][:count] = wanted
        self._arrays["n_seq_id"][:count] = 1
        self._sequences[:count, 0] = sequences

    def fill_one(self, token: int, position: int, sequence: int, wanted: bool) -> None:
        struct = self.struct
        struct.n_tokens = 1
        struct.token[0], struct.pos[0], struct.logits[0] = token, position, bool(wanted)
        struct.n_seq_id[0] = 1
        struct.seq_id[0][0] = sequence

    def share(self, count: int, sequences: int) -> None:
        """Assign the first `count` tokens to each of the first `sequences` sequences."""
        self._arrays["n_seq_id"][:count] = sequences
        self._sequences[:count, :sequences] = np.arange(sequences)


def _field_type(structure: Any, name: str) -> Any:
    return next(kind for field, kind in structure._fields_ if field == name)


def _logits_address(lib: Any) -> Any:
    """llama_get_logits with an integer as its result: creating a pointer object for each token is slow."""
    return ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(("llama_get_logits", lib._lib))


def _strlen() -> Any:
    return (ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)).strlen
