"""Checks of added tokens: their rows in embedding and head, and how they are found in text.

Names torch and gguf.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.merge.vocabulary_growth import read_vocabulary, shown
from export.proof.check import Check
from export.proof.trained import Trained
from gladstone.chat.messages import Conversation, Message
from gladstone.gguf.header import read_model
from gladstone.gguf.types import Tensor
from gladstone.llamacpp.model import Model
from gladstone.models.tokenizer import FolderTokenizer

ROWS = 256  # of the added tokens are compared
ASKED, TOGETHER = 4, 8  # prompts with added tokens, and tokens in each
ROWS_AT_ONCE = 8192  # of tables that are compared whole
UNIT_ROWS = 64  # rows of a unit matrix at a time: each yields logits over the vocabulary
# ‖row − trained row‖ / ‖trained row‖ by type; with few bits only the row of another token exceeds it
ERROR_LIMIT = {"F32": 1e-4, "F16": 2e-3, "BF16": 1e-2}
QUANTISED_ERROR_LIMIT = 0.6
FORMS = (
    ("between words", "take WORD daily"),
    ("within a word", "takeWORDdaily"),
    ("at the beginning", "WORD daily"),
    ("after a line break", "take\nWORD daily"),
    ("between several spaces", "take  WORD  daily"),
    ("in brackets", "take (WORD)."),
    ("twice", "WORDWORD"),
)
CURE = (
    "The rows or tokens of the file are not the trained ones: export again from the adapter and the tokenizer saved "
    "with it."
)


def added_tokens(trained: Trained) -> dict[int, str]:
    """Tokens by id that the base's tokenizer lacks; empty if the base has no tokenizer."""
    theirs = read_vocabulary(trained.base)
    names = {int(number): str(text) for text, number in trained.tokenizer.hf.get_vocab().items()}
    ours = names | {int(number): str(token) for number, token in trained.tokenizer.hf.added_tokens_decoder.items()}
    return {number: text for number, text in sorted(ours.items()) if number not in theirs} if theirs else {}


def asked_of(trained: Trained) -> list[Conversation]:
    """Questions that contain the added tokens, a few in each."""
    texts = list(added_tokens(trained).values())[: ASKED * TOGETHER]
    groups = [texts[start : start + TOGETHER] for start in range(0, len(texts), TOGETHER)]
    answer = Message("assistant", "…")
    return [Conversation((Message("user", f"What is {' '.join(group)}?"), answer), "added") for group in groups]


def plain_added(tokenizer: FolderTokenizer) -> dict[int, str]:
    """Added tokens that are not special: they are found in any text."""
    added = tokenizer.hf.added_tokens_decoder
    return {int(number): str(token) for number, token in sorted(added.items()) if not token.special}


def check_found(model: Model, tokenizer: FolderTokenizer) -> Check | None:
    """Check that added words are found where the training tokenizer finds them; None without added words.

    A GGUF cannot express some matching rules: such differences are reported as a limit, not as a failure.
    """
    words = dict(list(plain_added(tokenizer).items())[-ROWS:])
    if not words:
        return None
    texts = [(number, place, form.replace("WORD", word)) for number, word in words.items() for place, form in FORMS]
    trained = tokenizer.encode_all([text for _, _, text in texts])
    wrong = [
        (number, place)
        for (number, place, text), ids in zip(texts, trained, strict=True)
        if model.tokenize(text, parse_special=True) != ids
    ]
    detail = f"{len(words):,} added words get the ids of training in all {len(texts):,} places"
    reasons = {reason for number, _ in wrong if (reason := inexpressible_rule(tokenizer, number))}
    faults = [number for number, _ in wrong if not inexpressible_rule(tokenizer, number)]
    if wrong:
        changed = shown(list(dict.fromkeys(words[number] for number, _ in wrong)))
        places = ", ".join(dict.fromkeys(place for _, place in wrong))
        detail = f"{len(wrong)} of {len(texts):,} places get other ids than in training ({changed}: {places})"
    if wrong and not faults:
        detail += f": a GGUF cannot hold that {' and '.join(sorted(reasons))}"
    measured = {"words": len(words), "places": len(texts), "differing": len(wrong)}
    return Check("added words", not faults, detail, measured, CURE, limited=bool(wrong))


def inexpressible_rule(tokenizer: FolderTokenizer, number: int) -> str | None:
    """The matching rule of an added word that a GGUF cannot express; None if there is none."""
    token, backend = tokenizer.hf.added_tokens_decoder[number], getattr(tokenizer.hf, "backend_tokenizer", None)
    if token.lstrip or token.rstrip:
        return "they take the spaces around them (lstrip, rstrip)"
    if token.single_word:
        return "they are found as single words only (single_word)"
    if token.normalized and backend is not None and backend.normalizer is not None:
        return "they are found in texts whose spaces are marked (normalized=True; with normalized=False it can)"
    return None


