"""Encoder–decoder models (T5, Flan-T5, mT5, UMT5): a text is read whole, then the answer is written token by token.

A context holds one encoder's output, so one request at a time. Nothing here starts a thread or prints. Another thread
may call the context's `abort` during an evaluation: what was asked then ends, and after `resume` the next can begin.
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

ARCHITECTURE = "t5"  # the one encoder–decoder architecture of llama.cpp; mT5 and UMT5 are written as it too
LOGIT_SCALE = f"{ARCHITECTURE}.logit_scale"
Logits = npt.NDArray[np.float32]
StopReason = Literal["end", "length", "context", "cancelled"]


@dataclass(frozen=True)
class BeamAnswer:
    """The hypotheses, the best first, and why that one stops where it does.

    "end": the model ended it. "length": `max_tokens`; "context": no room for more. "cancelled": it was given up; those
    that had ended come before those that still ran, and there is none if the prompt was not yet read.
    """

    hypotheses: tuple[Hypothesis, ...]
    stop_reason: StopReason
    steps: int  # evaluations of the decoder


class EncoderDecoder:
    """An encoder–decoder model on a context: begin with a prompt, then token by token; or search in beams."""

    def __init__(self, context: Context) -> None:
        """Raises UnsupportedError for a model of another kind, ArtifactError for one without a start token."""
        model = context.model
        self.scale = logit_scale(model)
        if model.decoder_start < 0:
            raise ArtifactError(
                f"{model.path}: it does not say with which token an answer begins. {how_to_replace(model.path)}"
            )
        self.context = context
        self.ends = tuple(dict.fromkeys(t for t in (model.eos, model.eot) if t >= 0 and model.ends_generation(t)))
        self.length = 0  # tokens that the decoder has read, the start token included

    @property
    def room_tokens(self) -> int:
        """Tokens that the answer can still get when one is written, the one that the last logits are for included."""
        return self.context.context_tokens - self.length + 1

    def begin(self, prompt: Sequence[int]) -> Logits | None:
        """Let the encoder read a prompt, as `Model.add_bos_eos` ends it; logits (V,) of the answer's first token.

        The same view as `step` gives. None if the context was aborted. Raises DataError for an empty prompt,
        ContextFullError for one that is too long.
        """
        return self._begin(prompt, sequences=1)

    def step(self, token: int) -> Logits | None:
        """Logits (V,) of the token after this one; None if the context was aborted.

        A view of what llama.cpp's samplers read, valid until the next evaluation: what is changed in it (a forbidden
        token set to -inf) counts for them. Raises ContextFullError if `room_tokens` is 1.
        """
        found = self.extend([token])
        return None if found is None else found[0]

    def extend(self, tokens: Sequence[int]) -> Logits | None:
        """Logits (N, V) of the tokens after each of these, evaluated together; else as `step`."""
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
        """The best answers of at most `max_tokens` tokens, the end included. `cancelled` is asked before every step.

        All beams are evaluated in one batch; they share what they have in common. Raises what `begin` raises, and
        ConfigError if the context has fewer sequences than there are beams.
        """
        count = beams.count
        if count > self.context.sequences:
            raise ConfigError(f"{count} beams on a context of {self.context.sequences} sequences: open it with more.")
        # the start token is evaluated once, each of the others but the last may differ from beam to beam
        room = (self.context.context_tokens - 1) // count + 1
        search = BeamSearch(beams, self.context.model.decoder_start, self.ends, min(max_tokens, room))
        bank = _Bank(self.context, count)
        steps = 0
        first = None if cancelled() else self._begin(prompt, count)
        logits = None if first is None else first[None]
        while logits is not None:
            steps += 1
            moves = search.step(logits)
            if search.finished or cancelled():
                break
            bank.follow(moves, self.length)
            logits = self._evaluate(moves.tokens, np.full(search.running, self.length), bank.slots)
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
                f"the prompt of {len(prompt):,} tokens does not fit the context of {limit:,} tokens, in which an "
                f"encoder reads it in one piece. Shorten it, or take a larger context."
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
                f"{self.context.model.path}: the model computes what is no number: the file is damaged, or its 16-bit "
                "floats overflow. Export it as bf16, f32 or q8_0."
            )
        if self.scale != 1:
            logits *= np.float32(self.scale)
        return logits


class _Bank:
    """Which sequence of the context holds each beam.

    The first beam that continues another stays in its sequence; only the others of the same parent are copied, into
    sequences of those that nobody continues. Then no second set of sequences is needed, nor a copy of most beams.
    """

    def __init__(self, context: Context, count: int) -> None:
        self._context = context
        self._all = range(count)
        self.slots: list[int] = [0]

    def follow(self, moves: Moves, length: int) -> None:
        """Bring the cache, of `length` tokens a beam, to where the moves go on from."""
        sources = [self.slots[parent] for parent in moves.parents]
        free = [slot for slot in self._all if slot not in sources]
        self.slots = []
        for source in sources:
            if source not in self.slots:
                self.slots.append(source)
                continue
            target = free.pop()
            self._context.forget(sequence=target)
            self._context.share(source, target, length)
            self.slots.append(target)


def logit_scale(model: Model) -> float:
    """What llama.cpp's logits are multiplied by to be the model's own.

    T5 of 2019 scales what the tied head reads by d_model ** -0.5, which llama.cpp leaves out; later ones have a head of
    their own and no scale. A file can say it as `t5.logit_scale`. Raises UnsupportedError for another architecture.
    """
    headers = model.headers
    metadata = headers[0].metadata
    architecture = metadata["general.architecture"]
    if architecture != ARCHITECTURE:
        raise UnsupportedError(
            f"{model.path}: a model of architecture {architecture!r}, expected one with an encoder and a decoder "
            f"({ARCHITECTURE})."
        )
    told = metadata.get(LOGIT_SCALE)
    if told is not None:
        if not isinstance(told, float) or not 0 < told <= 1:
            raise ArtifactError(f"{model.path}: {LOGIT_SCALE} is {told!r}, expected more than 0, at most 1.")
        return told
    has_head = any(tensor.name == "output.weight" for header in headers for tensor in header.tensors)
    return 1.0 if has_head else float(model.embedding_size**-0.5)
