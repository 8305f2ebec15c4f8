"""Evaluates many texts with llama.cpp: several sequences in a batch, their shared prefix only once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from gladstone.commands.progress import Progress
from gladstone.llamacpp.context import Context
from gladstone.llamacpp.model import Model

CONTEXT_TOKENS = 1024  # the longest text
WAVE_TOKENS = 1536  # tokens of all texts of a wave
SEQUENCES = 16
WAVE_BYTES = 512 << 20  # of logits in a wave
Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Text:
    """Tokens to evaluate, the index at which the answer begins, and the encoder's tokens if there is an encoder."""

    tokens: list[int]
    answer_at: int
    encoded: list[int] | None = None


@dataclass(frozen=True)
class Batch:
    """Token ids, positions, sequences and text numbers, each (N,) int64; text -1 is the shared prefix."""

    tokens: Ids
    positions: Ids
    sequences: Ids
    texts: Ids


@dataclass(frozen=True)
class Wave:
    """Text numbers that share the KV cache, and the batches that evaluate them.

    `prompts` and `answers` split the same tokens: answers use sequences of their own, so that another answer can follow
    each prompt.
    """

    texts: tuple[int, ...]
    batches: tuple[Batch, ...]
    prompts: tuple[Batch, ...] = ()
    answers: tuple[Batch, ...] = ()
    encoded: list[int] | None = None

    @property
    def sequences(self) -> tuple[int, ...]:
        """The sequence of each text; sequence 0 holds the shared prefix, or the encoder's output."""
        return tuple(range(1, len(self.texts) + 1)) if self.encoded is None else (0,)

    @property
    def branches(self) -> tuple[int, ...]:
        """The sequence of each text's answer."""
        return tuple(range(len(self.texts) + 1, 2 * len(self.texts) + 1)) if self.encoded is None else (1,)


@dataclass(frozen=True)
class Plan:
    """The order of evaluation: the shared prefix, then one wave after another."""

    opening: Wave
    waves: tuple[Wave, ...]

    @property
    def shared(self) -> int:
        """Tokens of the shared prefix."""
        return sum(len(batch.tokens) for batch in self.opening.batches)

    @property
    def cells(self) -> int:
        """KV cache cells that the plan needs."""
        return self.shared + max(sum(len(batch.tokens) for batch in wave.batches) for wave in self.waves)

    @property
    def read(self) -> int:
        """Total number of tokens."""
        return sum(len(batch.tokens) for wave in (self.opening, *self.waves) for batch in wave.batches)


def plan_reading(texts: Sequence[Text], batch_tokens: int, room: int = 0, most: int = WAVE_TOKENS) -> Plan:
    """Group texts into waves of up to 16 texts and `most` tokens, each text with `room` tokens for another answer."""
    apart = any(text.encoded is not None for text in texts)
    shared = 0 if apart or len(texts) < 2 else _shared(texts)
    opening = Wave((), tuple(_batches([(0, -1, (0, shared))], texts, batch_tokens)))
    sizes = [text.answer_at - shared + max(len(text.tokens) - text.answer_at, room) for text in texts]
    waves = []
    for group in _groups(sizes, 1 if apart else SEQUENCES, most):
        wave = Wave(group, (), encoded=texts[group[0]].encoded)
        edges = [(shared, texts[each].answer_at, len(texts[each].tokens)) for each in group]
        cut = (
            [(slot, each, (at[first], at[last])) for slot, each, at in zip(slots, group, edges, strict=True)]
            for slots, first, last in ((wave.sequences, 0, 2), (wave.sequences, 0, 1), (wave.branches, 1, 2))
        )
        whole, prompts, answers = (tuple(_batches(parts, texts, batch_tokens)) for parts in cut)
        waves.append(replace(wave, batches=whole, prompts=prompts, answers=answers))
    return Plan(opening, tuple(waves))


def _shared(texts: Sequence[Text]) -> int:
    """Length of the longest common prefix; each text keeps at least one prompt token."""
    most = min(text.answer_at for text in texts) - 1
    columns = zip(*(text.tokens[:most] for text in texts), strict=True)
    return next((place for place, column in enumerate(columns) if len(set(column)) > 1), max(most, 0))


