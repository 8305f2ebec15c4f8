"""Loads the tokenizer and the template of a base, and makes examples of rows with them."""

from collections.abc import Callable
from datetime import datetime
from functools import cached_property

from finetune.config.schema import Recipe
from finetune.tokens import clock
from finetune.tokens.labeller import Labeller
from finetune.tokens.refusals import RowCheck
from gladstone.chat.template import ChatTemplate
from gladstone.commands.progress import Progress, step
from gladstone.models.base_model import Base
from gladstone.models.tokenizer import FolderTokenizer, load_tokenizer


class RowReader:
    """Loads everything once and lazily: a base is fetched only if there are rows to read.

    `now` is the time that a template may print; `before` is called before the tokenizer's library is imported.
    """

    def __init__(
        self,
        recipe: Recipe,
        find: Callable[[], Base],
        progress: Progress,
        now: datetime | None = None,
        before: Callable[[Base], None] = lambda _base: None,
    ) -> None:
        self.recipe = recipe
        self._find, self._before, self._progress = find, before, progress
        self._now = now or recipe.base.template_date or clock.now()

    @cached_property
    def base(self) -> Base:
        """The base, on local disk."""
        return self._find()

    @cached_property
    def tokenizer(self) -> FolderTokenizer:
        """The base's tokenizer."""
        self._before(self.base)
        return load_tokenizer(self.base.folder)

    @cached_property
    def template(self) -> ChatTemplate:
        """The recipe's template, or the base's own."""
        return self.tokenizer.template(self.recipe.own_template(), now=self._now, name=self.recipe.template_name)

    @cached_property
    def labeller(self) -> Labeller:
        """Makes examples of rows within the recipe's limits."""
        return Labeller(self.template, self.tokenizer, self.recipe.limits, pairs=self.base.is_encoder_decoder)

    def check(self) -> RowCheck:
        """Load everything, and return the check that the base makes of a row."""
        base = self.base  # may be fetched, which reports its own progress
        with step(self._progress, f"Loading the tokenizer of {base.name}"):
            return self.labeller.check
