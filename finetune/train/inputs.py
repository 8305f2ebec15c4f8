"""The inputs of a run: recipe, base, tokenizer, template and tokenised rows, and their identity for later calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from finetune.config.schema import Recipe
from finetune.data.division import SETS
from finetune.data.prepare import Summary, has_set, read_set
from finetune.data.sources import source_file
from finetune.model.context_length import check_context
from finetune.model.load import import_first
from finetune.model.sharding import check_sharding
from finetune.tokens import clock, token_cache
from finetune.tokens.examples import TokenizedSet
from finetune.tokens.labeller import tokenize_all
from finetune.tokens.row_reader import RowReader
from gladstone import file_names, run_folder
from gladstone.artifacts import copy_file, sha256_path, write_text
from gladstone.chat.named_templates import CONTROL_TEXT
from gladstone.chat.template import CLOCK, ChatTemplate
from gladstone.commands.progress import Progress, step
from gladstone.config import current_names
from gladstone.errors import DataError, UnsupportedError
from gladstone.machine.packages import installed_versions
from gladstone.models.base_model import Base, check_weights, resolve_base
from gladstone.models.tokenizer import FolderTokenizer, tokenizer_files
from gladstone.strict_json import json_text

# fields of a recipe that may differ between the calls of one run, because they do not change the training
FREE_FIELDS = ("description", "hub", "training.checkpoint_minutes", "training.checkpoint_steps",
               "training.keep_checkpoints", "training.report_to", "training.final",
               "training.process_timeout_minutes")  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run; a set without rows has no examples."""

    out: Path
    recipe: Recipe
    base: Base
    tokenizer: FolderTokenizer
    template: ChatTemplate
    sets: dict[str, TokenizedSet]
    summary: Summary

    @cached_property
    def parents(self) -> dict[str, str]:
        """Hashes of the base and of the data files, computed when the rows are read."""
        data = self.recipe.data
        files = {
            f"data:{source.path}": sha256_path(source_file(source))
            for source in (*data.sources, *data.own_files.values())
        }
        return {"base": self.base.fingerprint} | files

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What all calls of a run must share."""
        folder = self.out / run_folder.DATA
        rows = {
            f"rows:{name}": sha256_path(run_folder.set_path(folder, name)) for name in SETS if has_set(folder, name)
        }
        inputs = self.parents | rows | {"chat template": self.template.sha256}
        return {"recipe": self.recipe.model_dump(mode="json"), "inputs": inputs}

    def sources(self, examples: Sequence[int], name: str = "train") -> list[str]:
        """Return the file and line of examples of a set."""
        wanted = {self.sets[name].rows[example] for example in examples}
        rows = enumerate(read_set(self.out / run_folder.DATA, name))
        return [conversation.source for row, conversation in rows if row in wanted]


def reader_of(recipe: Recipe, progress: Progress, now: datetime) -> RowReader:
    """Return the reader of a run's rows; `now` is the time for a chat template that writes it.

    Its base raises UnsupportedError if it cannot be trained, ConfigError if rows may be longer than its context, and
    what `resolve_base` and `check_weights` raise.
    """

    def find() -> Base:
        base = resolve_base(recipe.base.model, progress)
        check_context(recipe, base)
        check_sharding(recipe, base)
        check_weights(base)
        if recipe.base.load_in_4bit and base.is_encoder_decoder:
            raise UnsupportedError(
                f"{base.name}: encoder–decoder models are trained in float32; set base.load_in_4bit=false."
            )
        return base

    return RowReader(recipe, find, progress, now, import_first)


def read_inputs(reader: RowReader, out: Path, progress: Progress, summary: Summary) -> Inputs:
    """Load and tokenise the rows. If the template writes the time, the recipe stores it.

    Raises DataError if the rows do not fill a step, and what its parts raise.
    """
    base, recipe = reader.base, reader.recipe
    with step(progress, "Loading the tokenizer and the rows"):
        tokenizer, template = reader.tokenizer, reader.template
        recipe = clock.with_time(recipe, template)
        if recipe.base.chat_template is not None:  # a base's own template may spell them out, as TinyLlama's does
            _check_vocabulary(template, tokenizer)
        sets = _tokenize(out / run_folder.DATA, template, tokenizer, (recipe, base))
        hits = limits_hit(sets, recipe.base.max_tokens)
        progress.update(None, ", ".join(f"{count:,} {what}" for count, what in hits))
    for name, tokenized in sets.items():
        if has_set(out / run_folder.DATA, name) and not any(example.target_tokens for example in tokenized.examples):
            raise DataError(f"no token of the {name} rows is scored: nothing can be learnt or measured from them.")
    rows, per_step = len(sets["train"].examples), recipe.training.rows_per_step
    if per_step > rows:
        raise DataError(
            f"a step takes {per_step:,} rows (training.batch_size × training.accumulation), but there are only "
            f"{rows:,} training rows. Lower training.batch_size or add rows."
        )
    inputs = Inputs(out, recipe, base, tokenizer, template, sets, summary)
    inputs.parents  # noqa: B018 - hashed now, since the files may change during training
    return inputs


def _check_vocabulary(template: ChatTemplate, tokenizer: FolderTokenizer) -> None:
    named = sorted(set(CONTROL_TEXT.findall(template.source)))
    lacking = [text for text in named if len(tokenizer.encode(text)) != 1]
    if lacking:
        raise DataError(
            f"base.chat_template: it names {', '.join(lacking)}, which the base's vocabulary lacks: the model would "
            "learn them letter by letter, and nothing would end its answers. Choose a template for this kind of "
            "model, or template:question-answer."
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences between two identities, one line each."""

    def flat(values: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(values, dict):
            return {prefix: values}
        return {name: value for key, inner in values.items() for name, value in flat(
            inner, f"{prefix}.{key}" if prefix else key).items()}  # fmt: skip

    old, new = (flat(recipe) for recipe in (_completed(before.get("recipe", {}), now["recipe"]), now["recipe"]))
    changed = [
        f"{name}: {json_text(old.get(name))} before, {json_text(new.get(name))} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not name.startswith(FREE_FIELDS)
    ]
    files, files_now = before.get("inputs", {}), now["inputs"]
    changed += [
        f"{name} has changed"
        for name in sorted(files.keys() | files_now.keys())
        if files.get(name) != files_now.get(name)
    ]
    return changed


def _completed(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Complete a recipe of an older version with the defaults of newer fields, and with the current date."""
    try:
        made = Recipe.model_validate(current_names(Recipe, before)[0]).model_dump(mode="json")
    except ValidationError:
        return before
    if "template_date" not in before.get("base", {}):
        made["base"]["template_date"] = now["base"].get("template_date")
    return made


def _tokenize(
    data: Path, template: ChatTemplate, tokenizer: FolderTokenizer, chosen: tuple[Recipe, Base]
) -> dict[str, TokenizedSet]:
    recipe, base = chosen
    pairs = base.is_encoder_decoder

    def tokenize(name: str) -> TokenizedSet:
        return tokenize_all(read_set(data, name), template, tokenizer, recipe.limits, pairs=pairs)

    parts = {
        "template": template.sha256,
        "tokenizer": {path.name: sha256_path(path) for path in tokenizer_files(base.folder)},
        "limits": vars(recipe.limits),
        "pairs": pairs,
        "date": template.now if CLOCK in template.source else None,
        "versions": installed_versions("gladstone", "transformers", "tokenizers"),
    }
    sets = {
        name: token_cache.cached(
            parts | {"rows": sha256_path(run_folder.set_path(data, name))}, partial(tokenize, name)
        )[0]
        for name in SETS
        if has_set(data, name)
    }
    return {name: sets.get(name, TokenizedSet(())) for name in SETS}


def limits_hit(sets: Mapping[str, TokenizedSet], max_tokens: int) -> list[tuple[int, str]]:
    """Return how many rows each limit affected, with a description; limits that affected none are omitted."""
    counts = {
        f"rows of more than {max_tokens:,} tokens left out": sum(tokenized.too_long for tokenized in sets.values()),
        f"cut to {max_tokens:,} tokens": sum(tokenized.cut for tokenized in sets.values()),
        "with their reasoning cut": sum(tokenized.reasoning_cut for tokenized in sets.values()),
        "left out because no turn is scored": sum(tokenized.unscored for tokenized in sets.values()),
    }
    return [(count, what) for what, count in counts.items() if count]


def write_inputs(inputs: Inputs) -> None:
    """Write recipe, template and tokenizer into the run folder."""
    out, folder = inputs.out, inputs.base.folder
    write_text(out / run_folder.RECIPE, yaml.safe_dump(inputs.recipe.model_dump(mode="json"), sort_keys=False))
    write_text(out / file_names.CHAT_TEMPLATE, inputs.template.source)
    for name in file_names.TOKENIZER_FILES:
        if (folder / name).is_file():
            copy_file(folder / name, out / run_folder.TOKENIZER / name)
        else:  # left by a run with another base, stopped in this folder
            (out / run_folder.TOKENIZER / name).unlink(missing_ok=True)
    write_text(out / run_folder.TOKENIZER / file_names.CHAT_TEMPLATE, inputs.template.source)
