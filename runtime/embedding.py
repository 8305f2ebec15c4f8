"""Embeddings of texts, from any GGUF that has them: BERT-like encoders, embedding decoders, chat models, T5."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gladstone.errors import ArtifactError, ConfigError, DataError, UnsupportedError
from gladstone.gguf.header import GgufHeader
from gladstone.gguf.types import Pooling
from gladstone.llamacpp.context import POOLINGS, Context
from gladstone.llamacpp.model import Model
from runtime.errors import ContextFullError

Vectors = npt.NDArray[np.float32]
CHOICES = ("mean", "cls", "last")
BATCH_TOKENS = 512  # larger batches are no faster: attention compares each token with all others of the batch
BATCH_TEXTS = 64


class Embedder:
    """A model that embeds texts. Close it, or use it in a `with` block; one thread at a time may use it.

    `pooling` combines the vectors of a text's tokens: their mean, the first ("cls") or the last one. None takes the
    file's setting, or the mean if it has none, as in files of chat models. `dimensions` is the length of a vector,
    `context_tokens` the most tokens of a text, by default the model's own limit. `gpu_layers` lie on the GPU.
    """

    def __init__(
        self,
        path: Path,
        *,
        pooling: str | None = None,
        context_tokens: int | None = None,
        threads: int | None = None,
        gpu_layers: int = 0,
    ) -> None:
        """Raises ArtifactError for a file that cannot be loaded, UnsupportedError for a reranker or a classifier,
        ConfigError for an unknown pooling or a context out of range.
        """
        if pooling is not None and pooling not in CHOICES:
            raise ConfigError(f"pooling is {pooling!r}, expected one of {', '.join(CHOICES)}.")
        self._threads = threads
        self._short: Context | None = None
        self._long: Context | None = None
        self._model = Model(path, gpu_layers=gpu_layers)
        try:
            self.pooling = pooling or _pooling(self._model.headers)
            self.context_tokens = _limit(self._model, context_tokens)
        except BaseException:
            self._model.close()
            raise
        self.dimensions = self._model.embedding_size
        self._batch_texts = BATCH_TEXTS if _can_batch(self._model) else 1

    def close(self) -> None:
        """Free the model. Closing twice is harmless."""
        for context in (self._short, self._long):
            if context:
                context.close()
        self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def embed(self, texts: Sequence[str], *, normalise: bool = True) -> Vectors:
        """Vectors (N, D) float32 of N texts, in their order, with Euclidean norm 1 unless `normalise` is False.

        Special tokens of the model are added around each text; text that spells one stays text. Raises ContextFullError
        for a text that is too long, DataError for an empty one if the model adds no special token.
        """
        tokens = [self._tokens(text, f"text {number} of {len(texts)}") for number, text in enumerate(texts, 1)]
        vectors = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for batch in _batches([len(text) for text in tokens], self._batch_texts):
            self._evaluate(tokens[batch], vectors[batch])
        if not np.isfinite(vectors).all():
            raise ArtifactError(f"{self._model.path}: its embeddings contain NaN or Inf: the weights are damaged.")
        if normalise:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return vectors

    def _tokens(self, text: str, which: str) -> list[int]:
        tokens = self._model.tokenize(text, add_special=True)
        if not tokens:
            raise DataError(f"{which} is empty, and {self._model.path.name} adds no special token to it: leave it out.")
        if len(tokens) > self.context_tokens:
            raise ContextFullError(
                f"{which} has {len(tokens):,} tokens, at most {self.context_tokens:,} can be read: split it."
            )
        return tokens

    def _context_for(self, tokens: int) -> Context:
        """The context for a text, which depends on its length only, since the contexts round differently.

        A text must be evaluated in one batch, and llama.cpp computes logits of each token too: the memory of the long
        context grows with the longest text so far.
        """
        if tokens <= BATCH_TOKENS:
            # flash attention rounds to 16 bits, and differently if other texts precede in the batch
            self._short = self._short or self._open(BATCH_TOKENS, cache_type="f32", flash_attention=False)
            return self._short
        if self._long is None or self._long.batch_tokens < tokens:
            if self._long:
                self._long.close()
                self._long = None  # there may be too little memory for the next one
            self._long = self._open(min(1 << (tokens - 1).bit_length(), self.context_tokens))
        return self._long

    def _open(self, tokens: int, **options: Any) -> Context:
        texts = self._batch_texts
        return Context(self._model, tokens, sequences=texts, threads=self._threads, pooling=self.pooling, **options)

    def _evaluate(self, texts: list[list[int]], vectors: Vectors) -> None:
        """Fill in the vectors (N, D) of N texts."""
        lengths = [len(text) for text in texts]
        context = self._context_for(sum(lengths))
        if self._model.has_encoder:
            context.encode(texts[0])
        else:
            context.clear()
            positions = np.concatenate([np.arange(length) for length in lengths])
            owners = np.repeat(np.arange(len(texts)), lengths)
            context.evaluate(np.concatenate(texts), positions, owners, np.ones(len(positions), dtype=np.int8))
        for sequence in range(len(texts)):
            vectors[sequence] = context.embedding(sequence=sequence)


def _can_batch(model: Model) -> bool:
    """Whether the vector of a text is the same, within 1e-4, whatever other texts are in its batch.

    With weights of 16 bits or fewer, rounding depends on the preceding texts, and vectors differed by up to 0.007.
    Evaluating texts one by one takes a quarter more time at 10 tokens and none from 30 tokens on. Encoders and
    recurrent models evaluate one text at a time anyway.
    """
    weights = (tensor for header in model.headers for tensor in header.tensors if len(tensor.shape) > 1)
    return model.can_truncate and not model.has_encoder and all(tensor.type_name == "F32" for tensor in weights)


def _batches(lengths: Sequence[int], most_texts: int) -> Iterator[slice]:
    """Slices of neighbouring texts for one batch each; a text longer than a batch is alone."""
    begin = tokens = 0
    for index, length in enumerate(lengths):
        if index > begin and (tokens + length > BATCH_TOKENS or index - begin == most_texts):
            yield slice(begin, index)
            begin, tokens = index, 0
        tokens += length
    if begin < len(lengths):
        yield slice(begin, len(lengths))


def _pooling(headers: Sequence[GgufHeader]) -> str:
    """The pooling that the file declares, or "mean". Raises UnsupportedError for rerankers and classifiers."""
    metadata, path = headers[0].metadata, headers[0].path
    architecture = metadata["general.architecture"]
    number = metadata.get(f"{architecture}.pooling_type")
    names = {tensor.name for header in headers for tensor in header.tensors}
    # ModernBERT's masked language models have `cls.weight` too, but no classes
    is_classifier = "cls.output.weight" in names or ("cls.weight" in names and architecture != "modern-bert")
    if number == Pooling.RANK or is_classifier:
        what = "a reranker, which returns scores" if number == Pooling.RANK else "a classifier, which returns classes"
        raise UnsupportedError(f"{path}: the model is {what}, not embeddings. Use an embedding model.")
    return next((name for name in CHOICES if POOLINGS[name] == number), "mean")


def _limit(model: Model, wanted: int | None) -> int:
    """The most tokens of a text. Raises ConfigError above the model's limit, where llama.cpp ends the process."""
    if wanted is None:
        return model.context_tokens
    if not 0 < wanted <= model.context_tokens:
        raise ConfigError(
            f"context_tokens is {wanted:,}; {model.path.name} reads 1 to {model.context_tokens:,} tokens."
        )
    return wanted
