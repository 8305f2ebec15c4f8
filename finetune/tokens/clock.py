"""The time that a chat template may print: fixed when a run begins, and the same after every resumption."""

from datetime import datetime
from pathlib import Path

from finetune.config.schema import Recipe
from gladstone import run_folder
from gladstone.chat.template import CLOCK, ChatTemplate
from gladstone.config import read_yaml
from gladstone.errors import ConfigError

FIELD = "base.template_date"


def time_of(recipe: Recipe, out: Path, *, resume: bool, began: datetime | None = None) -> datetime:
    """Return the time that labels are made with.

    It is the recipe's, otherwise that of the resumed run, otherwise `began`, otherwise the current time.
    """
    stored = _stored(out) if resume else None
    return recipe.base.template_date or stored or began or now()


def now() -> datetime:
    """Return the local time to the second, as recipes store it."""
    return datetime.now().replace(microsecond=0)


def _stored(out: Path) -> datetime | None:
    try:
        base = read_yaml(out / run_folder.RECIPE).get("base")
        return datetime.fromisoformat(base["template_date"]) if isinstance(base, dict) else None
    except (ConfigError, KeyError, TypeError, ValueError):  # nothing stored, or the run is of an older version
        return None


def with_time(recipe: Recipe, template: ChatTemplate) -> Recipe:
    """Return the recipe with the time that its template prints; unchanged if the template uses no clock."""
    if CLOCK not in template.source:
        return recipe
    return recipe.model_copy(update={"base": recipe.base.model_copy(update={"template_date": template.now})})


def note(template: ChatTemplate, recipe: Recipe) -> str | None:
    """Return a note on the time in the prompts, None if there is nothing to report."""
    if template.depends_on_time:
        return f"the chat template writes the date: every row is trained with {template.now} ({FIELD})"
    if recipe.base.template_date is not None and CLOCK not in template.source:
        return f"{FIELD} changes nothing: the chat template writes no date"
    return None
