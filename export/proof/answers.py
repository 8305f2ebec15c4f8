"""Checks that a file computes what the trained model computes: next-token distributions and greedy answers."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from export.proof.check import Check
from export.proof.comparison import SETTLED_ROWS, Comparison
from export.proof.file_rows import Evaluated, FileRows
from export.proof.grown import added_tokens, check_rows, same_tables
from export.proof.reading import SEQUENCES, WAVE_BYTES, Reader
from export.proof.reading_results import ReadingResults
from export.proof.reference import Reference
from export.proof.rows import ANSWER_TOKENS
from export.proof.trained import Trained
from gladstone.commands.progress import Progress
from gladstone.llamacpp.lora import Lora
from gladstone.llamacpp.model import Model

UNREAD = 0  # torch gives no logits after the last token, so one more follows


def check_answers(
    path: Path, quantisation: str, trained: Trained, progress: Progress, loras: Sequence[Lora] = ()
) -> list[Check]:
    """The checks of distributions and greedy answers. Raises ArtifactError if no prompt is short enough."""
    with Model(path, loras=loras) as model:
        return compare_answers(model, quantisation, trained, progress)


def compare_answers(
    model: Model, quantisation: str, trained: Trained, progress: Progress, results: ReadingResults | None = None
) -> list[Check]:
    """As `check_answers` for an open file; fills `results` with the held-out loss behind the same prompts."""
    rows = FileRows(model, trained, results)
    reference = Reference(trained)
    comparison = Comparison(
        quantisation, len(rows.rows), settles=not trained.has_experts and same_tables(model.path, reference.model)
    )
    with Reader(model, rows.plan, SEQUENCES * ANSWER_TOKENS, branches=True) as reader:
        shared = rows.plan.shared
        if shared:
            comparison.add_logits(rows.open(reader), reference.opening(rows.texts[0].tokens[:shared]))
        done = 0
        for evaluated in _together(rows, reader):
            if not comparison.settled:
                _compare(evaluated, reference, shared, comparison)
            done += len(evaluated)
            progress.update(done / len(rows.rows), f"row {done} of {len(rows.rows)}")
            if comparison.settled and results is None:
                break
    if results is not None:
        rows.finish(results)
    checks = comparison.checks(reference.dtype)
    added = added_tokens(trained)
    return [*checks, check_rows(model.path, reference.model, added)] if added else checks


def _together(rows: FileRows, reader: Reader) -> Iterator[list[Evaluated]]:
    """The rows of several waves, so that torch computes many at once: enough to settle, then what memory allows."""
    waiting: list[Evaluated] = []
    enough = SETTLED_ROWS
    for wave in rows.plan.waves:
        waiting += rows.read(reader, wave)
        size = sum(each.logits.nbytes + each.greedy_logits.nbytes for each in waiting)
        if len(waiting) >= enough or size >= WAVE_BYTES // 2 or wave is rows.plan.waves[-1]:
            yield waiting[:enough]
            waiting, enough = waiting[enough:], len(rows.rows)
    if waiting:
        yield waiting


def _compare(evaluated: Sequence[Evaluated], reference: Reference, shared: int, comparison: Comparison) -> None:
    """Compare rows with torch: every token of prompt and answer, and the greedy answers of the file."""
    asked = [each for each in evaluated if each.greedy]
    texts = [(each.row.prompt, [*each.row.answer, UNREAD]) for each in evaluated]
    texts += [(each.row.prompt, each.greedy) for each in asked]
    theirs = reference.logits([prompt for prompt, _ in texts], [answer for _, answer in texts], shared)
    for each, their in zip(evaluated, theirs, strict=False):
        comparison.add_row(each.logits, their)
    for each, their in zip(asked, theirs[len(evaluated) :], strict=True):
        comparison.add_greedy(each.greedy_logits, their[-len(each.greedy) :], each.greedy, ended=each.ended)
