"""Who made a model, of what, and under which licence: for the GGUF's own metadata and the model card."""

from dataclasses import dataclass
from typing import Any

from export.original.model import Original
from export.original.sources import Source

TAGS = ("gladstone",)


@dataclass(frozen=True)
class About:
    """A model's name, makers, licence and sources."""

    name: str
    description: str
    author: str | None
    license: str | None
    base: Source | None  # None: not known
    datasets: tuple[Source, ...]
    tags: tuple[str, ...]
    languages: tuple[str, ...] = ()

    @property
    def base_name(self) -> str:
        """What it was made of, for people."""
        return self.base.name if self.base else "unknown"

    def as_metadata(self) -> dict[str, Any]:
        """The fields of the converter's metadata that are known."""
        fields = {
            "description": self.description or None,
            "author": self.author,
            "license": self.license,
            "base_models": [self.base.as_metadata("")] if self.base else None,
            "datasets": [each.as_metadata("datasets/") for each in self.datasets] or None,
            "tags": list(self.tags),
            "languages": list(self.languages) or None,
        }
        return {name: value for name, value in fields.items() if value is not None}


def about_model(
    original: Original, author: str | None = None, license_id: str | None = None, languages: tuple[str, ...] = ()
) -> About:
    """What is known of a model; its licence is as its training says, unless another is given."""
    training = original.training
    return About(
        name=original.name,
        description=training.description,
        author=author,
        license=license_id or training.license,
        base=training.base,
        datasets=training.datasets,
        tags=(*training.subjects, *TAGS, *([training.method] if training.method else [])),
        languages=languages,
    )


def about_base(original: Original) -> About:
    """The untouched base of a model, as it is exported beside it."""
    base = original.training.base
    what = f"the untouched {base.name if base else original.base.name}"
    return About(f"{original.name}-base", what, None, base.license if base else None, base, (), TAGS)
