"""`gladstone export gguf`: from a run folder to proven GGUF files."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.convert import Conversion, convert
from export.converter import installed_version
from export.quantise import F16, check_quants, quantise
from export.run import Run, open_run, read_run_manifest
from export.verify import Point, Trained, verify_file, verify_same_header
from gladstone.artifacts import (
    MANIFEST_NAME,
    FileRecord,
    Manifest,
    check_file,
    check_writable,
    is_finished,
    read_manifest,
    record_file,
    remove_partials,
    sha256_file,
    write_json,
    write_manifest,
)
from gladstone.basemodel import Base
from gladstone.errors import ArtifactError, ConfigError, listed
from gladstone.formats import read_conversations
from gladstone.gguf import read_info
from gladstone.host import check_disk, installed_versions
from gladstone.progress import Progress, step
from gladstone.quiet import output_to
from gladstone.template import ChatTemplate
from gladstone.tokenizer import load_tokenizer

VERSIONED = ("llama-cpp-python", "torch", "transformers", "peft")
PROOF_NAME, STATE_NAME, LOG_NAME = "proof.json", ".export-state.json", "export.log"


@dataclass(frozen=True)
class Export:
    """What came out: the files by name, and the points of each proof."""

    folder: Path
    files: dict[str, Path]
    proof: dict[str, list[Point]]


def export_gguf(
    run_folder: Path, quants: tuple[str, ...], out: Path | None, with_base: bool, progress: Progress
) -> Export:
    """Merge, convert, quantise and prove into `out` (default RUN/gguf); the manifest is written last.

    What an earlier, stopped call finished is used again. Raises ArtifactError if the proof fails: the files stay, for
    looking into, without a manifest.
    """
    wanted = check_quants(quants)
    out = out or run_folder / "gguf"
    manifest = read_run_manifest(run_folder)
    check_writable(out)
    remove_partials(out)
    with output_to(out / LOG_NAME):
        run = open_run(run_folder, manifest, progress)
        check_disk(out, _needed_bytes(run.base, len(wanted), 2 if with_base else 1), "the GGUF files")
        workbench = _Workbench(run, out, progress)
        proof = {run.name: workbench.make(run.name, run.folder / "adapter", wanted)}
        if with_base:
            proof[f"{run.name}-base"] = workbench.make(f"{run.name}-base", None, wanted)
    return _finish(workbench, proof)


def verify_against_run(path: Path, run_folder: Path, progress: Progress) -> list[Point]:
    """Prove any F16 GGUF against a run: `gladstone export verify FILE --against RUN`."""
    manifest = read_run_manifest(run_folder)
    info = read_info(path)
    if info.quantisation not in ("F16", "F32", "BF16"):
        raise ConfigError(f"{path}: quantised to {info.quantisation}; the proof compares an F16 file with torch.")
    with output_to(run_folder / LOG_NAME):
        run = open_run(run_folder, manifest, progress)
        return verify_file(path, _trained(run, run_folder / "adapter"), progress)


def _trained(run: Run, adapter: Path | None) -> Trained:
    tokenizer = load_tokenizer(run.folder / "tokenizer")
    template = ChatTemplate(run.template_source, tokenizer.named_tokens)
    held_out = [run.folder / "data" / f"{name}.jsonl" for name in ("test", "validation")]
    rows = [row for path in held_out for row in read_conversations(path, "prepared")]
    return Trained(tokenizer, template, run.base.folder, adapter, rows)


def _needed_bytes(base: Base, quants: int, models: int) -> int:
    """An F16 file and each quantised one at Q8_0's size, from the base's weights (16 bit in most)."""
    weights = sum(path.stat().st_size for path in base.folder.glob("*.safetensors"))
    return int(weights * (1.05 + 0.6 * quants * models))


class _Workbench:
    """Makes the files of an export and remembers, in a file, which are whole: a stopped export goes on from there."""

    def __init__(self, run: Run, out: Path, progress: Progress) -> None:
        self.run, self.out, self.progress = run, out, progress
        self.records: dict[str, FileRecord] = {}
        self._finished = self._earlier()

    def make(self, name: str, adapter: Path | None, quants: tuple[str, ...]) -> list[Point]:
        """The model's files in every quant, and the proof of them; the F16 goes unless it was asked for."""
        f16 = self.out / f"{name}-{F16}.gguf"
        adapters = ((adapter, 1.0),) if adapter else ()
        conversion = Conversion(name, self.run.base.folder, self.run.folder / "tokenizer", adapters)
        with self._once(f16) as missing:
            if missing:
                convert(conversion, f16, self.progress)
        points = verify_file(f16, _trained(self.run, adapter), self.progress)
        _refuse_failed(f16, points)
        for quant in quants:
            target = self.out / f"{name}-{quant}.gguf"
            with self._once(target) as missing:
                if missing:
                    quantise(f16, target, quant, self.progress)
            same = dataclasses.replace(verify_same_header(target, f16), name=f"{quant}: metadata")
            points.append(same)
        _refuse_failed(f16, points)
        if F16 not in quants:
            f16.unlink()
            del self.records[f16.name]
        return points

    def whole_files(self) -> dict[str, FileRecord]:
        """Records of this call's files and of those that an earlier call left in the folder."""
        return {name: record for name, record in self._finished.items() if (self.out / name).is_file()}

    def forget_state(self) -> None:
        """Called when the manifest is written."""
        (self.out / STATE_NAME).unlink(missing_ok=True)

    @contextmanager
    def _once(self, path: Path) -> Iterator[bool]:
        """Yields whether `path` is still to be made; records it after."""
        known = self._finished.get(path.name)
        whole = known is not None and path.is_file() and path.stat().st_size == known.size_bytes
        if whole and known is not None:
            with step(self.progress, f"Checking {path.name}, made before"):
                check_file(path, known)
        yield not whole
        self.records[path.name] = known if whole and known is not None else record_file(self.out, path)
        self._finished[path.name] = self.records[path.name]
        state = {"key": self.key(), "files": [dataclasses.asdict(record) for record in self._finished.values()]}
        write_json(self.out / STATE_NAME, state)

    def key(self) -> str:
        """Changes with anything that the files are made from."""
        adapter = self.run.manifest.record("adapter/adapter_model.safetensors").sha256
        tokenizer = [record.sha256 for record in self.run.manifest.files if record.path.startswith("tokenizer/")]
        parts = [self.run.base.fingerprint, adapter, *tokenizer, installed_version(), self.run.name]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _earlier(self) -> dict[str, FileRecord]:
        """Records of whole files in the folder, from a stopped export or a finished one of the same adapter."""
        earlier: dict[str, FileRecord] = {}
        if is_finished(self.out):
            manifest = read_manifest(self.out)
            if manifest.facts.get("key") != self.key():
                raise ArtifactError(
                    f"{self.out}: holds the export of another adapter or base. Choose another folder with --out."
                )
            earlier |= {record.path: record for record in manifest.files if record.path.endswith(".gguf")}
        state = self.out / STATE_NAME
        try:
            saved = json.loads(state.read_text(encoding="utf-8"))
            if saved["key"] == self.key():
                earlier |= {record["path"]: FileRecord(**record) for record in saved["files"]}
        except FileNotFoundError:
            pass  # nothing was stopped here
        except (ValueError, KeyError, TypeError):
            state.unlink()  # unusable: everything is made again
        return earlier


