"""The rows that every model can process, found before any model is loaded: all get the same rows and context."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.config import BenchConfig
from bench.measure.child import run_token_counts
from bench.measure.items import Items, group_by_reason
from bench.measure.prompts import PromptSettings
from bench.measure.token_counts import ContextLimits, RowTokens, TokenCountJob
from bench.results import ModelFile
from gladstone.commands.progress import Progress, step
from gladstone.errors import DataError, listed

TOO_LONG, REFUSED = "longer than the context", "refused by a chat template"
ROUND = 256  # tokens: an advised context size is a multiple of this


@dataclass(frozen=True)
class SelectedRows:
    """The items that every model can process, in the context of `frame`; `tokens` are their counts for each model."""

    items: Items
    frame: PromptSettings
    tokens: tuple[tuple[RowTokens, ...], ...]
    notes: tuple[str, ...] = ()


def select_rows(
    models: Sequence[ModelFile], items: Items, how: tuple[BenchConfig, PromptSettings], progress: Progress
) -> SelectedRows:
    """Count the tokens of every row for every model, and select the rows that fit all models.

    Raises DataError for rows that do not fit, unless they are skipped, and if fewer than two are left.
    """
    config, frame = how
    limits, tokens = zip(*(_count(model, items, frame, progress) for model in models), strict=True)
    context = min(room.context_tokens for room in limits)
    bad: dict[int, tuple[str, str]] = {}
    for model, rows in zip(models, tokens, strict=True):
        of_model = f" of {model.label}" if len(models) > 1 else ""
        for place, row in enumerate(rows):
            if place not in bad and (found := _problem(row, context, of_model)):
                bad[place] = (found[0], f"{items.items[place].source}: {found[1]}")
    if bad and not config.skip_bad:
        reasons = [text for _, (_, text) in sorted(bad.items())]
        headline = f"{config.data}: rows that a model cannot process ({_advice(models, limits, tokens)})"
        raise DataError(listed(headline, reasons))
    good = [place for place in range(len(items.items)) if place not in bad]
    if len(good) < 2:
        raise DataError(
            f"{config.data}: {len(good)} of {len(items.items)} rows can be measured, expected at least 2: one row "
            f"gives no interval. {_advice(models, limits, tokens)}"
        )
    left_out = (*items.left_out, *group_by_reason([reason for _, reason in sorted(bad.items())]))
    kept = replace(items, items=tuple(items.items[place] for place in good), left_out=left_out)
    selected = replace(frame, context_tokens=context)
    return SelectedRows(
        kept, selected, tuple(tuple(rows[place] for place in good) for rows in tokens), _notes(models, limits)
    )


def _count(
    model: ModelFile, items: Items, frame: PromptSettings, progress: Progress
) -> tuple[ContextLimits, tuple[RowTokens, ...]]:
    with step(progress, f"{model.label}: count the rows' tokens"):
        job = TokenCountJob(model.path, items.items, frame)
        count = len(items.items)
        found = run_token_counts(job, model.label, lambda row: progress.update(row / count, f"row {row} of {count}"))
        progress.update(None)
    return found


def _problem(row: RowTokens, context: int, of_model: str) -> tuple[str, str] | None:
    if row.refused:
        return REFUSED, f"{row.refused}{f' ({of_model.strip()})' if of_model else ''}"
    if row.needed > context:
        return TOO_LONG, f"{row.needed:,} tokens{of_model}, more than the context of {context:,} tokens."
    return None


def _advice(models: Sequence[ModelFile], limits: Sequence[ContextLimits], tokens: Sequence[Sequence[RowTokens]]) -> str:
    """The options that fit the rows in or leave them out."""
    context = min(room.context_tokens for room in limits)
    longest = max(row.needed for rows in tokens for row in rows)
    ways = ["--skip-bad leaves them out for all models"]
    if longest > context:
        wanted = -(-longest // ROUND) * ROUND
        most, least = min((room.trained_tokens, model.label) for room, model in zip(limits, models, strict=True))
        if most >= longest:
            ways.insert(0, f"--context {min(wanted, most)} fits all of them")
        elif most > context:
            ways.append(f"--context {most} fits more of them, the most that {least} was trained for")
        else:
            ways.append(f"{least} was trained for a context of {most:,} tokens")
    return "; ".join(ways)


def _notes(models: Sequence[ModelFile], limits: Sequence[ContextLimits]) -> tuple[str, ...]:
    """A note if the models would have had different context sizes."""
    contexts = {room.context_tokens for room in limits}
    if len(contexts) == 1:
        return ()
    smallest, label = min((room.context_tokens, model.label) for room, model in zip(limits, models, strict=True))
    return (f"every model is measured with a context of {smallest:,} tokens, the largest for {label} on this machine",)
