"""Chat templates: one renderer for training, proofs, chat and benchmarks, without transformers.

Templates render in Jinja's sandbox (`sandbox`); `guarded_template` also bounds their time and memory.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from gladstone.chat.jinja_sandbox import Rendering, compile_template, render_template
from gladstone.chat.messages import Message
from gladstone.chat.reasoning_markers import find_markers
from gladstone.chat.template_probes import SystemSupport, probe_question, probe_system_prompt
from gladstone.chat.template_variables import find_variables
from gladstone.chat.tool_turns import CallStyle, ToolSupport, parse_tools, probe_tools, to_template_turns
from gladstone.errors import ConfigError, DataError

# fields of a turn in which templates take its reasoning (gpt-oss: thinking)
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking", "thought")
CLOCK = "strftime_now"  # the only function in the sandbox that tells the time
# two times that every strftime pattern formats differently
_TIMES = (datetime(2001, 2, 3, 4, 5, 6), datetime(2012, 11, 28, 17, 48, 59))
_QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "What time is it?"}]
_READS_PARTS = re.compile(r"""\.text\b|\[\s*['"]text['"]""")
_SENTINEL = "quixotry"  # a word that no template contains
_WITH_TOOLS = (
    "Choose a base whose chat template supports tools, or give one (--chat-template, base.chat_template in a recipe)"
)


def template_sha256(source: str) -> str:
    """The hash that identifies a template from the training manifest to the report."""
    return hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Segment:
    """A stretch of rendered text, scored in training or not; `encode_parts` tokenizes each one by itself."""

    text: str
    scored: bool


def encode_parts(texts: Sequence[str], encode: Callable[[str], list[int]]) -> list[list[int]]:
    """Tokenize consecutive texts, each as it is tokenized after the text before it; returns token ids for each.

    A SentencePiece tokenizer puts a space before its input, which a text in the middle of a line must not get. A text
    that would change the tokens before it is tokenized alone, so a prompt's tokens never depend on its answer.
    """
    parts: list[list[int]] = []
    for index, text in enumerate(texts):
        if index == 0:
            parts.append(encode(text))
            continue
        before = encode(texts[index - 1])
        both = encode(texts[index - 1] + text)
        parts.append(both[len(before) :] if both[: len(before)] == before else encode(text))
    return parts


class ChatTemplate:
    """A compiled chat template and the special tokens that it may name.

    A template with its own field for reasoning gets it there; for any other the reasoning is written before the answer,
    with the markers of the template's family (`reasoning`).
    """

    def __init__(
        self,
        source: str,
        special_tokens: dict[str, str] | None = None,
        *,
        now: datetime | None = None,
        name: str | None = None,
    ) -> None:
        """`now` is the time for the template (None: the current time); `name` identifies it in error messages.

        Raises DataError with the line if the template does not compile.
        """
        self.source = source
        self.sha256 = template_sha256(source)
        self.special_tokens = dict(special_tokens or {})
        self.now, self.name = now, name
        self._arguments: dict[str, Any] = {}
        self.markers = find_markers(source)
        self._compile()

    @cached_property
    def reasoning_field(self) -> str | None:
        """The field of a turn in which the template takes reasoning; None if it has none."""
        if REASONING_FIELDS[0] in self.source:  # even if the template writes it only in some turns
            return REASONING_FIELDS[0]
        named = (name for name in REASONING_FIELDS[1:] if re.search(rf"\b{name}\b", self.source))
        return next((name for name in named if self._renders({name: _SENTINEL}, _SENTINEL)), None)

    @cached_property
    def takes_content_parts(self) -> bool:
        """Whether a turn's content must be a list of parts, as for templates of multimodal models."""
        if not _READS_PARTS.search(self.source):  # saves a rendering
            return False
        parts = {"content": [{"type": "text", "text": _SENTINEL}]}
        return not self._renders({"content": _SENTINEL}, _SENTINEL) and self._renders(parts, _SENTINEL)

    @cached_property
    def variables(self) -> tuple[str, ...]:
        """The variables that the template reads, without those that every template gets."""
        return tuple(name for name in self._find_variables() if name not in self.special_tokens)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments of every rendering, by name."""
        return dict(self._arguments)

    def set_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Replace the arguments of every later rendering with these JSON values.

        Raises ConfigError for a name that the template never reads; the message lists those that it reads.
        """
        unread = [name for name in arguments if name not in self.variables]
        if unread:
            reads = ", ".join(name for name in self.variables if not name.endswith("_token")) or "none"
            raise ConfigError(
                f"the chat template never reads {', '.join(map(repr, unread))}, so it would change nothing. "
                f"Arguments that it reads: {reads}."
            )
        self._arguments = dict(arguments)

    @cached_property
    def tool_support(self) -> ToolSupport:
        """What the template shows of tools, calls and results."""
        return probe_tools(self._render)

    @cached_property
    def depends_on_time(self) -> bool:
        """Whether the rendered text depends on the time."""
        return CLOCK in self.source and any(map(self._differs_by_time, (False, True)))

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[str] = (), add_generation_prompt: bool = False
    ) -> str:
        """Render the turns; with `add_generation_prompt` the text ends where the assistant's answer begins.

        `tools` are definitions as JSON texts. Raises DataError if the template cannot render the turns or leaves out
        tools, calls or their results.
        """
        turns = self.turns(messages, tools)
        return self._render(Rendering(turns, add_generation_prompt, parse_tools(tools), self.now, self._arguments))

    def render_prompt(self, messages: Sequence[Message], arguments: Mapping[str, Any]) -> str:
        """Render the prompt up to where the answer begins, with further arguments. Raises DataError like `render`."""
        arguments = {**self._arguments, **arguments}
        return self._render(Rendering(self.turns(messages), True, now=self.now, arguments=arguments))

    def system_support(self) -> SystemSupport:
        """Whether the model sees a system prompt, given the current arguments."""
        return probe_system_prompt(lambda messages: self.render_prompt(messages, {}))

    def shows_question(self) -> bool:
        """Whether the model sees the question."""
        return probe_question(lambda messages: self.render_prompt(messages, {}))

    def turns(self, messages: Sequence[Message], tools: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Convert messages to turns for the template. Raises DataError if it leaves out tools, calls or results."""
        style = CallStyle()
        if tools or any(message.tool_calls or message.role == "tool" for message in messages):
            self._check_tools(messages, tools)
            style = self.tool_support.style or style
        return to_template_turns(messages, style, self._turn)

    def segments(self, messages: Sequence[Message], tools: Sequence[str] = ()) -> list[Segment]:
        """The last text of `examples`: it ends with the last answer. Raises DataError like `examples`."""
        return self.examples(messages, tools)[-1]

    def examples(
        self, messages: Sequence[Message], tools: Sequence[str] = (), scored: Collection[int] | None = None
    ) -> list[list[Segment]]:
        """The training texts of a conversation: together they hold each scored answer once, as the model must write it.

        `scored` are indices of the assistant's turns (None: all of them). The text before an answer is the template's
        rendering of the turns before it, exactly as when the model is served. One text holds several answers as long as
        the template renders the earlier ones unchanged; if it rewrites one (Qwen3's drops the reasoning), the next
        answer starts a new text. An answer includes its end-of-turn markers. If the template renders an answer without
        its reasoning (DeepSeek-R1's does), the text still has it: reasoning, content, end of turn.

        Raises DataError if the last turn is not the assistant's or the template does not continue its own prompt.
        """
        if not messages or messages[-1].role != "assistant":
            raise DataError("the last turn must be the assistant's: nothing would be scored.")
        made: list[list[Segment]] = []
        last = messages[0]
        for index, message in enumerate(messages):
            if message.role != "assistant" or (scored is not None and index not in scored):
                continue
            prompt = self.render(messages[:index], tools=tools, add_generation_prompt=True)
            answer = Segment(self._answer(messages[: index + 1], tools, prompt), scored=True)
            earlier = self._continued(made[-1], last, prompt) if made else None
            last = message
            if earlier is None:
                made.append([Segment(prompt, scored=False), answer])
                continue
            taken = sum(len(segment.text) for segment in earlier)
            made[-1] = [*earlier, Segment(prompt[taken:], scored=False), answer]
        return made

    def with_reasoning(self, message: Message) -> str:
        """The answer after its reasoning, if it has any, in the markers of the template's family."""
        return self.markers.mark_up(message.reasoning or "", message.content)

    def _find_variables(self) -> list[str]:
        return find_variables(self.source)

    def _compile(self) -> None:
        try:
            self._compiled = compile_template(self.source)
        except MemoryError:
            raise DataError("the chat template does not compile: it exhausts the memory.") from None

    def _render(self, rendering: Rendering) -> str:
        try:
            return render_template(self._compiled, self.special_tokens, rendering)
        except MemoryError:
            raise DataError("the chat template cannot render these turns: they exhaust the memory.") from None

    def _continued(self, example: list[Segment], message: Message, prompt: str) -> list[Segment] | None:
        """The example as the prompt of a later answer contains it; None if the template has rewritten it there.

        `message` is the last one of the example. Some templates write a line break or the EOS token after the last
        answer only: that is cut off, as long as another end-of-turn marker remains.
        """
        *before, answer = example
        opening = "".join(segment.text for segment in before)
        stripped = answer.text.rstrip()
        for text in (answer.text, stripped, stripped.removesuffix(self.special_tokens.get("eos_token", ""))):
            end = text.rpartition(message.content.strip())[2] if message.content.strip() else text
            if (text is answer.text or end.strip()) and prompt.startswith(opening + text):
                return [*before, Segment(text, scored=True)] if len(prompt) > len(opening + text) else None
        return None

    def _answer(self, messages: Sequence[Message], tools: Sequence[str], prompt: str) -> str:
        """The text that the model must generate after the generation prompt, reasoning included."""
        answer = messages[-1]
        until = self.render(messages, tools=tools)
        thought = (answer.reasoning or "").strip()
        strategies = (self._after_prompt, self._after_opening, self._after_added_reasoning, self._after_empty_reasoning)
        answers = (answer_after(messages, tools, (prompt, until)) for answer_after in strategies)
        text = next((found for found in answers if found is not None and thought in found), None)
        if text is None:
            raise DataError("the chat template's full text does not continue its own generation prompt.")
        if answer.tool_calls:
            self._check_calls(answer, text)
        return text

    def _generation_opening(self, messages: Sequence[Message], tools: Sequence[str], prompt: str) -> str:
        """The text that the generation prompt adds after the earlier turns; '' if it does more than add."""
        before = self.render(messages[:-1], tools=tools)
        return prompt[len(before) :] if prompt.startswith(before) else ""

    def _after_prompt(self, _messages: Sequence[Message], _tools: Sequence[str], texts: tuple[str, str]) -> str | None:
        """The answer for most templates: the full text continues the prompt."""
        prompt, until = texts
        return until[len(prompt) :] if until.startswith(prompt) else None

    def _after_opening(self, messages: Sequence[Message], tools: Sequence[str], texts: tuple[str, str]) -> str | None:
        """The answer for a template that renders earlier turns differently when one follows (Hermes: a line break)."""
        prompt, until = texts
        if until.startswith(prompt):
            return None
        opening = self._generation_opening(messages, tools, prompt)
        _, found, text = until.rpartition(opening) if opening.strip() else ("", "", "")
        return text if found and messages[-1].content.strip() in text else None

    def _after_added_reasoning(
        self, messages: Sequence[Message], tools: Sequence[str], texts: tuple[str, str]
    ) -> str | None:
        """The answer as the template renders it without reasoning, with the reasoning put before it.

        The generation prompt may already contain the opening marker (`<think>`).
        """
        answer, prompt, markers = messages[-1], texts[0], self.markers
        reasoning = answer.reasoning or ""
        plain = self.render([*messages[:-1], replace(answer, reasoning=None)], tools=tools)
        before, opened, rest = prompt.rpartition(markers.opening)
        if opened and not rest.strip() and plain.startswith(before):
            return self._insert_reasoning(plain[len(before) :], answer, markers.close_reasoning(reasoning))
        if reasoning and plain.startswith(prompt):
            thought = f"{markers.opening}\n{markers.close_reasoning(reasoning)}"
            return self._insert_reasoning(plain[len(prompt) :], answer, thought)
        return None

    def _insert_reasoning(self, plain: str, answer: Message, thought: str) -> str:
        """Turn an answer that was rendered without reasoning into one that follows `thought`.

        A template may mark missing reasoning with an empty thought (Nemotron) or with the text that leads over to the
        answer (gpt-oss): both are removed. The markers that only follow a thought are added.
        """
        markers = self.markers
        empty = re.match(rf"{re.escape(markers.opening)}\s*{re.escape(markers.closing)}\s*", plain)
        direct = re.match(rf"\s*{re.escape(markers.direct)}", plain) if markers.direct else None
        skipped = empty or direct
        text = plain[skipped.end() :] if skipped else plain
        if markers.ending and markers.ending not in text:
            head, found, end = text.partition(answer.content.strip())
            text = f"{head}{found}{markers.ending}{end}"
        return thought + markers.bridge + text

    def _after_empty_reasoning(
        self, messages: Sequence[Message], tools: Sequence[str], texts: tuple[str, str]
    ) -> str | None:
        """The answer if the generation prompt contains an empty thought that the rendered answer lacks."""
        prompt, until = texts
        opening, closing = self.markers.opening, self.markers.closing
        if messages[-1].reasoning or not prompt.rstrip().endswith(closing):
            return None
        marker = self._generation_opening(messages, tools, prompt).rpartition(opening)[0]
        _, found, text = until.rpartition(marker) if marker.strip() else ("", "", "")
        return text.removeprefix(closing) if found and messages[-1].content.strip() in text else None

    def _turn(self, message: Message) -> dict[str, Any]:
        field = self.reasoning_field if message.reasoning else None
        content = message.content if field else self.with_reasoning(message)
        turn: dict[str, Any] = {"role": message.role, "content": content}
        if self.takes_content_parts:
            turn["content"] = [{"type": "text", "text": content}]
        return turn | {field: message.reasoning} if field else turn

    def _renders(self, fields: Mapping[str, Any], text: str) -> bool:
        """Whether a text in an answer's fields appears in the rendered text."""
        turns = [*_QUESTION, {"role": "assistant", "content": "So.", **fields}]
        try:
            return text in self._render(Rendering(turns, False, now=self.now))
        except DataError:
            return False

    def _differs_by_time(self, prompt: bool) -> bool:
        for turns in (_QUESTION, [{"role": "system", "content": "Be brief."}, *_QUESTION]):
            try:
                one, other = (self._render(Rendering(turns, prompt, now=now)) for now in _TIMES)
            except DataError:
                continue
            if one != other:
                return True
        return False

    def _check_tools(self, messages: Sequence[Message], tools: Sequence[str]) -> None:
        """Raise DataError if the template leaves out tools, calls or results of these turns."""
        support = self.tool_support
        called = f"the chat template of {self.name}" if self.name else "the chat template"
        calls = max((len(message.tool_calls) for message in messages), default=0)
        if tools and not support.definitions:
            advice = "" if calls else ", or leave `tools` out of rows that call none"
            raise DataError(f"{called} does not show the model its tools: they would be lost. {_WITH_TOOLS}{advice}.")
        if calls and support.style is None:
            reason = f" ({support.reason.rstrip('.')})" if support.reason else ""
            raise DataError(f"{called} does not write tool calls: they would be lost{reason}. {_WITH_TOOLS}.")
        if calls > 1 and not support.several_calls:
            raise DataError(f"{called} does not write {calls} calls in one turn. {_WITH_TOOLS}, or call one at a time.")
        if not support.results and any(message.role == "tool" for message in messages):
            raise DataError(
                f"{called} does not show a tool's result: it would be lost or read as an answer. {_WITH_TOOLS}."
            )

    def _check_calls(self, answer: Message, text: str) -> None:
        for call in answer.tool_calls:
            if call.name not in text:
                raise DataError(f"the chat template leaves out the call of {call.name!r}.")
        if answer.content.strip() not in text:
            raise DataError(
                f"the chat template leaves out the text beside the call of {answer.tool_calls[0].name!r} "
                f"({answer.content.strip()[:40]!r}): the model would never learn to write it. Remove that text."
            )
