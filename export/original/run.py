"""A finished run of `finetune run` as the source of an export."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from export.original.bases import NEEDS, naming_owner
from export.original.model import Original, SourceOptions, Training, serious_warnings
from export.original.rows import Rows
from export.original.sources import Source, source_of
from export.original.tokenizer import TokenizerOrigin, place_tokenizer
from gladstone import file_names, run_folder
from gladstone.artifacts import MANIFEST_NAME, Manifest, check_files, read_manifest, sha256_file
from gladstone.commands.progress import Progress
from gladstone.errors import ArtifactError, ConfigError
from gladstone.models.base_model import Base, resolve_base

SAMPLES_LICENSE = "apache-2.0"
SUBJECTS = ("medical", "question-answering")
SETTINGS = (
    ("method", lambda c: "QLoRA (base in NF4)" if c["base"]["load_in_4bit"] else "LoRA"),
    ("rank, alpha", lambda c: f"{c['lora']['rank']}, {c['lora']['alpha']:g}" + (" (rsLoRA)" * c["lora"]["rslora"])),
    ("layers", lambda c: ", ".join(c["lora"]["targets"])),
    ("learning rate", lambda c: f"{c['training']['learning_rate']:g}, {c['training']['schedule']}"),
    ("rows in a step", lambda c: str(c["training"]["batch_size"] * c["training"]["accumulation"])),
    ("longest row", lambda c: f"{c['base']['max_tokens']:,} tokens"),
)


@dataclass(frozen=True)
class Run:
    """A finished run with verified files."""

    home: Path
    manifest: Manifest
    options: SourceOptions

    @property
    def warnings(self) -> list[str]:
        """Known problems of its training."""
        return serious_warnings(self.manifest.facts)

    def open(self, work: Path, progress: Progress) -> Original:
        """Open the source, with its tokenizer in `work`. Raises ArtifactError for a base other than the trained one."""
        manifest = self.manifest
        base = self._base(progress)
        template = (self.home / file_names.CHAT_TEMPLATE).read_text(encoding="utf-8")
        place_tokenizer(self.home / run_folder.TOKENIZER, work, template)
        tokenizer = [record.sha256 for record in manifest.files if record.path.startswith("tokenizer/")]
        return Original(
            origin="run",
            home=self.home,
            name=str(manifest.config["name"]),
            base=base,
            adapter=self.home / run_folder.ADAPTER,
            tokenizer=work,
            found_in=TokenizerOrigin("the run", "the run"),
            training=training_of(manifest, source_of(base, manifest.config["base"].get("license"))),
            rows=self._rows(),
            files=manifest.files,
            key=(manifest.record(f"adapter/{file_names.ADAPTER_WEIGHTS}").sha256, *tokenizer),
            parents={"run": sha256_file(self.home / MANIFEST_NAME), "base": base.fingerprint},
            calibration=run_folder.set_path(self.home / run_folder.DATA, "train"),
        )

    def _base(self, progress: Progress) -> Base:
        name = str(self.manifest.config["base"]["model"])
        with nullcontext() if self.options.base else naming_owner(f"{self.home} was trained on {name!r}", name):
            base = resolve_base(self.options.base or name, progress, NEEDS)
        if base.fingerprint == self.manifest.parents["base"]:
            return base
        if self.options.base:
            raise ArtifactError(
                f"--base {self.options.base}: not the base that {self.home} was trained on ({name}): its weights or "
                "its tokenizer differ. Leave --base out, or give the same files."
            )
        raise ArtifactError(f"{base.folder}: not the base that the adapter was trained on: its files have changed.")

    def _rows(self) -> Rows:
        recorded = {record.path for record in self.manifest.files}
        held_out = [f"data/{name}.jsonl" for name in ("test", "validation") if f"data/{name}.jsonl" in recorded]
        if held_out and self.options.rows:
            raise ConfigError("--data: the run has its own held-out rows.")
        if held_out:
            return Rows("held out", tuple((self.home / path, "prepared") for path in held_out))
        if self.options.rows:
            return Rows("given", ((self.options.rows, "auto"),))
        return Rows("trained on", ((run_folder.set_path(self.home / run_folder.DATA, "train"), "prepared"),))


def read_run(folder: Path, options: SourceOptions) -> Run:
    """The run in a folder. Raises ArtifactError if it is damaged or unfinished, ConfigError for a chat template."""
    manifest = read_manifest(folder)
    if manifest.stage != "finetune":
        raise ArtifactError(
            f"{folder}: made by the stage {manifest.stage!r}, expected a folder made by `finetune run`, an adapter or "
            "a model."
        )
    if options.template:
        raise ConfigError(f"--chat-template: {folder} is a run, which keeps the template it was trained with.")
    check_files(folder, manifest)
    return Run(folder, manifest, options)


def training_of(manifest: Manifest, base: Source) -> Training:
    """The training described by a run's manifest; the licence is the base's."""
    config, date = manifest.config, manifest.config["base"].get("template_date")
    return Training(
        description=str(config.get("description") or ""),
        method="qlora" if config["base"]["load_in_4bit"] else "lora",
        settings=tuple((name, setting(config)) for name, setting in SETTINGS),
        facts=manifest.facts,
        datasets=datasets_of(config),
        base=base,
        license=base.license,
        subjects=SUBJECTS,
        seed=manifest.seed,
        template_date=datetime.fromisoformat(date) if date else None,
    )


def datasets_of(config: Mapping[str, Any]) -> tuple[Source, ...]:
    """The data sets named in a recipe."""
    found = []
    for source in config["data"]["sources"]:
        path, hub_id = str(source["path"]), None
        if path.startswith("hub:"):
            hub_id = path.removeprefix("hub:")
        name = hub_id or (path if path.startswith("sample:") else Path(path).name)
        owned = SAMPLES_LICENSE if path.startswith("sample:") else None
        found.append(Source(name, hub_id, source.get("license") or owned))
    return tuple(found)