def check_rows(path: Path, reference: Any, added: Mapping[int, str]) -> Check:
    """Compare the added tokens' rows in embedding and head with those of the trained model in torch."""
    numbers = list(added)[-ROWS:]
    tables = {name: table for name in ("token_embd.weight", "output.weight") if (table := _read(path, name, numbers))}
    theirs = {"token_embd.weight": embedding_rows(reference, numbers), "output.weight": head_rows(reference, numbers)}
    if "output.weight" not in tables:  # tied: the head is the embedding
        tables["output.weight"] = tables["token_embd.weight"]
    worst, limit = 0.0, 1.0
    for name, (ours, kind) in tables.items():
        error = _error(ours, theirs[name])
        allowed = ERROR_LIMIT.get(kind, QUANTISED_ERROR_LIMIT)
        if error / allowed >= worst / limit:
            worst, limit = error, allowed
    what = f"embedding and head rows of {len(numbers):,} added tokens ({shown(list(added.values()))})"
    detail = f"{what}: at most {worst:.1e} of a row's length from the trained ones (limit {limit:.0e})"
    return Check("added tokens", worst <= limit, detail, {"tokens": len(numbers), "error": worst, "limit": limit}, CURE)


def same_tables(path: Path, reference: Any) -> bool:
    """Whether embedding and head of a file are those of the trained model in torch, each row within its type's limit.

    False also where this cannot be told: for quantised tables, and for a head that is no plain matrix.
    """
    import torch

    head = reference.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        return False
    names = ("token_embd.weight", "output.weight")
    stored = {tensor.name: (part.path, part.data_offset + tensor.offset, tensor) for part in read_model(path)
              for tensor in part.tensors if tensor.name in names}  # fmt: skip
    stored.setdefault(names[1], stored[names[0]])  # tied: the head is the embedding
    if any(tensor.type_name not in ERROR_LIMIT for _, _, tensor in stored.values()):
        return False
    entries = min(len(head.weight), *(tensor.shape[1] for _, _, tensor in stored.values()))
    for start in range(0, entries, ROWS_AT_ONCE):
        numbers = range(start, min(start + ROWS_AT_ONCE, entries))
        theirs = {names[0]: embedding_rows(reference, numbers), names[1]: head_rows(reference, numbers)}
        for name, (file, offset, tensor) in stored.items():
            ours = _stored_rows(file, offset, tensor, numbers)
            if _error(ours, theirs[name]) > ERROR_LIMIT[tensor.type_name]:
                return False
    return True


def _error(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> float:
    """The largest distance of two rows (N, width), in lengths of the second."""
    size = np.linalg.norm(theirs, axis=1)
    return float((np.linalg.norm(ours - theirs, axis=1) / np.maximum(size, 1e-12)).max())


def _read(path: Path, name: str, numbers: Sequence[int]) -> tuple[npt.NDArray[np.float32], str] | None:
    """Rows (N, width) float32 of a tensor, and its type; None if the file lacks the tensor."""
    for header in read_model(path):
        tensor = next((stored for stored in header.tensors if stored.name == name), None)
        if tensor is not None:
            return _stored_rows(header.path, header.data_offset + tensor.offset, tensor, numbers), tensor.type_name
    return None


def _stored_rows(file: Path, offset: int, tensor: Tensor, numbers: Sequence[int]) -> npt.NDArray[np.float32]:
    """Rows (N, width) float32 of a tensor whose bytes begin at `offset`."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = tensor.shape[1]
    data = np.memmap(file, np.uint8, "r", offset, (rows, tensor.size_bytes // rows))
    stored = np.ascontiguousarray(data[list(numbers)])
    plain = {"F32": np.float32, "F16": np.float16}.get(tensor.type_name)
    kind = GGMLQuantizationType[tensor.type_name]
    values = stored.view(plain).astype(np.float32) if plain else dequantize(stored, kind)
    return values.reshape(len(numbers), -1)


def embedding_rows(reference: Any, numbers: Sequence[int]) -> npt.NDArray[np.float32]:
    """Embedding rows (N, width) float32 of token ids, before scaling."""
    import torch

    module = reference.get_input_embeddings()
    scale = next(
        (float(submodule.embed_scale) for submodule in module.modules() if hasattr(submodule, "embed_scale")), 1.0
    )
    with torch.inference_mode():
        found: npt.NDArray[np.float32] = module(_ids(reference, numbers)).float().cpu().numpy() / scale
    return found


def head_rows(reference: Any, numbers: Sequence[int]) -> npt.NDArray[np.float32]:
    """Rows (N, width) float32 of the output head for token ids."""
    import torch

    module = reference.get_output_embeddings()
    weight = next(parameter for parameter in module.parameters() if parameter.dim() == 2)
    width = module.in_features if hasattr(module, "in_features") else weight.shape[1]
    chosen = _ids(reference, numbers)
    with torch.inference_mode():
        if type(module) is torch.nn.Linear:
            return np.asarray(module.weight[chosen].float().cpu().numpy())
        nothing = module(torch.zeros(1, width, dtype=weight.dtype, device=weight.device))[:, chosen]
        units = torch.eye(width, dtype=weight.dtype, device=weight.device).split(UNIT_ROWS)
        parts = [module(part)[:, chosen] - nothing for part in units]
        found: npt.NDArray[np.float32] = torch.cat(parts).T.float().cpu().numpy()
    return found


def _ids(reference: Any, numbers: Sequence[int]) -> Any:
    """Token ids (N,) int64 on the device of the model."""
    import torch

    return torch.tensor(list(numbers), device=next(reference.parameters()).device)
