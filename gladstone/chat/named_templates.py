"""Chat templates by name, as they come with Gladstone, and from a user's file."""

import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from gladstone.errors import ConfigError, DataError
from gladstone.rows.encodings import decoded

TEMPLATE_PREFIX = "template:"
MAX_TEMPLATE_BYTES = 1_000_000  # the longest known template has 20,000
CONTROL_TEXT = re.compile(r"<\|[^|<>\s{}]+\|>|<(?:start|end)_of_turn>")  # how vocabularies write a control token


@dataclass(frozen=True)
class NamedTemplate:
    """A template's source and the name that the user gave."""

    name: str
    source: str


def template_folder() -> Path:
    """The folder of the templates that come with Gladstone."""
    return Path(str(resources.files("gladstone"))) / "chat" / "templates"


def template_names() -> list[str]:
    """The names of the templates that come with Gladstone, sorted."""
    return sorted(path.stem for path in template_folder().glob("*.jinja"))


def read_template(chosen: str) -> NamedTemplate:
    """Read the template that `chosen` names: a file, or NAME or 'template:NAME' of one that comes with Gladstone.

    A file is a Jinja template, or JSON with one under "chat_template", like tokenizer_config.json. Raises ConfigError
    for an unknown name and for a file that cannot be read or holds no template.
    """
    name, path = chosen.removeprefix(TEMPLATE_PREFIX), Path(chosen).expanduser()
    is_name = chosen.startswith(TEMPLATE_PREFIX) or not (path.exists() or path.suffix or len(path.parts) > 1)
    if name in template_names() and (is_name or not path.exists()):
        return NamedTemplate(name, (template_folder() / f"{name}.jinja").read_text(encoding="utf-8"))
    if is_name:
        known = ", ".join(template_names())
        raise ConfigError(f"no template {chosen!r}; there are: {known}. Give any other as a Jinja file.")
    return NamedTemplate(chosen, _read_file(path))


def _read_file(path: Path) -> str:
    try:
        if not path.is_file():
            raise ConfigError(f"{path} is not a file." if path.exists() else f"{path} cannot be read: no such file.")
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise ConfigError(f"{path} has {path.stat().st_size:,} bytes: too many for a chat template.")
        text = decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except DataError as error:
        raise ConfigError(str(error)) from None
    if path.suffix == ".json":
        text = _template_in_json(text, path)
    if not text.strip():
        raise ConfigError(f"{path} is empty, expected a chat template.")
    return text


def _template_in_json(text: str, path: Path) -> str:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}.") from None
    template = data.get("chat_template") if isinstance(data, dict) else None
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if not isinstance(template, str):
        raise ConfigError(f'{path} holds no template under "chat_template".')
    return template