def _groups(sizes: Sequence[int], count: int, most: int) -> Iterator[tuple[int, ...]]:
    """The first text alone, as in a chat; then as many together as fit."""
    group: list[int] = []
    for number, size in enumerate(sizes):
        taken = sum(sizes[each] for each in group)
        if group and (number == 1 or len(group) == count or taken + size > most):
            yield tuple(group)
            group = []
        group.append(number)
    yield tuple(group)


def _batches(parts: Sequence[tuple[int, int, tuple[int, int]]], texts: Sequence[Text], size: int) -> Iterator[Batch]:
    """Batches of text parts, each given as sequence, text number (-1: shared prefix), begin and end."""
    tokens = np.concatenate([np.array(texts[number].tokens[begin:end], np.int64) for _, number, (begin, end) in parts])
    positions = np.concatenate([np.arange(begin, end) for _, _, (begin, end) in parts])
    sequences = np.concatenate([np.full(end - begin, slot) for slot, _, (begin, end) in parts])
    numbers = np.concatenate([np.full(end - begin, number) for _, number, (begin, end) in parts])
    for start in range(0, len(tokens), size):
        piece = slice(start, start + size)
        yield Batch(tokens[piece], positions[piece], sequences[piece], numbers[piece])


class Reader:
    """Evaluates the batches of a plan in one llama.cpp context."""

    def __init__(self, model: Model, plan: Plan, room: int = 0, *, branches: bool = False) -> None:
        """`room` is the number of tokens to decode; `branches`: answers get sequences of their own."""
        self.model, self._plan = model, plan
        cells = max(plan.cells + room, CONTEXT_TOKENS)
        texts = max(len(wave.texts) for wave in plan.waves) * (2 if branches else 1)
        self._sequences = texts if model.has_encoder else texts + 1
        self.context = Context(model, cells, sequences=self._sequences)

    def begin(self, wave: Wave) -> None:
        """Prepare the sequences of a wave, each with the shared prefix."""
        if wave.encoded is not None:
            self.context.forget()
            self.context.encode(wave.encoded, self._sequences)
            return
        for slot in range(1, self._sequences):
            self.context.forget(sequence=slot)
        for slot in wave.sequences:
            if self._plan.shared:
                self.context.share(0, slot, self._plan.shared)

    def branch(self, wave: Wave, texts: Sequence[Text]) -> None:
        """Start the answers' sequences behind the prefilled prompts of a wave."""
        for slot, own, number in zip(wave.branches, wave.sequences, wave.texts, strict=True):
            self.context.share(own, slot, texts[number].answer_at)

    def cut_off(self, wave: Wave) -> None:
        """Remove the answers' sequences."""
        for slot in wave.branches:
            self.context.forget(sequence=slot)

    def read(self, batch: Batch) -> Logits:
        """Logits (N, V) float32 after each token of a batch; a view that the next batch overwrites."""
        return self.step(batch.tokens.tolist(), batch.positions.tolist(), batch.sequences.tolist())

    def step(self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int]) -> Logits:
        """As `read`, for tokens, positions and sequences of length N."""
        self.context.evaluate(tokens, positions, sequences, [True] * len(tokens))
        return self.context.all_logits(len(tokens))

    def close(self) -> None:
        """Free the context."""
        self.context.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


def batch_tokens(model: Model, texts: Sequence[Text]) -> int:
    """Batch size in tokens; with an encoder a text is one batch."""
    return max(len(text.tokens) for text in texts) if model.has_encoder else 512


def read_all(readers: Sequence[Reader], plan: Plan, progress: Progress) -> Iterator[tuple[Batch, list[Logits]]]:
    """Yield each batch with every model's logits (N, V); views that the next batch overwrites."""
    done = 0
    for wave in (plan.opening, *plan.waves):
        if wave.texts:
            for reader in readers:
                reader.begin(wave)
        for batch in wave.batches:
            yield batch, [reader.read(batch) for reader in readers]
            done += len(batch.tokens)
            progress.update(done / plan.read)


def wave_tokens(model: Model) -> int:
    """Largest wave, in tokens, whose logits fit WAVE_BYTES."""
    return int(min(max(WAVE_BYTES // (4 * model.vocab_size), 1), WAVE_TOKENS))
