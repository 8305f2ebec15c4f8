"""Encoder–decoder models (T5, Flan-T5, mT5, UMT5): the prompt is encoded at once, then the answer is decoded.

A context holds the output of one encoder run, so it serves one request at a time. Nothing here starts a thread or
prints. Another thread may call the context's `abort` to end an evaluation; after `resume` the next request can begin.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gladstone.errors import ArtifactError, ConfigError, DataError, UnsupportedError
from gladstone.gguf.header import how_to_replace
from gladstone.llamacpp.context import Context
from gladstone.llamacpp.model import Model
from runtime.errors import ContextFullError
from runtime.sampling.beam_search import Beams, BeamSearch, Hypothesis, Moves

ARCHITECTURE = "t5"  # llama.cpp's only encoder–decoder architecture, also used for mT5 and UMT5
LOGIT_SCALE = f"{ARCHITECTURE}.logit_scale"
Logits = npt.NDArray[np.float32]
StopReason = Literal["end", "length", "context", "cancelled"]


@dataclass(frozen=True)
class BeamAnswer:
    """The hypotheses, the best first, and why the best one stops.

    "end": the model ended it. "length": `max_tokens`. "context": the context is full. "cancelled": the search was
    cancelled; ended hypotheses come before running ones, and there are none if the prompt was not encoded yet.
    """

    hypotheses: tuple[Hypothesis, ...]
    stop_reason: StopReason
    steps: int  # evaluations of the decoder


class EncoderDecoder:
    """An encoder–decoder model on a context: `begin` with a prompt and `step` by token, or `search` with beams."""

    def __init__(self, context: Context) -> None:
        """Raises UnsupportedError for another kind of model, ArtifactError for one without a start token."""
        model = context.model
        self.scale = logit_scale(model)
        if model.decoder_start < 0:
            raise ArtifactError(
                f"{model.path}: the file does not name the decoder's start token. {how_to_replace(model.path)}"
            )
        self.context = context
        self.ends = tuple(dict.fromkeys(t for t in (model.eos, model.eot) if t >= 0 and model.ends_generation(t)))
        self.length = 0  # tokens that the decoder has evaluated, the start token included

    @property
    def room_tokens(self) -> int:
        """Tokens that a single answer can still get, including the one that the last logits predict."""
        return self.context.context_tokens - self.length + 1

    def begin(self, prompt: Sequence[int]) -> Logits | None:
        """Encode a prompt, to which `Model.add_bos_eos` added EOS; returns the logits (V,) of the first answer token.

        The logits are the view that `step` returns; None if the context was aborted. Raises DataError for an empty
        prompt, ContextFullError for one that is too long.
        """
        return self._begin(prompt, sequences=1)

    def step(self, token: int) -> Logits | None:
        """Logits (V,) float32 of the token after this one; None if the context was aborted.

        The array is a view of what llama.cpp's samplers read, valid until the next evaluation: a token set to -inf is
        forbidden to them. Raises ContextFullError if `room_tokens` is 1.
        """
        rows = self.extend([token])
        return None if rows is None else rows[0]

    def extend(self, tokens: Sequence[int]) -> Logits | None:
        """Logits (N, V) of the token after each of these N tokens, evaluated in one batch; otherwise as `step`."""
        count = len(tokens)
        if self.length + count > self.context.context_tokens:
            raise ContextFullError(
                f"an answer of {self.length + count:,} tokens does not fit the context of "
                f"{self.context.context_tokens:,} tokens. Take a larger context."
            )
        positions = np.arange(self.length, self.length + count)
        return self._evaluate(tokens, positions, np.zeros(count, dtype=np.int32))

    def search(
        self, prompt: Sequence[int], beams: Beams, max_tokens: int, cancelled: Callable[[], bool] = lambda: False
    ) -> BeamAnswer:
        """The best answers of at most `max_tokens` tokens, the end token included. `cancelled` is polled at every step.

        All beams are evaluated in one batch and share the cells of their common prefix. Raises what `begin` raises, and
        ConfigError if the context has fewer sequences than beams.
        """
        count = beams.count
        if count > self.context.sequences:
            raise ConfigError(f"{count} beams on a context of {self.context.sequences} sequences: open it with more.")
        # all beams share the start token; each of the others but the last may take a cell per beam
        room = (self.context.context_tokens - 1) // count + 1
        search = BeamSearch(beams, self.context.model.decoder_start, self.ends, min(max_tokens, room))
        sequences = _BeamSequences(self.context, count)
        steps = 0
        first = None if cancelled() else self._begin(prompt, count)
        logits = None if first is None else first[None]
        while logits is not None:
            steps += 1
            moves = search.step(logits)
            if search.finished or cancelled():
                break
            sequences.follow(moves, self.length)
            logits = self._evaluate(moves.tokens, np.full(search.running, self.length), sequences.of_beams)
        hypotheses = tuple(search.hypotheses) if steps else ()
        if not search.finished:
            return BeamAnswer(hypotheses, "cancelled", steps)
        at_limit: StopReason = "length" if max_tokens <= room else "context"
        return BeamAnswer(hypotheses, "end" if hypotheses[0].ended else at_limit, steps)

    def _begin(self, prompt: Sequence[int], sequences: int) -> Logits | None:
        limit = min(self.context.batch_tokens, self.context.context_tokens)
        if not len(prompt):
            raise DataError("the prompt is empty: there is nothing to answer.")
        if len(prompt) > limit:
            raise ContextFullError(
                f"the prompt of {len(prompt):,} tokens does not fit the context of {limit:,} tokens, and an encoder "
                f"cannot split it. Shorten the prompt, or set a larger context."
            )
        self.length = 0
        if not self.context.encode(prompt, sequences):
            return None
        return self.step(self.context.model.decoder_start)

    def _evaluate(self, tokens: Any, positions: Any, sequences: Any) -> Logits | None:
        count = len(tokens)
        if not self.context.evaluate(tokens, positions, sequences, np.ones(count, dtype=np.int8)):
            return None
        self.length = int(positions[-1]) + 1
        logits = self.context.all_logits(count)
        if not np.isfinite(logits[:, 0]).all():
            raise ArtifactError(
                f"{self.context.model.path}: the model's logits contain NaN or Inf: the file is damaged, or its 16-bit "
                "floats overflow. Export it as bf16, f32 or q8_0."
            )
        if self.scale != 1:
            logits *= np.float32(self.scale)
        return logits


class _BeamSequences:
    """The sequence of the context that holds each beam.

    The first beam that continues a parent stays in the parent's sequence; further ones share its cells in sequences
    whose beams ended. So no second set of sequences is needed, and most beams are not copied.
    """

    def __init__(self, context: Context, count: int) -> None:
        self._context = context
        self._all = range(count)
        self.of_beams: list[int] = [0]

    def follow(self, moves: Moves, length: int) -> None:
        """Give each of the next beams a sequence with its parent's `length` tokens."""
        sources = [self.of_beams[parent] for parent in moves.parents]
        free = [sequence for sequence in self._all if sequence not in sources]
        self.of_beams = []
        for source in sources:
            if source not in self.of_beams:
                self.of_beams.append(source)
                continue
            target = free.pop()
            self._context.forget(sequence=target)
            self._context.share(source, target, length)
            self.of_beams.append(target)


def logit_scale(model: Model) -> float:
    """The factor that turns llama.cpp's logits into the model's own.

    T5 of 2019 scales the input of its tied head by d_model ** -0.5, which llama.cpp omits; later models have an untied
    head and no scale. A file can declare the factor as `t5.logit_scale`. Raises UnsupportedError for another
    architecture.
    """
    headers = model.headers
    metadata = headers[0].metadata
    architecture = metadata["general.architecture"]
    if architecture != ARCHITECTURE:
        raise UnsupportedError(
            f"{model.path}: the architecture is {architecture!r}, expected one with an encoder and a decoder "
            f"({ARCHITECTURE})."
        )
    declared = metadata.get(LOGIT_SCALE)
    if declared is not None:
        if not isinstance(declared, float) or not 0 < declared <= 1:
            raise ArtifactError(f"{model.path}: {LOGIT_SCALE} is {declared!r}, expected more than 0, at most 1.")
        return declared
    has_head = any(tensor.name == "output.weight" for header in headers for tensor in header.tensors)
    return 1.0 if has_head else float(model.embedding_size**-0.5)
