"""All checks of one GGUF, and the text page that reports them."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.proof.answers import compare_answers
from export.proof.check import Check
from export.proof.duration import proof_s
from export.proof.grown import check_found
from export.proof.prompts import check_beginning, check_context, check_rendering, check_template
from export.proof.reading_results import ReadingResults
from export.proof.reference import place_reference
from export.proof.tokens import check_entries, check_special, check_texts, check_typed
from export.proof.trained import Trained
from gladstone.commands.progress import Progress, step
from gladstone.gguf.header import GgufHeader, read_info, read_model
from gladstone.llamacpp.lora import Lora
from gladstone.llamacpp.model import Model
from gladstone.report.durations import rough_duration


def verify_file(  # noqa: PLR0913, PLR0917 - what is proven, and what else its one reading is to leave
    path: Path,
    trained: Trained,
    progress: Progress,
    loras: Sequence[Lora] = (),
    files: int = 0,
    results: ReadingResults | None = None,
) -> list[Check]:
    """Run all checks on a GGUF of any type, with adapters applied. Raises ArtifactError if it cannot be loaded,
    UnsupportedError if there is too little memory to compare it with torch.

    The announced time includes the proof of `files` quantised files. `results` receives the held-out loss; a vocabulary
    that it has already seen is not checked again.
    """
    placement = place_reference(trained)
    headers = read_model(path)
    with Model(path, loras=loras, headers=headers) as model:
        taken_s = proof_s(model, trained, files, placement)
        about = "" if taken_s is None else f" (the proof takes about {rough_duration(taken_s)})"
        with step(progress, f"Proving {path.name}{about}: vocabulary, texts, special tokens, template"):
            checks = [*_known_vocabulary(headers[0], model, trained, results.vocabularies if results else {})]
        if not all(check.passed for check in checks if check.name == "vocabulary"):
            return checks  # token ids of another vocabulary say nothing about the weights
        with step(progress, f"Proving {path.name}: distributions and answers against torch {placement}"):
            checks += compare_answers(model, read_info(path).quantisation, trained, progress, results)
    return checks


def _known_vocabulary(
    header: GgufHeader, model: Model, trained: Trained, known: dict[str, list[Check]]
) -> Sequence[Check]:
    """The checks without weights, run once for all files with the same vocabulary, template and context."""
    names = sorted(key for key in header.metadata if not key.startswith("general.") or key == "general.architecture")
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}={header.metadata[name]!r}\0".encode("utf-8", "surrogatepass"))
    key = digest.hexdigest()
    if key not in known:
        known[key] = _check_vocabulary(header, model, trained)
    return known[key]


def verify_vocabulary(path: Path, trained: Trained) -> list[Check]:
    """Run the checks that need no weights."""
    header = read_model(path)[0]
    with Model(path, vocab_only=True) as model:
        return _check_vocabulary(header, model, trained)


def _check_vocabulary(header: GgufHeader, model: Model, trained: Trained) -> list[Check]:
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


def proof_page(proof: Mapping[str, Sequence[Check]], against: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """The proof as a text page."""
    failed = sum(not check.passed for checks in proof.values() for check in checks)
    count = sum(map(len, proof.values()))
    verdict = "Proven" if not failed else "NOT PROVEN"
    lines = [f"{verdict}: {count - failed} of {count} checks.", ""]
    width = max(10, *(len(name) + 2 for name in against))
    lines += [f"{name:<{width}}{value}" for name, value in against.items()]
    for name, checks in proof.items():
        lines += ["", name, *(f"  {line}" for check in checks for line in check.describe().splitlines())]
    lines += ["", "sha256", *(f"  {digest}  {name}" for name, digest in files.items())]
    return "\n".join(lines) + "\n"
