"""The proof that a GGUF is the model that was trained: tokens, special tokens, template, distributions, answers.

Each point is measured against the training tokenizer and against PEFT's own merge in torch, and has a limit; a point
outside its limit says what differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.reference import Reference
from export.texts import proof_texts
from gladstone.chat import Conversation, Message
from gladstone.gguf import read_header
from gladstone.llama import Context, Model
from gladstone.progress import Progress, step
from gladstone.template import ChatTemplate
from gladstone.tokenizer import FolderTokenizer

PROMPTS, ANSWER_TOKENS, CONTEXT_TOKENS = 32, 32, 1024
MEAN_KL_LIMIT = 1e-3  # nats; F16 against float32 is near 1e-5, a wrong scale or rope base far above
TOP1_LIMIT = 0.99
TIE_LOGITS = 0.1  # candidates nearer than this may change places: F16 activations move logits by about 0.03

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Trained:
    """What the file is held against: the training tokenizer and template, base and adapter, held-out rows."""

    tokenizer: FolderTokenizer
    template: ChatTemplate
    base: Path
    adapter: Path | None
    rows: Sequence[Conversation]


@dataclass(frozen=True)
class Point:
    """One thing proven or refuted; `measured` holds the figures."""

    name: str
    passed: bool
    detail: str
    measured: dict[str, Any]


def verify_file(path: Path, trained: Trained, progress: Progress) -> list[Point]:
    """All points for an F16 GGUF."""
    with step(progress, f"Proving {path.name}: vocabulary, texts, special tokens, template"):
        points = verify_vocabulary(path, trained)
    with step(progress, f"Proving {path.name}: distributions and answers against torch"):
        points += verify_answers(path, trained, progress)
    return points


def verify_vocabulary(path: Path, trained: Trained) -> list[Point]:
    """The points that need no weights."""
    with Model(path, vocab_only=True) as model:
        return [
            _check_entries(model, trained.tokenizer),
            _check_texts(model, trained),
            _check_special(model, trained),
            _check_template(path, trained.template),
        ]


def verify_answers(path: Path, trained: Trained, progress: Progress) -> list[Point]:
    """Next-token distributions over prompts and answers, and the greedy answers themselves."""
    reference = Reference(trained.base, trained.adapter)
    prompts = _prompts(trained)
    comparison = _Comparison()
    with Model(path) as model, Context(model, CONTEXT_TOKENS) as context:
        for number, prompt in enumerate(prompts, 1):
            answer, ours = _greedy(model, context, prompt)
            theirs = reference.logits(prompt + answer)
            comparison.add(ours, theirs, answer, ended=model.ends_generation(answer[-1]))
            progress.update(number / len(prompts))
    return comparison.points(reference.dtype)


def verify_same_header(path: Path, f16: Path) -> Point:
    """A quantised file must carry the F16's vocabulary, special tokens and template unchanged."""
    ours, theirs = read_header(path).metadata, read_header(f16).metadata
    quantiser_keys = {"general.file_type", "general.quantization_version"}
    differing = sorted(
        key for key in (ours.keys() | theirs.keys()) - quantiser_keys if ours.get(key) != theirs.get(key)
    )
    detail = "metadata equal to the F16's" if not differing else f"differs from the F16 in {', '.join(differing)}"
    return Point("metadata", not differing, detail, {"keys": len(ours)})


def _check_entries(model: Model, tokenizer: FolderTokenizer) -> Point:
    size = len(tokenizer.hf)
    if size > model.vocab_size:
        detail = f"the GGUF has {model.vocab_size:,} entries, the tokenizer {size:,}"
        return Point("vocabulary", False, detail, {"entries": model.vocab_size})
    names = tokenizer.hf.convert_ids_to_tokens(list(range(size)))
    wrong = [index for index, name in enumerate(names) if model.token_text(index) != name]
    decoded = [tokenizer.decode([index]) for index in range(size)]
    split = _differing(model, tokenizer, decoded)
    measured = {"entries": size, "differing_entries": len(wrong), "differing_encodings": len(split)}
    if wrong:
        first = wrong[0]
        detail = f"{len(wrong)} entries differ, first id {first}: {model.token_text(first)!r}, trained {names[first]!r}"
    elif split:
        detail = f"{len(split)} entries are split differently, first {decoded[split[0]]!r}: the pre-tokenizer is wrong"
    else:
        detail = f"all {size:,} entries equal, and their texts split equally"
    return Point("vocabulary", not wrong and not split, detail, measured)


