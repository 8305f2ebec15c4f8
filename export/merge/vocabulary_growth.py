"""Compares the vocabularies of a merged model and its base: growth, added tokens, missing rows."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.merge.plan import MergePlan
from export.merge.updates import FullTensor, LowRankUpdate, TokenRows
from export.merge.vocabulary_tables import SAVE_AGAIN, find_embedding
from gladstone import file_names
from gladstone.errors import DataError, UnsupportedError
from gladstone.models.tokenizer import load_tokenizer

SHOWN = 5
STRANGER = 0.1  # share of base tokens with another text above which it is a different tokenizer


@dataclass(frozen=True)
class VocabularyGrowth:
    """A vocabulary that differs from the base's: rows before and after, and added tokens as (id, text)."""

    before: int
    after: int
    added: tuple[tuple[int, str], ...]
    untrained: tuple[str, ...] = ()  # added tokens whose rows were not trained
    unused: int = 0  # rows without a token

    def describe(self) -> str:
        """The difference in one or two sentences."""
        names = shown([text for _, text in self.added])
        new = f"{len(self.added):,} added ({names})" if self.added else "no token was added"
        if self.after > self.before:
            parts = [f"the vocabulary grew from {self.before:,} to {self.after:,} rows: {new}"]
        elif self.after < self.before:
            parts = [f"the vocabulary's rows were cut from {self.before:,} to {self.after:,}: {new}"]
        else:
            parts = [f"the vocabulary kept its {self.before:,} rows, which had room for new tokens: {new}"]
        if self.unused:
            parts.append(f"{self.unused:,} rows belong to no token")
        if self.untrained:
            parts.append(f"the rows of {shown(self.untrained)} were not trained")
        return "; ".join(parts) + "."


def shown(texts: Collection[str]) -> str:
    """The first few texts, quoted, and how many more there are."""
    first = ", ".join(repr(text) for text in list(texts)[:SHOWN])
    return first + (f" and {len(texts) - SHOWN:,} more" if len(texts) > SHOWN else "")


def find_vocabulary_growth(base: Path, tokenizer: Path, plan: MergePlan) -> VocabularyGrowth | None:
    """How the vocabulary of a tokenizer folder and a plan differs from the base's; None if it does not.

    Raises UnsupportedError for tokens without a row, and for a tokenizer that does not extend the base's.
    """
    embedding = find_embedding(plan.sources)
    ours = read_vocabulary(tokenizer)
    if embedding is None or not ours:
        return None
    rows = plan.planned(embedding).shape[0]
    before = plan.sizes.before if plan.sizes else rows
    theirs = read_vocabulary(base) if tokenizer != base else ours
    added = [(number, text) for number, text in sorted(ours.items()) if theirs.get(number) != text] if theirs else []
    replaced = sum(number in theirs for number, _ in added)
    if replaced > STRANGER * len(theirs):
        number = next(number for number, _ in added if number in theirs)
        raise UnsupportedError(
            f"{tokenizer}: not the base's tokenizer with tokens added: {replaced:,} of the base's {len(theirs):,} "
            f"tokens have another text, first id {number}: {ours[number]!r}, the base's {theirs[number]!r}. Give the "
            "base that the adapter was trained on."
        )
    _refuse_rowless(tokenizer, ours, rows, before)
    if not added and not plan.sizes:
        return None
    trained = _trained_rows(plan, embedding)
    untrained = () if trained is None else tuple(text for number, text in added if number not in trained)
    return VocabularyGrowth(
        before, rows, tuple(added), untrained, rows - len([number for number in ours if number < rows])
    )


def _refuse_rowless(tokenizer: Path, ours: Mapping[int, str], rows: int, before: int) -> None:
    beyond = [text for number, text in sorted(ours.items()) if number >= rows]
    if not beyond:
        return
    if rows < before:
        raise UnsupportedError(
            f"{tokenizer}: the vocabulary was cut from {before:,} to {rows:,} rows, and {len(beyond):,} tokens of the "
            f"tokenizer lost theirs ({shown(beyond)}): it is not the tokenizer that the model was trained with."
        )
    raise UnsupportedError(
        f"{tokenizer}: {len(beyond):,} tokens were added to the tokenizer ({shown(beyond)}), but the model has no "
        f"rows for them: its table has {rows:,}, and the last token is number {max(ours):,}. Either the model was not "
        f"resized (resize_token_embeddings) before the training, or its new rows were not saved. {SAVE_AGAIN}"
    )


def _trained_rows(plan: MergePlan, embedding: str) -> set[int] | None:
    """Ids of the trained embedding rows; None for all."""
    updates = plan.updates.get(embedding, ())
    if any(isinstance(update, FullTensor | LowRankUpdate) for update in updates):
        return None
    return {number for update in updates if isinstance(update, TokenRows) for number in update.tokens}


def read_vocabulary(folder: Path) -> dict[int, str]:
    """Token texts of a tokenizer folder by id; empty without a readable tokenizer."""
    try:
        data: dict[str, Any] = json.loads((folder / file_names.TOKENIZER).read_text(encoding="utf-8"))
        model = data["model"]["vocab"]
        known = {number: str(entry[0]) for number, entry in enumerate(model)} if isinstance(model, list) else {
            int(number): str(text) for text, number in model.items()
        }  # fmt: skip
        return known | {int(entry["id"]): str(entry["content"]) for entry in data.get("added_tokens") or ()}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        pass
    try:
        return {int(number): str(text) for text, number in load_tokenizer(folder).hf.get_vocab().items()}
    except DataError:
        return {}
