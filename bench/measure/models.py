"""The model files under test: checked before anything runs, and labelled for the report."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.measure.prompts import PromptSettings
from bench.results import ModelFile
from gladstone.artifacts import MANIFEST_NAME, check_file, read_manifest, sha256_file
from gladstone.chat.named_templates import template_names
from gladstone.chat.template import template_sha256
from gladstone.commands.progress import Progress, step
from gladstone.errors import ArtifactError, ConfigError
from gladstone.gguf.header import GgufInfo, read_generative_model, summarize_model


def read_models(paths: Sequence[Path], frame: PromptSettings, progress: Progress) -> tuple[ModelFile, ...]:
    """Check every file, and its manifest if it has one.

    Raises ConfigError for a file given twice, ArtifactError for one that is damaged, does not match its manifest, or
    has no chat template although `frame` needs one.
    """
    _check_distinct(paths)
    infos = [summarize_model(read_generative_model(path)) for path in paths]
    models = []
    with step(progress, "check the model files"):
        for number, (info, label) in enumerate(zip(infos, _labels(paths), strict=True)):
            progress.update(number / len(infos), label)
            models.append(_read_model(info, label, frame))
        progress.update(None)
    return tuple(models)


def model_warnings(models: Sequence[ModelFile], differences: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """Why a comparison of these files is not entirely fair; `differences` are tokenizer differences by label."""
    first, warnings = models[0], []
    for other in models[1:]:
        if other.sha256 == first.sha256:
            warnings.append(
                f"{other.label} and {first.label} are the same file: every difference between them is noise."
            )
        if other.template_sha256 != first.template_sha256:
            warnings.append(
                f"{other.label} and {first.label} have different chat templates: the same rows give "
                "different prompts, so part of the difference may come from the template."
            )
        if how := (differences or {}).get(other.label):
            warnings.append(f"{other.label} tokenises text differently from {first.label}: {'; '.join(how)}.")
        if other.quantisation != first.quantisation:
            warnings.append(
                f"{other.label} is {other.quantisation} and {first.label} is {first.quantisation}: part of the "
                "difference comes from the quantisation."
            )
    return warnings


def _check_distinct(paths: Sequence[Path]) -> None:
    counts = Counter(path.resolve() for path in paths)
    twice = [path for path in paths if counts[path.resolve()] > 1]
    if twice:
        raise ConfigError(f"{twice[0]}: given {counts[twice[0].resolve()]} times. Give each model file once.")


def _read_model(info: GgufInfo, label: str, frame: PromptSettings) -> ModelFile:
    _check_manifest(info)
    return ModelFile(
        path=info.path,
        label=label,
        sha256=sha256_file(info.path),
        size_bytes=info.size_bytes,
        quantisation=info.quantisation,
        tensor_types=info.tensor_types,
        architecture=info.architecture,
        parameters=info.parameters,
        template_sha256=_template_sha256(info, frame),
    )


def _template_sha256(info: GgufInfo, frame: PromptSettings) -> str | None:
    """The hash of the chat template that renders the prompts; None for plain text."""
    if frame.raw:
        return None
    if frame.chat_template is not None:
        return template_sha256(frame.chat_template.source)
    if info.template_sha256 is None:
        raise ArtifactError(
            f"{info.path}: has no chat template, which its prompts need. Give one with --chat-template "
            f"(a file, or one of {', '.join(template_names())}), or use plain text with --raw."
        )
    return info.template_sha256


def _check_manifest(info: GgufInfo) -> None:
    folder = info.path.parent
    if not (folder / MANIFEST_NAME).is_file():
        return
    manifest = read_manifest(folder)
    listed = [record for record in manifest.files if record.path == info.path.name]
    if not listed:
        return  # a manifest about other files
    check_file(info.path, listed[0])
    if manifest.template_sha256 not in (None, info.template_sha256):
        raise ArtifactError(
            f"{info.path}: its chat template ({str(info.template_sha256)[:12]}…) is not the one it was trained with "
            f"according to its manifest ({str(manifest.template_sha256)[:12]}…). Export it again from its run."
        )


def _labels(paths: Sequence[Path]) -> list[str]:
    """The shortest path suffixes that are unique."""
    resolved = [path.resolve().with_suffix("") for path in paths]
    depth = 1
    while len({path.parts[-depth:] for path in resolved}) < len(resolved) and depth < 64:
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in resolved]
