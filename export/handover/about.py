"""Who made a model, of what, and under which licence: for the GGUF's own metadata and the model card."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.run import Run
from gladstone.artifacts import Manifest
from gladstone.basemodel import EMBEDDED

HUB = "https://huggingface.co/"
TAGS = ("medical", "question-answering", "gladstone")
EMBEDDED_ID, EMBEDDED_LICENSE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
SAMPLES_LICENSE = "apache-2.0"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.S)


@dataclass(frozen=True)
class Source:
    """A model or a data set that this one was made of; `hub_id` is None for what lies on a disk."""

    name: str
    hub_id: str | None
    license: str | None

    def as_metadata(self, kind: str) -> dict[str, str]:
        """As GGUF has it; `kind` is what the Hub puts before a name: '' for models, 'datasets/'."""
        if self.hub_id is None:
            return {"name": self.name}
        organization, _, name = self.hub_id.partition("/")
        return {"name": name, "organization": organization, "repo_url": f"{HUB}{kind}{self.hub_id}"}


@dataclass(frozen=True)
class About:
    """A model's name, makers, licence and sources."""

    name: str
    description: str
    author: str | None
    license: str | None
    base: Source
    datasets: tuple[Source, ...]
    tags: tuple[str, ...]
    languages: tuple[str, ...] = ()

    def as_metadata(self) -> dict[str, Any]:
        """The fields of the converter's metadata that are known."""
        fields = {
            "description": self.description or None,
            "author": self.author,
            "license": self.license,
            "base_models": [self.base.as_metadata("")],
            "datasets": [each.as_metadata("datasets/") for each in self.datasets] or None,
            "tags": list(self.tags),
            "languages": list(self.languages) or None,
        }
        return {name: value for name, value in fields.items() if value is not None}


def about_run(
    run: Run, author: str | None = None, license_id: str | None = None, languages: tuple[str, ...] = ()
) -> About:
    """What a run made; its licence is the base's, unless another is given."""
    config = run.manifest.config
    base = _base(run)
    return About(
        name=run.name,
        description=str(config.get("description") or ""),
        author=author,
        license=license_id or base.license,
        base=base,
        datasets=datasets_of(run.manifest),
        tags=(*TAGS, "qlora" if config["base"]["load_in_4bit"] else "lora"),
        languages=languages,
    )


def about_base(run: Run) -> About:
    """The untouched base of a run, as it is exported beside it."""
    base = _base(run)
    return About(f"{run.name}-base", f"the untouched {base.name}", None, base.license, base, (), ("gladstone",))


def datasets_of(manifest: Manifest) -> tuple[Source, ...]:
    """The data sets that a recipe names."""
    found = []
    for source in manifest.config["data"]["sources"]:
        path, hub_id = str(source["path"]), None
        if path.startswith("hub:"):
            hub_id = path.removeprefix("hub:")
        name = hub_id or (path if path.startswith("sample:") else Path(path).name)
        owned = SAMPLES_LICENSE if path.startswith("sample:") else None
        found.append(Source(name, hub_id, source.get("license") or owned))
    return tuple(found)


def _base(run: Run) -> Source:
    if run.base.name == EMBEDDED:
        return Source(EMBEDDED_ID, EMBEDDED_ID, EMBEDDED_LICENSE)
    declared = run.manifest.config["base"].get("license") or license_of(run.base.folder)
    if HUB_ID.fullmatch(run.base.name) and not Path(run.base.name).is_dir():
        return Source(run.base.name, run.base.name, declared)
    return Source(Path(run.base.name).name, None, declared)


def license_of(folder: Path) -> str | None:
    """The licence that a model's card names, if its folder has a card."""
    import yaml

    try:
        found = FRONT_MATTER.match((folder / "README.md").read_text(encoding="utf-8"))
        card = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    license_id = card.get("license") if isinstance(card, dict) else None
    return license_id if isinstance(license_id, str) else None
