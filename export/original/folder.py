"""A model folder as the source of an export: a merged or plain model without an adapter."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.original.bases import NEEDS, check_plain
from export.original.model import Original, SourceOptions, Training
from export.original.names import name_of
from export.original.rows import Rows
from export.original.sources import Source, license_of
from export.original.tokenizer import TokenizerOrigin, place_first
from gladstone.artifacts import Manifest, sha256_file
from gladstone.commands.progress import Progress
from gladstone.models.base_model import check_weights, resolve_base

UNKNOWN = ("base model", "data", "training settings", "licence")
ADVICE = (
    "Export the adapter and the model in 16 bit instead: `gladstone export gguf ADAPTER --base FOLDER|HUB-ID`; or save "
    "the merged model in 16 bit."
)


@dataclass(frozen=True)
class Folder:
    """A model folder; `merge` is the manifest if `gladstone export merge` made it."""

    home: Path
    options: SourceOptions
    merge: Manifest | None = None
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> list[str]:
        """Known training problems of a merged run."""
        return list(self._facts.get("training_warnings") or [])

    def open(self, work: Path, progress: Progress) -> Original:
        """Open the source, with its tokenizer in `work`. Raises UnsupportedError for quantised weights."""
        check_plain(self.home, str(self.home), ADVICE)
        base = resolve_base(str(self.home), progress, NEEDS)
        check_weights(base)
        placed = self._place(work, progress)
        return Original(
            origin="folder",
            home=self.home,
            name=str(self.merge.config["name"]) if self.merge else name_of(self.home),
            base=base,
            adapter=None,
            tokenizer=work,
            found_in=placed,
            training=self._training(),
            rows=Rows("given", ((self.options.rows, "auto"),)) if self.options.rows else Rows("none"),
            files=(),
            key=tuple(sha256_file(path) for path in sorted(work.iterdir())),
            parents={"model": base.fingerprint},
            notes=(*self.notes, *placed.notes),
        )

    @property
    def _facts(self) -> Mapping[str, Any]:
        return self.merge.facts if self.merge else {}

    def _place(self, work: Path, progress: Progress) -> TokenizerOrigin:
        """Place tokenizer and template: the folder's own, else those of `--base`."""
        places = {"the model's folder": self.home}
        if self.options.base:
            places["the base"] = resolve_base(self.options.base, progress, NEEDS).folder
        return place_first(places, work, self.options.template)

    def _training(self) -> Training:
        if "training" in self._facts:
            return Training.from_json(self._facts["training"])
        declared = license_of(self.home)
        unknown = tuple(each for each in UNKNOWN if not (each == "licence" and declared))
        warnings = [{"text": text, "serious": True} for text in self.warnings]  # of a merge by an older version
        facts: dict[str, Any] = {"warnings": warnings} if warnings else {}
        if self.merge is None:
            return Training(license=declared, facts=facts, unknown=unknown)
        base = Source(Path(str(self.merge.config["base"])).name, None, None)
        return Training(license=declared, facts=facts, base=base, unknown=unknown[1:])
