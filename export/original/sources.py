"""The models and data sets that a model was made from, with Hub ids and licences."""

import re
from dataclasses import dataclass
from pathlib import Path

from gladstone.models.base_model import Base
from gladstone.models.embedded_model import EMBEDDED

HUB = "https://huggingface.co/"
EMBEDDED_ID, EMBEDDED_LICENSE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.S)


@dataclass(frozen=True)
class Source:
    """A model or data set; `hub_id` is None for local ones."""

    name: str
    hub_id: str | None
    license: str | None

    def as_metadata(self, kind: str) -> dict[str, str]:
        """GGUF metadata; `kind` is the Hub's URL prefix: '' for models, 'datasets/'."""
        if self.hub_id is None:
            return {"name": self.name}
        organization, _, name = self.hub_id.partition("/")
        return {"name": name, "organization": organization, "repo_url": f"{HUB}{kind}{self.hub_id}"}


def source_of(base: Base, declared: str | None = None) -> Source:
    """A base as a source; its licence is `declared`, else the one in its model card."""
    if base.name == EMBEDDED:
        return Source(EMBEDDED_ID, EMBEDDED_ID, EMBEDDED_LICENSE)
    license_id = declared or license_of(base.folder)
    if HUB_ID.fullmatch(base.name) and not Path(base.name).is_dir():
        return Source(base.name, base.name, license_id)
    return Source(Path(base.name).name, None, license_id)


def license_of(folder: Path) -> str | None:
    """The licence in a folder's model card; None without one."""
    import yaml

    try:
        found = FRONT_MATTER.match((folder / "README.md").read_text(encoding="utf-8"))
        card = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    license_id = card.get("license") if isinstance(card, dict) else None
    return license_id if isinstance(license_id, str) else None
