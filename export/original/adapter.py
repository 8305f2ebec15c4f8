"""A PEFT adapter by any tool as the source of an export."""

from dataclasses import dataclass
from pathlib import Path

from export.original.bases import base_of
from export.original.model import Original, SourceOptions, Training
from export.original.names import name_of
from export.original.rows import Rows
from export.original.settings import Settings, read_settings
from export.original.sources import license_of, source_of
from export.original.tokenizer import TokenizerOrigin, place_first
from export.tensors.weights import weights_of
from gladstone import file_names
from gladstone.artifacts import record_file, sha256_file
from gladstone.commands.progress import Progress
from gladstone.models.base_model import Base

UNKNOWN = ("data", "training settings", "licence")


@dataclass(frozen=True)
class Adapter:
    """An adapter folder with its settings; `home` is the folder that the user gave and may contain `folder`."""

    home: Path
    folder: Path
    settings: Settings
    options: SourceOptions
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()  # nothing is known of its training

    def open(self, work: Path, progress: Progress) -> Original:
        """Open the source, with its tokenizer in `work`. Raises ConfigError if base or template must be named."""
        base, notes = base_of(self.settings, self.options, progress)
        placed = self._place(work, base)
        files = tuple(
            record_file(self.home, path) for path in (self.folder / file_names.ADAPTER_CONFIG, weights_of(self.folder))
        )
        spoken = tuple(sha256_file(path) for path in sorted(work.iterdir()))
        return Original(
            origin="adapter",
            home=self.home,
            name=name_of(self.folder),
            base=base,
            adapter=self.folder,
            tokenizer=work,
            found_in=placed,
            training=self._training(base),
            rows=Rows("given", ((self.options.rows, "auto"),)) if self.options.rows else Rows("none"),
            files=files,
            key=(*(record.sha256 for record in files), *spoken),
            parents={"adapter": files[1].sha256, "base": base.fingerprint},
            notes=(*self.notes, *notes, *placed.notes),
        )

    def _place(self, work: Path, base: Base) -> TokenizerOrigin:
        """Place tokenizer and template: those beside the adapter, else the base's."""
        beside = {"the folder around the adapter": self.home} if self.home != self.folder else {}
        places = {"the adapter's folder": self.folder, **beside, "the base": base.folder}
        return place_first(places, work, self.options.template)

    def _training(self, base: Base) -> Training:
        declared = license_of(self.folder)
        return Training(
            method="lora",
            settings=tuple(self.settings.describe()),
            base=source_of(base),
            license=declared,
            unknown=UNKNOWN[:2] if declared else UNKNOWN,
        )


def read_adapter_folder(home: Path, folder: Path, options: SourceOptions, notes: tuple[str, ...] = ()) -> Adapter:
    """The adapter in a folder. Raises ArtifactError if there is none, UnsupportedError if it cannot be exported."""
    settings = read_settings(folder)
    weights_of(folder)
    return Adapter(home, folder, settings, options, notes)
