"""Writes Ollama's Modelfile: model, chat template in Go's template language, stops, parameters, system prompt.

https://docs.ollama.com/modelfile and https://pkg.go.dev/text/template. Ollama adds the BOS token itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.publish.template_turns import Turns
from gladstone.errors import UnsupportedError

NAME = "Modelfile"
# Ollama 0.34.1 (its pull request 14969, merged on 15 September 2026) refuses a Modelfile with ADAPTER; up to 0.33 its
# parser and server take a GGUF adapter
ADAPTER_NAME, FIRST_WITHOUT = "Modelfile.adapter", "0.34.1"
NO_ADAPTER = (
    f"from {FIRST_WITHOUT} on it takes no adapter. `gladstone export gguf RUN` merges the adapter into a file with a "
    f"Modelfile for every version; {ADAPTER_NAME} is for older ones"
)


@dataclass(frozen=True)
class Ollama:
    """The content of a Modelfile. `model` and `adapter` are file names beside it."""

    model: str
    turns: Turns
    stops: Sequence[str]
    parameters: Mapping[str, float]
    system: str | None = None
    adapter: str | None = None
    license: str | None = None


def modelfile(wanted: Ollama) -> str:
    """The text of the Modelfile. Raises UnsupportedError for text that its syntax cannot express."""
    lines = [f"FROM ./{wanted.model}"]
    if wanted.adapter:
        lines = [f"# for Ollama before {FIRST_WITHOUT}: ollama create NAME -f {ADAPTER_NAME}", *lines]
        lines.append(f"ADAPTER ./{wanted.adapter}")
    lines.append(f"TEMPLATE {_quoted(go_template(wanted.turns))}")
    if wanted.system:
        lines.append(f"SYSTEM {_quoted(wanted.system)}")
    lines += [f'PARAMETER stop "{stop}"' for stop in wanted.stops]
    lines += [f"PARAMETER {name} {value:g}" for name, value in wanted.parameters.items()]
    if wanted.license:
        lines.append(f"LICENSE {_quoted(wanted.license)}")
    return "\n".join(lines) + "\n"


def go_template(turns: Turns) -> str:
    """The turns in Go's template language, over Ollama's `.System` and `.Messages`."""
    if not turns.alike:
        first, before = _opening(turns, "$.System", drop=""), _text(turns.user_before)
        user = f"{{{{ if $first }}}}{{{{ $first = false }}}}{first}{{{{ else }}}}{before}{{{{ end }}}}"
        start = "{{ $first := true }}"
    else:
        start, user = _opening(turns, ".System", drop=turns.user_before), _text(turns.user_before)
    assistant = f"{_text(turns.assistant_before)}{{{{ .Content }}}}{_text(turns.assistant_after)}"
    return (
        f"{start}{{{{ range .Messages }}}}"
        f'{{{{ if eq .Role "user" }}}}{user}{{{{ .Content }}}}{_text(turns.user_after)}'
        f'{{{{ else if eq .Role "assistant" }}}}{assistant}{{{{ end }}}}'
        f"{{{{ end }}}}{_text(turns.answer)}"
    )


def _opening(turns: Turns, system: str, drop: str) -> str:
    """The text before the first question, without `drop` at its end."""
    plain = _text(turns.opening.removesuffix(drop))
    if turns.with_system is None:
        return plain
    before, after = turns.with_system
    prompted = f"{_text(before)}{{{{ {system} }}}}{_text(after.removesuffix(drop))}"
    return f"{{{{ if {system} }}}}{prompted}" + (f"{{{{ else }}}}{plain}" if plain else "") + "{{ end }}"


def _text(text: str) -> str:
    """Text escaped for Go templates."""
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str) -> str:
    if '"""' in text or text.endswith('"'):
        raise UnsupportedError("a Modelfile cannot hold a text with three quotation marks, or one at its end")
    return f'"""{text}"""'
