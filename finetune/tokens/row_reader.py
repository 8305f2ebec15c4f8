"""How a base reads rows: its tokenizer, its template and what they make of a row, for all that asks about rows."""

from collections.abc import Callable
from datetime import datetime
from functools import cached_property

from finetune.config.schema import Recipe
from finetune.model.load import is_seq2seq
from finetune.tokens import clock
from finetune.tokens.refusals import RowCheck
from finetune.tokens.tokenize import Labeller
from gladstone.chat.template import ChatTemplate
from gladstone.commands.progress import Progress, step
from gladstone.models.base_model import Base
from gladstone.models.tokenizer import FolderTokenizer, load_tokenizer


class Reader:
    """Loads once, and when first asked: a base is fetched only for rows that can be read.

    `now` is the time that a template may write, `before` what is done before the tokenizer's library is imported.
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
        """The base, here on disk."""
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
        """What makes examples of rows, within the recipe's limits."""
        return Labeller(self.template, self.tokenizer, self.recipe.limits, pairs=is_seq2seq(self.base))

    def check(self) -> RowCheck:
        """What asks the base about a row, everything loaded."""
        found = self.base  # which may be fetched, and says so itself
        with step(self._progress, f"Loading the tokenizer of {found.name}"):
            return self.labeller.check
