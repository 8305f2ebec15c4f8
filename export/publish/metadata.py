"""Author, sources and licence of a model, for the GGUF metadata and the model card."""

from dataclasses import dataclass
from typing import Any

from export.original.model import Original
from export.original.sources import Source

TAGS = ("gladstone",)


@dataclass(frozen=True)
class About:
    """Name, author, licence and sources of a model."""

    name: str
    description: str
    author: str | None
    license: str | None
    base: Source | None  # None: unknown
    datasets: tuple[Source, ...]
    tags: tuple[str, ...]
    languages: tuple[str, ...] = ()

    @property
    def base_name(self) -> str:
        """The base's name, or 'unknown'."""
        return self.base.name if self.base else "unknown"

    def as_metadata(self) -> dict[str, Any]:
        """The known fields of the converter's metadata."""
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
    """Metadata of a model; the licence is `license_id`, else that of its training."""
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
    """Metadata of the untouched base."""
    base = original.training.base
    what = f"the untouched {base.name if base else original.base.name}"
    return About(f"{original.name}-base", what, None, base.license if base else None, base, (), TAGS)