def _refuse_failed(path: Path, points: list[Point]) -> None:
    failed = [f"{point.name}: {point.detail}" for point in points if not point.passed]
    if failed:
        raise ArtifactError(listed(f"{path}: the proof failed, this file is not the model that was trained", failed))


def _finish(workbench: _Workbench, proof: dict[str, list[Point]]) -> Export:
    run, out = workbench.run, workbench.out
    write_json(out / PROOF_NAME, _proof_json(workbench, proof))
    files = workbench.whole_files()
    manifest = Manifest(
        stage="export",
        files=(*files.values(), record_file(out, out / PROOF_NAME)),
        parents={"run": sha256_file(run.folder / MANIFEST_NAME), "base": run.base.fingerprint},
        config={"name": run.name, "base": run.base.name},
        versions=installed_versions(*VERSIONED),
        template_sha256=run.manifest.template_sha256,
        seed=run.manifest.seed,
        facts={"key": workbench.key(), "tensor_types": {name: read_info(out / name).tensor_types for name in files}},
    )
    write_manifest(out, manifest)
    workbench.forget_state()
    return Export(out, {name: out / name for name in workbench.records}, proof)


def _proof_json(workbench: _Workbench, proof: dict[str, list[Point]]) -> dict[str, Any]:
    return {
        "passed": all(point.passed for points in proof.values() for point in points),
        "against": {"run": workbench.run.name, "base": workbench.run.base.name},
        "models": {name: [dataclasses.asdict(point) for point in points] for name, points in proof.items()},
        "files": {name: record.sha256 for name, record in workbench.records.items()},
        "versions": installed_versions(*VERSIONED),
    }
