"""Collects a source's tokenizer files and chat template in one folder."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from export.original.json_object import read_object
from gladstone.artifacts import copy_file, write_json, write_text
from gladstone.chat.named_templates import CONTROL_TEXT, read_template, template_names
from gladstone.errors import ArtifactError, ConfigError
from gladstone.file_names import CHAT_TEMPLATE, CONFIG, OLD_CHAT_TEMPLATE, TOKENIZER_CONFIG, VOCABULARIES
from gladstone.models.tokenizer import load_tokenizer, tokenizer_files


def has_tokenizer(folder: Path) -> bool:
    """True if a folder holds a vocabulary, not only settings or a template."""
    pair = all((folder / name).is_file() for name in ("vocab.json", "merges.txt"))
    return pair or any((folder / name).is_file() for name in VOCABULARIES)


def own_template(folder: Path) -> str | None:
    """The chat template of a tokenizer folder, from any of the three places that tools write it to.

    transformers reads chat_template.jinja first. Raises ArtifactError for a file that cannot be read.
    """
    path = folder / CHAT_TEMPLATE
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{path}: cannot be read: {error}.") from None
    for name in (OLD_CHAT_TEMPLATE, TOKENIZER_CONFIG):
        found = read_object(folder / name).get("chat_template") if (folder / name).is_file() else None
        if isinstance(found, list):  # several named templates
            named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
            found = named.get("default")
        if isinstance(found, str) and found:
            return found
    return None


@dataclass(frozen=True)
class TokenizerOrigin:
    """Where tokenizer and template were found, and notes about them."""

    tokenizer: str
    template: str
    notes: tuple[str, ...] = ()


def place_first(places: Mapping[str, Path], target: Path, chosen: str | None) -> TokenizerOrigin:
    """Copy the first tokenizer and the first chat template found in `places` (folders by description) to `target`.

    `chosen` names a template that replaces all others. Raises ConfigError if there is no tokenizer or no template.
    """
    tokenizer = next((name for name, folder in places.items() if has_tokenizer(folder)), None)
    looked = ", ".join(f"{name} ({folder})" for name, folder in places.items())
    if tokenizer is None:
        raise ConfigError(f"no tokenizer in {looked}. Take the tokenizer of the base: --base FOLDER|HUB-ID.")
    if chosen is not None:
        template, where = _named(chosen), f"--chat-template {Path(chosen).name}"
    else:
        templates = ((each, name) for name, folder in places.items() if (each := own_template(folder)))
        template, where = next(templates, ("", ""))
    if not template:
        raise ConfigError(
            f"no chat template in {looked}. Give the template used in "
            f"training: --chat-template FILE, or a name ({', '.join(template_names())})."
        )
    place_tokenizer(places[tokenizer], target, template)
    return TokenizerOrigin(tokenizer, where, tuple(_strange_marks(target, template) if chosen else ()))


def _named(chosen: str) -> str:
    try:
        return read_template(chosen).source
    except ConfigError as error:
        raise ConfigError(f"--chat-template: {error}") from None


def _strange_marks(folder: Path, template: str) -> Iterator[str]:
    """A note about tokens in the template that the vocabulary lacks."""
    tokenizer = load_tokenizer(folder)
    named = sorted({*CONTROL_TEXT.findall(template)})
    lacking = [text for text in named if len(tokenizer.encode(text)) != 1]
    if lacking:
        yield (
            f"the chat template names {', '.join(lacking)}, which the vocabulary lacks: they are split into ordinary "
            "tokens. That is right only if training did the same; then only the end-of-text token ends an answer."
        )


def place_tokenizer(source: Path, target: Path, template: str) -> None:
    """Copy a tokenizer's files with `template` as the only chat template.

    config.json is copied too: it may be the only file that names the kind of tokenizer.
    """
    copied = [path for path in tokenizer_files(source) if path.name != CHAT_TEMPLATE]
    config = source / CONFIG
    for path in [*copied, *([config] if config.is_file() else [])]:
        copy_file(path, target / path.name)
    write_text(target / CHAT_TEMPLATE, template)
    settings = target / TOKENIZER_CONFIG
    if settings.is_file() and "chat_template" in (values := read_object(settings)):
        write_json(settings, {name: value for name, value in values.items() if name != "chat_template"})
