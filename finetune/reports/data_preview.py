"""`finetune data preview`: rows as the trainer sees them, with scored text, token counts and truncation."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

from finetune.config.schema import Recipe
from finetune.data.cleaning.changes import NO_CHANGES, Changes, clean_for_preview, describe_changes
from finetune.data.sources import source_file, source_layout
from finetune.tokens import clock
from finetune.tokens.examples import Example, TokenizedSet, scored_spans
from finetune.tokens.labeller import NOTHING_SCORED
from finetune.tokens.refusals import RefusedError
from finetune.tokens.row_reader import RowReader
from finetune.tokens.tokenize import TextTokenizer, scored_texts
from gladstone.chat.messages import Conversation
from gladstone.commands.progress import Progress
from gladstone.formats import Notes, iter_conversations
from gladstone.models.base_model import resolve_base
from gladstone.rows import Problems

COUNTED_ROWS = 1000  # rows that are read to count how many the limits affect


@dataclass(frozen=True)
class Preview:
    """One row; `fate` says how it is truncated or why it is left out (then without examples), '' for neither."""

    source: str
    fate: str
    examples: tuple[Example, ...]
    whole_tokens: int
    changes: Changes = NO_CHANGES
    refused: str = ""  # the reason why the base cannot be trained on it


class Previewer:
    """Previews the rows of a recipe with its base, template and limits."""

    def __init__(self, recipe: Recipe, progress: Progress) -> None:
        self.recipe = recipe
        for source in recipe.data.files:  # report a missing file here too, as a run does
            source_layout(source)
        reader = RowReader(recipe, partial(resolve_base, recipe.base.model, progress), progress)
        self.labeller, self.base = reader.labeller, reader.base
        self.tokenizer, self.template = reader.tokenizer, reader.template
        self.counts: Counter[str] = Counter()
        self.steps: Counter[str] = Counter()  # cleaning steps that changed a row, or would
        self.scored: list[Example] = []  # examples of the rows read
        self.refused: Counter[str] = Counter()  # row counts by reason
        self.looked_at = 0
        self.problems, self.notes = Problems(), Notes()

    def previews(self, rows: int) -> Iterator[Preview]:
        """Yield previews of the first rows; `counts` covers at least the first thousand rows."""
        for number, row in enumerate(islice(self._rows(), max(rows, COUNTED_ROWS))):
            preview = self._preview(row)
            self.looked_at += 1
            self.counts[preview.fate] += 1
            self.refused.update([preview.refused] if preview.refused else [])
            if number < rows:
                yield preview

    def _rows(self) -> Iterator[Conversation]:
        for source in self.recipe.data.sources:
            found = iter_conversations(source_file(source), source_layout(source), self.problems, self.notes)
            yield from islice(found, source.first_rows)

    def _preview(self, row: Conversation) -> Preview:
        row, changes, why = clean_for_preview(row, self.recipe.data.cleaning)
        self.steps.update((*changes.steps, *changes.noted))
        if why:
            return Preview(row.source, f"left out: {why}", (), 0, changes)
        try:
            whole = self.labeller.untruncated(row)
            examples, fate = self.labeller.examples(self.labeller.shorten_reasoning(row))
        except RefusedError as error:
            return Preview(row.source, f"left out: {error.detail}", (), 0, changes, error.reason)
        tokens = max((len(example.input_ids) for example in whole), default=0)
        limit = f"{tokens:,} tokens, more than base.max_tokens {self.recipe.base.max_tokens:,}"
        unscored = f"left out: {NOTHING_SCORED} (data.train={self.recipe.data.train})"
        fates = {"too long": f"left out: {limit}", "cut": f"cut: {limit}", "": "", NOTHING_SCORED: unscored}
        self.scored.extend(examples)
        return Preview(row.source, fates[fate], tuple(examples), tokens, changes)


def describe(preview: Preview, number: int, tokenizer: TextTokenizer, *, colour: bool) -> str:
    """A row for the terminal; without colour, scored text is marked by ⟦ and ⟧."""
    import click

    scored = sum(example.target_tokens for example in preview.examples)
    tokens = sum(len(example.input_ids) for example in preview.examples)
    turns = sum(map(scored_spans, preview.examples))
    head = f"── {number}  {preview.source}  {tokens:,} tokens, {scored:,} scored in {turns} turn{'s' * (turns != 1)}"
    if len(preview.examples) > 1:
        head += f", {len(preview.examples)} examples"
    if preview.fate:
        head += f"  ✂ {preview.fate}"
    lines = [click.style(head, bold=True) if colour else head, *describe_changes(preview.changes, colour=colour)]
    for example in preview.examples:
        parts = [
            (click.style(_visible(text), fg="green") if colour else f"⟦{_visible(text)}⟧")
            if is_scored
            else (click.style(_visible(text), dim=True) if colour else _visible(text))
            for text, is_scored in scored_texts(example, tokenizer)
        ]
        lines.append("".join(parts))
    return "\n".join(lines)


def _visible(text: str) -> str:
    """The text with control characters but line ends escaped, so that a row cannot move the cursor."""
    return "".join(char if char.isprintable() or char == "\n" else f"\\x{ord(char):02x}" for char in text)


def summary(previewer: Previewer) -> str:
    """What is scored in the rows read, and how many are truncated or left out."""
    counts: Counter[str] = Counter()
    for fate, count in previewer.counts.items():
        counts[fate.partition(":")[0]] += count
    left_out, cut = counts["left out"], counts["cut"]
    notes = "".join(f"\nnote: {note}" for note in (*previewer.problems.noted(), *previewer.notes.lines()))
    steps = ", ".join(f"{name} {count:,}" for name, count in previewer.steps.items())
    steps = f"\ncleaning, rows changed or reported: {steps}" if steps else ""
    refused = "".join(f"\nleft out: {count:,} {reason}" for reason, count in previewer.refused.items())
    refused += " (a run needs --skip-bad for it)" if refused else ""
    bad = f", {previewer.problems.count:,} more are unreadable" if previewer.problems.count else ""
    scored = TokenizedSet(tuple(previewer.scored)).scored
    date_note = clock.note(previewer.template, previewer.recipe)
    return (f"{date_note}\n" if date_note else "") + (
        f"scored: {scored}\n"
        f"of {previewer.looked_at:,} rows {left_out:,} left out, {cut:,} cut{bad}; base {previewer.base.name}, "
        f"template {previewer.template.sha256[:12]}…, at most {previewer.recipe.base.max_tokens:,} tokens"
        f"{refused}{steps}{notes}"
    )
