"""All points for one GGUF, and the page that tells them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.proof.answers import check_answers
from export.proof.duration import proof_s, readable_s
from export.proof.grown import check_found
from export.proof.point import Point
from export.proof.prompts import check_beginning, check_context, check_rendering, check_template
from export.proof.tokens import check_entries, check_special, check_texts, check_typed
from export.proof.trained import Trained
from gladstone.gguf import read_info, read_model
from gladstone.llama import Model
from gladstone.lora import Lora
from gladstone.progress import Progress, step


def verify_file(
    path: Path, trained: Trained, progress: Progress, loras: Sequence[Lora] = (), files: int = 0
) -> list[Point]:
    """All points for a file of any type, with adapters laid over it. Raises ArtifactError if it cannot be loaded.

    The time that is announced includes the proof of so many quantised `files` against it.
    """
    taken_s = proof_s(path, trained, files)
    about = "" if taken_s is None else f" (the proof takes about {readable_s(taken_s)})"
    with step(progress, f"Proving {path.name}{about}: vocabulary, texts, special tokens, template"):
        points = verify_vocabulary(path, trained)
    if not all(point.passed for point in points if point.name == "vocabulary"):
        return points  # ids of another vocabulary say nothing about the weights
    with step(progress, f"Proving {path.name}: distributions and answers against torch"):
        points += check_answers(path, read_info(path).quantisation, trained, progress, loras)
    return points


def verify_vocabulary(path: Path, trained: Trained) -> list[Point]:
    """The points that need no weights."""
    header = read_model(path)[0]
    with Model(path, vocab_only=True) as model:
        words = check_found(model, trained.tokenizer)
        return [
            check_entries(model, trained.tokenizer),
            check_texts(model, trained),
            *([words] if words else []),
            check_typed(model, trained),
            check_special(model, trained),
            check_template(header, trained.template),
            check_rendering(header, model, trained),
            check_beginning(model, trained),
            check_context(header, trained),
        ]


def proof_page(proof: Mapping[str, Sequence[Point]], against: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """The proof as a person reads it."""
    failed = sum(not point.passed for points in proof.values() for point in points)
    count = sum(map(len, proof.values()))
    verdict = "Proven" if not failed else "NOT PROVEN"
    lines = [f"{verdict}: {count - failed} of {count} points.", ""]
    width = max(10, *(len(name) + 2 for name in against))
    lines += [f"{name:<{width}}{value}" for name, value in against.items()]
    for name, points in proof.items():
        lines += ["", name, *(f"  {line}" for point in points for line in point.told().splitlines())]
    lines += ["", "sha256", *(f"  {digest}  {name}" for name, digest in files.items())]
    return "\n".join(lines) + "\n"