def _check_texts(model: Model, trained: Trained) -> Point:
    rows = [message.content for row in trained.rows for message in row.messages]
    texts = proof_texts(rows, list(trained.tokenizer.special_tokens))
    wrong = [texts[index] for index in _differing(model, trained.tokenizer, texts)]
    detail = f"token ids of all {len(texts)} texts equal"
    if wrong:
        detail = f"{len(wrong)} of {len(texts)} texts get other token ids, first {wrong[0][:80]!r}"
    return Point("texts", not wrong, detail, {"texts": len(texts), "differing": len(wrong)})


def _differing(model: Model, tokenizer: FolderTokenizer, texts: Sequence[str]) -> list[int]:
    """The texts that the two tokenizers split differently, by their numbers."""
    trained = tokenizer.encode_all(list(texts))
    return [
        index
        for index, (text, ids) in enumerate(zip(texts, trained, strict=True))
        if model.tokenize(text, parse_special=True) != ids
    ]


def _check_special(model: Model, trained: Trained) -> Point:
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
    end = _end_of_turn(trained)
    if not model.ends_generation(end):
        problems.append(f"the trained end of turn ({end}, {hf.convert_ids_to_tokens(end)!r}) does not stop the answer")
    measured = found | {"add_bos": model.adds_bos, "end_of_turn": end}
    detail = "; ".join(problems) or f"BOS, EOS, padding as trained; {hf.convert_ids_to_tokens(end)!r} stops the answer"
    return Point("special tokens", not problems, detail, measured)


def _end_of_turn(trained: Trained) -> int:
    """The last special token of a rendered answer: what the model was trained to end with."""
    turns = (Message("user", "?"), Message("assistant", "!"))
    answer = trained.template.segments(turns)[-1].text
    special = set(trained.tokenizer.special_tokens.values())
    return next(token for token in reversed(trained.tokenizer.encode(answer)) if token in special)


def _check_template(path: Path, template: ChatTemplate) -> Point:
    found = read_header(path).metadata.get("tokenizer.chat_template")
    if found == template.source:
        return Point("chat template", True, "equal byte for byte", {"sha256": template.sha256})
    detail = "the GGUF has none" if found is None else "differs from the trained one"
    return Point("chat template", False, detail, {"trained_sha256": template.sha256})


def _prompts(trained: Trained) -> list[list[int]]:
    """Token ids of up to 32 rendered questions, or beginnings of plain texts, that leave room for the answer."""
    prompts = []
    for row in trained.rows:
        if row.is_text:
            ids = trained.tokenizer.encode(row.answer.content)[:ANSWER_TOKENS]
        else:
            ids = trained.tokenizer.encode(trained.template.render(row.prompt, add_generation_prompt=True))
        if trained.tokenizer.bos_id is not None and ids[:1] != [trained.tokenizer.bos_id]:
            ids = [trained.tokenizer.bos_id, *ids]
        if len(ids) + ANSWER_TOKENS <= CONTEXT_TOKENS // 2:
            prompts.append(ids)
        if len(prompts) == PROMPTS:
            break
    return prompts


