"""Embedding and head: whether they stay tied, and how many rows each has.

If an adapter changes the two sides of a tied matrix differently, the head becomes a tensor of its own, as in training.
Updates are compared by value, since versions of PEFT and Unsloth differ in what they keep tied.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.merge.tensor_names import same_values
from export.merge.updates import FullTensor, LowRankUpdate, TokenRows, Update
from export.tensors.safetensors_io import StoredTensor
from gladstone.errors import UnsupportedError

HEAD = "lm_head.weight"
HEADS = (HEAD, "embed_out.weight", "output.weight")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "shared.weight", "embed_in.weight", "word_embeddings.weight")
SAVE_AGAIN = (
    "Save the adapter again from the trained model with save_embedding_layers=True, or merge it there "
    "(merge_and_unload) and export the merged folder."
)


@dataclass(frozen=True)
class Changes:
    """An adapter's updates by the base's names, and the tables that replaced the base's before training."""

    folder: Path
    updates: Mapping[str, tuple[Update, ...]]
    frozen: Mapping[str, StoredTensor]
    ties: bool

    def keep_tied(self, embedding: str) -> bool:
        """True if embedding and head of a tied base stay equal with this adapter."""
        ours, theirs = self.frozen.get(embedding), self.frozen.get(HEAD)
        if ours and theirs and not same_values(ours, theirs):
            return False
        if self.ties and HEAD not in self.updates:
            return True
        return _same_updates(self.updates.get(embedding, ()), self._of_head(embedding))

    def settled(self, embedding: str, *, apart: bool) -> "Changes":
        """These changes with the head's updates resolved: none if it stays tied, else its own."""
        updates, frozen = dict(self.updates), dict(self.frozen)
        own = self._of_head(embedding)
        updates.pop(HEAD, None)
        either = frozen.get(embedding) or frozen.get(HEAD)  # a tied base starts with one matrix
        if either:
            frozen.setdefault(embedding, either)
        if not apart:
            frozen.pop(HEAD, None)
            return replace(self, updates=updates, frozen=frozen)
        if either:
            frozen.setdefault(HEAD, either)
        own = self.updates.get(embedding, ()) if self.keep_tied(embedding) else own
        return replace(self, updates=updates | ({HEAD: own} if own else {}), frozen=frozen)

    def _of_head(self, embedding: str) -> tuple[Update, ...]:
        """The head's updates; without token rows of its own a tied head takes the embedding's."""
        own = self.updates.get(HEAD, ())
        if any(isinstance(each, TokenRows) for each in own):
            return own
        return (*(each for each in self.updates.get(embedding, ()) if isinstance(each, TokenRows)), *own)


def find_embedding(stored: Iterable[str]) -> str | None:
    """The name of the embedding tensor; None without one."""
    return next((name for name in stored if name.endswith(EMBEDDINGS)), None)


def find_head(stored: Iterable[str]) -> str | None:
    """The name of the head tensor; None without one."""
    return next((name for name in HEADS if name in stored), None)


def without_copied_head(stored: dict[str, StoredTensor], config: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """The tensors without the head that some tied checkpoints store as a copy of the embedding."""
    embedding, head = find_embedding(stored), find_head(stored)
    tied = (config.get("text_config") or config).get("tie_word_embeddings", config.get("tie_word_embeddings"))
    if not (tied and embedding and head == HEAD and same_values(stored[embedding], stored[head])):
        return stored
    return {name: each for name, each in stored.items() if name != head}


def _same_updates(ours: Sequence[Update], theirs: Sequence[Update]) -> bool:
    return len(ours) == len(theirs) and all(_same(one, two) for one, two in zip(ours, theirs, strict=True))


def _same(one: Update, two: Update) -> bool:
    """True if an embedding update equals a head update."""
    if isinstance(one, FullTensor) and isinstance(two, FullTensor):
        return same_values(one.trained, two.trained)
    if isinstance(one, TokenRows) and isinstance(two, TokenRows):
        return one.tokens == two.tokens and same_values(one.trained, two.trained)
    if isinstance(one, LowRankUpdate) and isinstance(two, LowRankUpdate) and one.scale == two.scale:
        if one.magnitude or two.magnitude or one.down.shape[0] != two.down.shape[0]:
            return False
        return bool(one.up.read().T.equal(two.down.read()) and one.down.read().T.equal(two.up.read()))
    return False


@dataclass(frozen=True)
class Sizes:
    """Rows of embedding and head after the merge, by tensor name, and the vocabulary size before and after."""

    rows: Mapping[str, int]
    before: int
    after: int


def measure(
    sources: Mapping[str, StoredTensor],
    base: Mapping[str, StoredTensor],
    updates: Mapping[str, tuple[Update, ...]],
    folder: Path,
) -> Sizes | None:
    """The table sizes after the merge; None if they do not change.

    Raises UnsupportedError if the vocabulary changed and the adapter lacks some of the new rows.
    """
    embedding = find_embedding(sources)
    if embedding is None:
        return None
    before = base[embedding].shape[0]
    tables = [name for name in (embedding, find_head(sources), "lm_head.bias") if name in sources]
    wanted = {name: _rows(sources[name].shape[0], updates.get(name, ())) for name in tables if name}
    after = max((rows for rows in wanted.values() if rows != before), default=before)
    if after == before:
        return None
    for name, rows in wanted.items():
        known = _known_rows(sources[name].shape[0], updates.get(name, ()))
        if rows != after or known < after:
            raise UnsupportedError(_lacking(folder, name, before, after, known))
    return Sizes(wanted, before, after)


def _rows(rows: int, updates: Iterable[Update]) -> int:
    """Rows of a table after its updates."""
    for update in updates:
        if isinstance(update, FullTensor):
            rows = update.trained.shape[0]
        elif isinstance(update, TokenRows):
            rows = max(rows, max(update.tokens) + 1)
        elif isinstance(update, LowRankUpdate):
            rows = update.rows
    return rows


def _known_rows(rows: int, updates: Iterable[Update]) -> int:
    """Number of leading rows whose values are known."""
    for update in updates:
        if isinstance(update, FullTensor):
            rows = update.trained.shape[0]
        elif isinstance(update, TokenRows):
            while rows in update.tokens:
                rows += 1
    return rows


def _lacking(folder: Path, name: str, before: int, after: int, known: int) -> str:
    module = name.rpartition(".")[0]
    if after < before:
        return (
            f"{folder}: the vocabulary was cut from {before:,} to {after:,} rows, but {module} still has {known:,}. "
            f"{SAVE_AGAIN}"
        )
    which = f"row {known:,}" if after - known == 1 else f"rows {known:,} to {after - 1:,}"
    return (
        f"{folder}: the vocabulary grew from {before:,} to {after:,} rows, but the adapter does not hold {which} of "
        f"{module}: they were drawn at random when the model was resized, and not saved. {SAVE_AGAIN}"
    )
