"""How a row becomes a prompt: through a chat template, as in training, or as plain text."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.config import BenchConfig
from bench.results import Item
from gladstone.chat.guarded_template import GuardedTemplate
from gladstone.chat.messages import Message
from gladstone.chat.named_templates import NamedTemplate, read_template
from gladstone.chat.template import encode_parts
from gladstone.chat.template_options import parse_arguments
from gladstone.chat.thinking import ThinkingSwitch, find_thinking_switch
from gladstone.errors import ConfigError, DataError
from gladstone.llamacpp.model import Model
from runtime.loading import EngineOptions
from runtime.text.prompt import prompt_tokens, scored_tokens


@dataclass(frozen=True)
class PromptSettings:
    """The prompt settings that all models of a benchmark share. With `context_tokens` None the machine decides.

    `chat_template` replaces the template of each file; `template_arguments` are its variables. With `raw` there is no
    template: question and answer are lines of a text. `no_think` disables reasoning and drops that of references.
    """

    context_tokens: int | None = None
    reasoning_tokens: int | None = None
    chat_template: NamedTemplate | None = None
    template_arguments: dict[str, Any] = field(default_factory=dict)
    raw: bool = False
    no_think: bool = False

    @property
    def thought_tokens(self) -> int | None:
        """Number of tokens after which reasoning is ended; None for no limit."""
        return 0 if self.no_think and self.reasoning_tokens is None else self.reasoning_tokens

    def engine_options(self, threads: int | None, *, steady: bool = False) -> EngineOptions:
        """The engine options of these settings."""
        return EngineOptions(
            context_tokens=self.context_tokens,
            threads=threads,
            steady=steady,
            chat_template=self.chat_template,
            template_arguments=self.template_arguments,
            raw=self.raw,
        )


def prompt_settings(config: BenchConfig, *, only_texts: bool = False) -> PromptSettings:
    """The prompt settings of a benchmark's options; rows that are all plain text need no template.

    Raises ConfigError for options that exclude each other, and for a missing template.
    """
    needs_template = {
        "--chat-template": config.chat_template,
        "--template-arg": config.template_args,
        "--reasoning-tokens": config.reasoning_tokens,
        "--no-think": config.no_think or None,
    }
    wrong = [name for name, value in needs_template.items() if value not in (None, ())]
    if wrong and (config.raw or only_texts):
        why = "--raw has no chat template" if config.raw else "rows of plain text need no chat template"
        raise ConfigError(f"{why}, so {' and '.join(wrong)} would have no effect. Remove it.")
    return PromptSettings(
        config.context_tokens,
        config.reasoning_tokens,
        read_template(config.chat_template) if config.chat_template else None,
        parse_arguments(config.template_args),
        config.raw or only_texts,
        config.no_think,
    )


def raw_parts(item: Item) -> tuple[str, str]:
    """Question and answer as consecutive parts of a text, on a line each unless white space separates them.

    >>> from gladstone.chat.messages import Message
    >>> raw_parts(Item("a:1", (Message("user", "What is blood?"),), Message("assistant", "A fluid.")))
    ('What is blood?\\n', 'A fluid.')
    """
    prompt = "\n".join(message.content for message in item.prompt)
    answer = item.reference_text
    apart = not prompt or prompt[-1:].isspace() or answer[:1].isspace()
    return (prompt if apart else f"{prompt}\n"), answer


def make_prompt_encoder(model: Model, template: GuardedTemplate | None, frame: PromptSettings) -> "PromptEncoder":
    """The encoder of a model's prompts under these settings; sets the arguments of the template, if there is one.

    Raises ConfigError for arguments that the template never reads, or that contradict `no_think`.
    """
    if template is None:
        return PromptEncoder(model, None)
    switch = find_thinking_switch(template) if frame.no_think else ThinkingSwitch()
    given = frame.template_arguments
    against = [name for name, off in switch.off.items() if given.get(name, off) != off]
    if against:
        raise ConfigError(f"--no-think and --template-arg {against[0]} contradict each other. Give one of them.")
    template.set_arguments({**given, **switch.off})
    return PromptEncoder(model, template, frame.no_think, switch.word)


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes rows as token ids of a model, whose vocabulary alone is needed; without a template as plain text.

    `no_think` drops the reasoning of references; `word` is appended to the system prompt, as some templates require.
    """

    model: Model
    template: GuardedTemplate | None
    no_think: bool = False
    word: str = ""

    def prompt(self, item: Item) -> list[int]:
        """The prompt of an item. Raises DataError for turns that the template cannot render."""
        if self.template is None:
            return self.model.add_bos_eos(self._tokens(raw_parts(item)[0]))
        return prompt_tokens(self.model, self.template, self._turns(item.prompt), item.tools)

    def scored(self, item: Item) -> tuple[list[int], list[int]]:
        """The prompt, and the reference answer or the text that is scored after it."""
        if item.is_text:
            return self._text(item)
        if self.template is not None:
            answer = replace(item.reference, reasoning=None) if self.no_think else item.reference
            return scored_tokens(self.model, self.template, [*self._turns(item.prompt), answer], item.tools)
        if self.model.has_encoder:
            return self.prompt(item), [*self._tokens(item.reference_text), self.model.eos]
        before, behind = encode_parts(raw_parts(item), self._tokens)
        return self.model.add_bos_eos(before), behind

    def needs(self, item: Item, prompt: Sequence[int], answer: Sequence[int]) -> int:
        """Context tokens that a row needs: a text is scored in windows, and an encoder holds its prompt apart."""
        if item.is_text:
            return len(prompt) + 1
        return max(len(prompt), len(answer)) if self.model.has_encoder else len(prompt) + len(answer)

    def _turns(self, turns: Sequence[Message]) -> list[Message]:
        if not self.word:
            return list(turns)
        if turns[0].role == "system":
            return [replace(turns[0], content=f"{turns[0].content}\n\n{self.word}"), *turns[1:]]
        return [Message("system", self.word), *turns]

    def _text(self, item: Item) -> tuple[list[int], list[int]]:
        """BOS, or the first token if the vocabulary has no BOS, and the tokens that are scored after it."""
        if self.model.has_encoder:
            raise DataError("an encoder–decoder model does not continue text: rows of plain text cannot be scored.")
        tokens = self._tokens(item.reference_text)
        begin = self.model.add_bos_eos([])
        return (begin, tokens) if begin else (tokens[:1], tokens[1:])

    def _tokens(self, text: str) -> list[int]:
        return self.model.tokenize(text, parse_special=True)