def _greedy(model: Model, context: Context, prompt: list[int]) -> tuple[list[int], Logits]:
    """The greedy answer, its end token included, and the logits (P + A - 1, V) before each of its tokens."""
    context.forget()
    context.decode(prompt, 0, all_logits=True)
    rows = [context.logits(index).copy() for index in range(len(prompt))]
    answer: list[int] = []
    while len(answer) < ANSWER_TOKENS:
        token = int(rows[-1].argmax())
        answer.append(token)
        if model.ends_generation(token):
            break
        context.decode([token], len(prompt) + len(answer) - 1)
        rows.append(context.logits().copy())
    return answer, np.stack(rows[: len(prompt) + len(answer) - 1])


class _Comparison:
    """Collects the agreement of two models over prompts."""

    def __init__(self) -> None:
        self._kl: list[npt.NDArray[np.float64]] = []
        self._same_top: list[npt.NDArray[np.bool_]] = []
        self._near_top: list[npt.NDArray[np.bool_]] = []
        self._answers, self._equal, self._ties, self._ended = 0, 0, 0, 0
        self._widest = 0.0

    def add(self, ours: Logits, theirs: Logits, answer: list[int], *, ended: bool) -> None:
        """`theirs` may have more vocabulary (padding) and one more position than `ours`."""
        width = min(ours.shape[1], theirs.shape[1])
        ours, theirs = ours[:, :width], theirs[: len(ours), :width]
        self._kl.append(kl_divergence(theirs, ours))
        ours_top = ours.argmax(axis=1)
        self._same_top.append(theirs.argmax(axis=1) == ours_top)
        self._near_top.append(theirs.max(axis=1) - theirs[np.arange(len(ours)), ours_top] <= TIE_LOGITS)
        self._answers += 1
        self._ended += ended
        steps = theirs[-len(answer) :]
        # by how much torch prefers another token at the steps where it does; equal up to there means equal greedily
        gaps = steps.max(axis=1) - steps[np.arange(len(answer)), answer]
        self._widest = max(self._widest, float(gaps.max()))
        self._equal += bool((gaps == 0).all())
        self._ties += bool((gaps > 0).any() and (gaps <= TIE_LOGITS).all())

    def points(self, dtype: str) -> list[Point]:
        """The distributions' point and the answers' point."""
        kl, same = np.concatenate(self._kl), float(np.concatenate(self._same_top).mean())
        # a flat distribution (a small or untrained model) has many tokens that are as good as the best
        but_for_ties = float(np.concatenate(self._near_top).mean())
        mean, worst = float(kl.mean()), float(kl.max())
        spread = {"mean_kl_nats": mean, "max_kl_nats": worst, "positions": len(kl)}
        spread |= {"top1_agreement": same, "top1_agreement_but_for_ties": but_for_ties}
        near = mean <= MEAN_KL_LIMIT and but_for_ties >= TOP1_LIMIT
        detail = (
            f"mean KL {mean:.2e} nats (limit {MEAN_KL_LIMIT:.0e}), top-1 agreement {same:.2%} "
            f"({but_for_ties:.2%} but for ties, limit {TOP1_LIMIT:.0%}) over {len(kl):,} tokens"
        )
        different = self._answers - self._equal - self._ties
        answers = {
            "prompts": self._answers,
            "equal": self._equal,
            "equal_but_for_ties": self._ties,
            "different": different,
            "widest_gap_logits": self._widest,
            "ended_by_the_model": self._ended,
        }
        told = f"{self._equal} of {self._answers} greedy answers and stops equal torch's"
        told += f", {self._ties} but for ties (< {TIE_LOGITS} logits)" if self._ties else ""
        told += f", {different} differ" if different else ""
        return [
            Point("distributions", near, detail, spread | {"torch_dtype": dtype}),
            Point("greedy answers", different == 0, told, answers),
        ]


def kl_divergence(reference: Logits, other: Logits) -> npt.NDArray[np.float64]:
    """KL(reference ‖ other) in nats for each row of logits (T, V), in float64."""
    p, q = log_softmax(reference), log_softmax(other)
    divergence: npt.NDArray[np.float64] = (np.exp(p) * (p - q)).sum(axis=1)
    return divergence


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Log-probabilities of each row (T, V), in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
