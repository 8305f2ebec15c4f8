"""Messages to token ids, as in training, except that a user's text never becomes a control token."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence

from gladstone.chat.guarded_template import GuardedTemplate, TemplateProcess
from gladstone.chat.messages import Message
from gladstone.chat.named_templates import NamedTemplate, template_names
from gladstone.chat.template import ChatTemplate, encode_parts
from gladstone.commands.shell import command_line
from gladstone.errors import ArtifactError, ConfigError, DataError
from gladstone.gguf.header import GgufHeader, summarize_model
from gladstone.llamacpp.library import library
from gladstone.llamacpp.model import Model

# the placeholder of a text while the template is rendered: a number between two private-use characters
_MARK, _MARKED = "\uf8ff{}\uf8ff", re.compile("\uf8ff(\\d+)\uf8ff")


def check_template(headers: Sequence[GgufHeader]) -> None:
    """Raises ArtifactError, with advice, if a model file has no chat template."""
    info = summarize_model(headers)
    if not info.template:
        raise ArtifactError(
            f"{info.path}: the file carries no chat template, which defines the prompt format of the model. Give one "
            f"(--chat-template FILE, or one of {', '.join(template_names())}), or continue a text without a template: "
            f"{command_line('runtime', 'ask', info.path, '--raw')} TEXT."
        )


def load_template(
    model: Model, process: TemplateProcess | None = None, chosen: NamedTemplate | None = None
) -> GuardedTemplate:
    """Load the `chosen` chat template, or the model file's own, in a child process with limits. Close it after use.

    `process` is a child process that was started before. Raises ArtifactError or ConfigError for a template that does
    not compile, ToolError if no process can be started.
    """
    try:
        return _load_template(model, process, chosen)
    except BaseException:
        if process is not None:
            process.close()
        raise


def _load_template(model: Model, process: TemplateProcess | None, chosen: NamedTemplate | None) -> GuardedTemplate:
    names = {"bos_token": model.bos, "eos_token": model.eos, "pad_token": model.pad}
    special = {name: model.token_text(token) for name, token in names.items() if token >= 0}
    special = {"bos_token": "", "eos_token": "", **special}  # templates concatenate them: undefined would fail
    if chosen is not None:
        try:
            return GuardedTemplate(chosen.source, special, process, name=chosen.name)
        except DataError as error:
            raise ConfigError(f"--chat-template {chosen.name}: {error}") from None
    check_template(model.headers)
    source: bytes = library().llama_model_chat_template(model.handle, None) or b""
    try:
        return GuardedTemplate(source.decode(), special, process)
    except UnicodeDecodeError:
        raise ArtifactError(f"{model.path}: its chat template is not UTF-8.") from None
    except DataError as error:
        raise ArtifactError(f"{model.path}: {error} Give another with --chat-template.") from None


def prompt_tokens(
    model: Model, template: ChatTemplate, messages: Sequence[Message], tools: Sequence[str] = ()
) -> list[int]:
    """Tokens of the turns, up to where the assistant's answer begins.

    The rendered text is tokenized as a whole, as in training. Only if a turn spells a control token is the text split
    there: the template's parts may contain control tokens, while the turn's own text is plain text.

    Raises DataError for a text that is not Unicode, for a template that cannot render the turns, and for a control
    token's text in a tool's definition or in the arguments of a call.
    """
    _check_unicode(messages)
    markers = _markers(model, template.source)
    marks = _Marks(model, markers)
    _check_json(marks, messages, tools)
    marked = [marks.apply(message) for message in messages]
    rendered = template.render(messages, tools=tools, add_generation_prompt=True)
    if not marks.texts:
        return model.add_bos_eos(model.tokenize(rendered, parse_special=True))
    parts = _MARKED.split(template.render(marked, tools=tools, add_generation_prompt=True))
    for index in range(1, len(parts), 2):
        parts[index] = marks.texts[int(parts[index])]
    if "".join(parts) != rendered:
        raise DataError("a message contains the text of a control token, and the chat template rewrites that message.")
    tokens = []
    for index, part in enumerate(parts):
        if part:
            tokens += (
                model.tokenize(part, parse_special=True) if index % 2 == 0 else _plain_tokens(model, part, markers)
            )
    return model.add_bos_eos(tokens)


def scored_tokens(
    model: Model, template: ChatTemplate, messages: Sequence[Message], tools: Sequence[str] = ()
) -> tuple[list[int], list[int]]:
    """Tokens of prompt and answer, the last turn; each segment is tokenized on its own, as in training.

    The answer ends with its last control token, the end of the turn: the model never generates what the template
    writes after it. Raises DataError if the last turn is not the assistant's or a text is not Unicode.
    """
    _check_unicode(messages)
    if model.has_encoder:
        return prompt_tokens(model, template, messages[:-1], tools), _written(model, template, messages[-1])
    texts = [part.text for part in template.segments(messages, tools)]
    *before, answer = encode_parts(texts, lambda text: model.tokenize(text, parse_special=True))
    prompt = model.add_bos_eos([token for part in before for token in part])
    ends = [index for index, token in enumerate(answer) if model.is_control(token)]
    return prompt, answer[: ends[-1] + 1] if ends else answer


def _written(model: Model, template: ChatTemplate, answer: Message) -> list[int]:
    """Tokens of the answer that the decoder of an encoder-decoder model generates."""
    if answer.role != "assistant":
        raise DataError("the last turn must be the assistant's: nothing would be scored.")
    return [*model.tokenize(template.with_reasoning(answer)), model.eos]


@functools.lru_cache(maxsize=4)
def _markers(model: Model, template: str) -> dict[int, str]:
    """User-defined tokens that the template writes; llama.cpp would also find them in a user's text.

    Gemma 4's `<|channel>` is one: it marks reasoning, but is not a control token.
    """
    markers = {token for token in model.tokenize(template) if model.is_user_defined(token)}
    texts = {token: model.piece(token).decode("utf-8", "replace") for token in markers}
    return {token: text for token, text in texts.items() if len(text.strip()) > 1}


def _plain_tokens(model: Model, text: str, markers: dict[int, str]) -> list[int]:
    """Tokens of plain text: a marker in it is split after its first character."""
    either = "|".join(re.escape(marker) for marker in sorted(markers.values(), key=len, reverse=True))
    cuts = [match.start() + 1 for match in re.finditer(either, text)] if markers else []
    parts = (text[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(text)]))
    return [token for part in parts for token in model.tokenize(part)]


class _Marks:
    """Replaces texts that spell control tokens by placeholders, and keeps the texts."""

    def __init__(self, model: Model, markers: dict[int, str]) -> None:
        self._model, self._markers = model, markers
        self.texts: list[str] = []

    def apply(self, message: Message) -> Message:
        """The message with placeholders, or the same message if it is harmless."""
        reasoning = message.reasoning and self._mark(message.reasoning)
        return dataclasses.replace(message, content=self._mark(message.content), reasoning=reasoning)

    def is_harmless(self, text: str) -> bool:
        """Whether a text spells no control token, no marker and no placeholder."""
        tokens = self._model.tokenize(text)
        plain = tokens == self._model.tokenize(text, parse_special=True) and self._markers.keys().isdisjoint(tokens)
        return plain and not _MARKED.search(text)

    def _mark(self, text: str) -> str:
        if self.is_harmless(text):
            return text
        core = text.strip()  # white space stays outside the placeholder, for templates that trim
        begin = text.index(core)
        self.texts.append(core)
        return f"{text[:begin]}{_MARK.format(len(self.texts) - 1)}{text[begin + len(core) :]}"


def _check_json(marks: _Marks, messages: Sequence[Message], tools: Sequence[str]) -> None:
    """Raise DataError for control tokens in tools and arguments, which a template may write in another notation."""
    texts = {"a tool's definition": list(tools)}
    for number, message in enumerate(messages, start=1):
        texts[f"a call in message {number}"] = [
            part for call in message.tool_calls for part in (call.name, call.arguments)
        ]
    for where, parts in texts.items():
        for text in parts:
            if not marks.is_harmless(text):
                raise DataError(f"{where} contains the text of a control token: {text[:60]!r}.")


def _check_unicode(messages: Sequence[Message]) -> None:
    for number, message in enumerate(messages, start=1):
        try:
            (message.content + (message.reasoning or "")).encode()
        except UnicodeEncodeError:
            raise DataError(
                f"message {number} ({message.role}) contains a lone surrogate, which is not valid Unicode."
            ) from None
