"""The source of an export as every later step sees it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from export.original.rows import Rows
from export.original.sources import Source
from export.original.tokenizer import TokenizerOrigin
from gladstone import file_names
from gladstone.artifacts import FileRecord, check_file
from gladstone.errors import ArtifactError, listed
from gladstone.models.base_model import Base, fingerprint

Origin = Literal["run", "adapter", "folder"]
# facts of a run that the model card shows
KEPT_FACTS = ("rows", "steps", "held_out_loss_before", "held_out_loss_after", "warnings")


@dataclass(frozen=True)
class SourceOptions:
    """What the user says about a source besides its path: base, chat template, rows for the proof."""

    base: str | None = None  # a folder or a Hub id
    template: str | None = None  # a Jinja file, or the name of a built-in template
    rows: Path | None = None


@dataclass(frozen=True)
class Training:
    """What is known of a model's training. Unknown items are empty here and listed in `unknown`."""

    description: str = ""
    method: str | None = None  # as a tag: lora, qlora
    settings: tuple[tuple[str, str], ...] = ()  # names and values for people
    facts: Mapping[str, Any] = field(default_factory=dict)  # from the run's manifest
    datasets: tuple[Source, ...] = ()
    base: Source | None = None
    license: str | None = None
    subjects: tuple[str, ...] = ()  # as tags
    seed: int | None = None
    template_date: datetime | None = None  # the date that the template rendered in training
    unknown: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """JSON for the manifest of a merged model, so that a later export knows its training; keeps few facts."""
        facts = {name: self.facts[name] for name in KEPT_FACTS if name in self.facts}
        date = self.template_date.isoformat() if self.template_date else None
        return asdict(self) | {"facts": facts, "template_date": date}

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> "Training":
        """What `as_json` wrote. Raises ArtifactError for anything else."""
        try:
            date, base = found["template_date"], found["base"]
            return Training(**dict(found) | {
                "settings": tuple((str(name), str(value)) for name, value in found["settings"]),
                "datasets": tuple(Source(**each) for each in found["datasets"]),
                "base": Source(**base) if base else None,
                "subjects": tuple(found["subjects"]),
                "template_date": datetime.fromisoformat(date) if date else None,
                "unknown": tuple(found["unknown"]),
            })  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"the manifest of the merged model has an unknown training format ({error}).") from None


@dataclass(frozen=True)
class Original:
    """A base, perhaps an adapter on it, and their tokenizer and chat template.

    `base` holds the weights; of a model's folder it is that folder. `adapter` is a folder as PEFT writes it; None where
    there is nothing to merge. `tokenizer` is a folder prepared for this export: the files of TOKENIZER_FILES from
    wherever they were found (the run; the adapter's folder if it has a tokenizer; else the base), and the chat template
    as chat_template.jinja, in no other place. It may hold more entries than the base's own. It lasts as long as the
    original is open. `found_in` says where tokenizer and template come from.

    `files` are those under `home` that it is made from, besides the base; `key` changes with any of them.
    """

    origin: Origin
    home: Path  # the folder that the user gave
    name: str  # prefix of the file names
    base: Base
    adapter: Path | None
    tokenizer: Path
    found_in: TokenizerOrigin
    training: Training
    rows: Rows
    files: tuple[FileRecord, ...]
    key: tuple[str, ...]
    parents: Mapping[str, str]
    notes: tuple[str, ...] = ()
    calibration: Path | None = None  # its training rows, in the layout of a run

    @property
    def template_source(self) -> str:
        """The chat template of the exported files."""
        return (self.tokenizer / file_names.CHAT_TEMPLATE).read_text(encoding="utf-8")

    @property
    def adapters(self) -> tuple[tuple[Path, float], ...]:
        """The adapter to merge, with weight 1; empty without one."""
        return ((self.adapter, 1.0),) if self.adapter else ()

    @property
    def warnings(self) -> list[str]:
        """Known problems of its training."""
        return serious_warnings(self.training.facts)

    def unchecked(self) -> list[str]:
        """What the proof cannot show for this source, as parts of a sentence."""
        found = []
        if self.adapter:
            found.append("that the base is the one used in training: an adapter shows only names and shapes")
        if self.found_in.template == "the base":
            found.append("that the training used the base's chat template")
        if not self.rows.measures:
            found.append("how well the model answers questions that it was not trained on")
        return found

    def check_unchanged(self) -> None:
        """Raises ArtifactError if base or adapter have changed since the source was opened."""
        for record in self.files:
            check_file(self.home / record.path, record)
        if fingerprint(self.base.folder) != self.base.fingerprint:
            raise ArtifactError(f"{self.base.folder}: the base changed while it was read. Export again.")

    def check_apart(self, out: Path) -> None:
        """Raises ArtifactError if `out` is a folder that the export reads."""
        for taken, what in self._taken():
            if out.exists() and out.samefile(taken):
                raise ArtifactError(f"{out}: is the folder of {what}. Choose another one with --out.")

    def _taken(self) -> Iterator[tuple[Path, str]]:
        yield self.home, {"run": "the run", "adapter": "the adapter", "folder": "the model"}[self.origin]
        yield self.base.folder, "the base"
        if self.adapter:
            yield self.adapter, "the adapter"


def serious_warnings(facts: Mapping[str, Any]) -> list[str]:
    """The serious warnings in a run's facts, without final full stops."""
    found = facts.get("warnings") or []
    return [str(each.get("text")) for each in found if isinstance(each, dict) and each.get("serious")]


def check_accepted(folder: Path, warnings: Sequence[str], *, accepted: bool) -> None:
    """Raises ArtifactError listing the training problems of a source, unless the user accepts them."""
    if warnings and not accepted:
        raise ArtifactError(
            f"{listed(f'{folder}: its training went wrong', warnings)}\nTrain again, or continue with --yes."
        )
