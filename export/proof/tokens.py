"""Checks of the tokenizer: vocabulary, token ids of texts, special tokens."""

import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from export.proof.check import Check
from export.proof.grown import plain_added
from export.proof.texts import proof_texts
from export.proof.trained import Trained
from gladstone.llamacpp.model import Model
from gladstone.machine.host import core_count
from gladstone.models.tokenizer import FolderTokenizer, end_of_turn_token

TEXTS = 2_000
TEXTS_AT_ONCE = 256
CONVERT_AGAIN = "The file was converted with another tokenizer, or the converter mistook its kind: export again."


def check_entries(model: Model, tokenizer: FolderTokenizer) -> Check:
    """Compare every vocabulary entry, and the token ids of its text."""
    size = len(tokenizer.hf)
    if size > model.vocab_size:
        detail = f"the GGUF has {model.vocab_size:,} entries, the tokenizer {size:,}"
        return Check("vocabulary", False, detail, {"entries": model.vocab_size}, CONVERT_AGAIN)
    names = tokenizer.hf.convert_ids_to_tokens(list(range(size)))
    wrong = [index for index, name in enumerate(names) if not _same_text(model.token_text(index), name)]
    decoded = tokenizer.decode_all([[index] for index in range(size)])
    words = plain_added(tokenizer)  # how these are found has a check of its own
    split = _differing(model, tokenizer, ["" if index in words else text for index, text in enumerate(decoded)])
    measured = {"entries": size, "differing_entries": len(wrong), "differing_encodings": len(split)}
    if wrong:
        first = wrong[0]
        detail = f"{len(wrong)} entries differ, first id {first}: {model.token_text(first)!r}, trained {names[first]!r}"
    elif split:
        detail = f"{len(split)} entries are split differently, first {decoded[split[0]]!r}: the pre-tokenizer is wrong"
    else:
        detail = f"all {size:,} entries equal, and their texts split equally"
    return Check("vocabulary", not wrong and not split, detail, measured, CONVERT_AGAIN)


def check_texts(model: Model, trained: Trained) -> Check:
    """Compare token ids of rows, many scripts, random mixes, and each special token within a text."""
    rows = [message.content for row in trained.rows for message in row.messages]
    texts = proof_texts(rows, list(trained.tokenizer.special_tokens), TEXTS)
    wrong = [texts[index] for index in _differing(model, trained.tokenizer, texts)]
    detail = f"token ids of all {len(texts):,} texts equal"
    if trained.tokenizer.normalizes_nfc:
        detail += ", their characters composed (NFC) as in training: llama.cpp by itself leaves them apart"
    if wrong:
        detail = f"{len(wrong):,} of {len(texts):,} texts get other token ids, first {wrong[0][:80]!r}"
    return Check("texts", not wrong, detail, {"texts": len(texts), "differing": len(wrong)}, CONVERT_AGAIN)


def _same_text(ours: str, trained: str) -> bool:
    """True if two entries are equal; added tokens have plain spaces in a GGUF and ▁ in transformers."""
    return ours == trained or ours == trained.replace("▁", " ")


def check_typed(model: Model, trained: Trained) -> Check:
    """Check that a special token typed by a user is tokenised as plain text."""
    texts = [f"a {token} b" for token in trained.tokenizer.special_tokens]
    with _special_as_text(trained.tokenizer) as encode:
        wanted = [encode(text) for text in texts]
    ours = [model.tokenize(text) for text in texts]
    special = {*trained.tokenizer.special_tokens.values()}
    wrong = [
        text
        for text, found, expected in zip(texts, ours, wanted, strict=True)
        # transformers' unigram models find special tokens in text even so: there is nothing to compare with
        if any(map(model.is_control, found)) or (found != expected and not special & {*expected})
    ]
    detail = f"none of {len(texts)} special tokens is more than text where a user types it"
    if wrong:
        detail = f"{len(wrong)} of {len(texts)} special tokens typed by a user get other ids, first {wrong[0]!r}"
    return Check("typed tokens", not wrong, detail, {"tokens": len(texts), "differing": len(wrong)}, CONVERT_AGAIN)


@contextmanager
def _special_as_text(tokenizer: FolderTokenizer) -> Iterator[Any]:
    """The training tokenizer with special tokens treated as text."""
    backend = getattr(tokenizer.hf, "backend_tokenizer", None)
    if backend is None:  # a tokenizer in Python
        yield lambda text: tokenizer.hf(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return
    was, backend.encode_special_tokens = backend.encode_special_tokens, True
    try:
        yield lambda text: backend.encode(text, add_special_tokens=False).ids
    finally:
        backend.encode_special_tokens = was


def _differing(model: Model, tokenizer: FolderTokenizer, texts: Sequence[str]) -> list[int]:
    """Indices of the texts that the two tokenizers split differently.

    llama.cpp does not compose characters: if training did (NFC), both get composed texts.
    """
    if tokenizer.normalizes_nfc:
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    trained = tokenizer.encode_all(list(texts))
    ours = _tokenized(model, texts)
    return [index for index, (found, ids) in enumerate(zip(ours, trained, strict=True)) if found != ids]


def _tokenized(model: Model, texts: Sequence[str]) -> Iterator[list[int]]:
    """The file's token ids of each text, computed on all cores."""

    def some(start: int) -> list[list[int]]:
        return [model.tokenize(text, parse_special=True) for text in texts[start : start + TEXTS_AT_ONCE]]

    with ThreadPoolExecutor(core_count()) as pool:
        for found in pool.map(some, range(0, len(texts), TEXTS_AT_ONCE)):
            yield from found


def check_special(model: Model, trained: Trained) -> Check:
    """Check BOS, EOS and padding ids, whether BOS is added, and whether the end of turn stops generation."""
    hf = trained.tokenizer.hf
    expected = {"bos": hf.bos_token_id, "eos": hf.eos_token_id, "pad": hf.pad_token_id}
    found = {"bos": model.bos, "eos": model.eos, "pad": model.pad}
    problems = [
        f"{name} is {found[name]}, trained {wanted}"
        for name, wanted in expected.items()
        if wanted is not None and found[name] != wanted
    ]
    adds_bos = trained.tokenizer.bos_id is not None
    if model.adds_bos != adds_bos:
        problems.append(f"the GGUF {'adds' if model.adds_bos else 'does not add'} BOS, training did the opposite")
    end = end_of_turn(trained)
    if end is None:
        problems.append("the trained template ends an answer with no special token: nothing stops it")
    elif not model.ends_generation(end):
        problems.append(f"the trained end of turn ({end}, {hf.convert_ids_to_tokens(end)!r}) does not stop the answer")
    measured = found | {"add_bos": model.adds_bos, "end_of_turn": end}
    named = hf.convert_ids_to_tokens(end) if end is not None else None
    detail = "; ".join(problems) or f"BOS, EOS, padding as trained; {named!r} stops the answer"
    cure = "Set the tokenizer's eos_token to the token that ends a turn, then train and export again."
    return Check("special tokens", not problems, detail, measured, cure)


def end_of_turn(trained: Trained) -> int | None:
    """The token id that ends an answer in training; None if there is none."""
    if trained.seq2seq:
        return trained.tokenizer.eos_id
    return end_of_turn_token(trained.tokenizer, trained.template)
