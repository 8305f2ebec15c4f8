"""Reasoning that is trained comes out of the runtime as reasoning, for every family of markers."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from gladstone.chat.messages import Message
from gladstone.chat.reasoning_markers import FAMILIES, Markers, find_markers
from gladstone.chat.template import ChatTemplate
from runtime.text.reasoning_splitter import ReasoningSplitter

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
# the family's marker in a comment, for it is its sign; what ends a turn is a token that a runtime does not show
TURNS = """\
{#SIGN#}{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}
{%- if add_generation_prompt %}[assistant]OPENED{% endif %}"""
PARTS = TURNS.replace("message.content", "message.content[0].text")
NOT_THOUGHT = """\
{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.role == 'assistant' %}{{ '<think></think>' if '<think>' not in message.content }}{% endif %}
{{- message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""
NAMES = ["cohere2", "deepseek_r1_distill", "gemma4", "glm4moe", "gptoss", "lfm2_2_5", "muse_glimmer", "nemotron_3_nano",
         "qwen3", "qwen3_5_think"]  # fmt: skip


def split(text: str, markers: Markers, *, opened: bool) -> tuple[str, str]:
    """Reasoning and answer, as a runtime that knows the template tells them apart."""
    splitter = ReasoningSplitter(opened=opened, markers=markers)
    pieces = [*splitter.feed(text), *splitter.flush()]
    reasoning = "".join(piece.text for piece in pieces if piece.reasoning)
    return reasoning, "".join(piece.text for piece in pieces if not piece.reasoning)


def served(template: ChatTemplate, reasoning: str | None) -> tuple[str, str]:
    """What a model that writes exactly what it was trained on is shown to say."""
    messages = [Message("user", "Is it iron?"), Message("assistant", "It is.", reasoning)]
    prompt = template.render(messages[:-1], add_generation_prompt=True)
    answer = template.segments(messages)[-1]
    markers = find_markers(template.source)
    return split(answer.text, markers, opened=prompt.rstrip().endswith(markers.opening))


@pytest.mark.parametrize("opened", [False, True], ids=["", "opened"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.opening + family.bridge)
def test_a_thought_is_trained_as_its_family_is_served(family: Markers, opened: bool) -> None:
    sign = (family.signs or (family.opening,))[0]
    source = TURNS.replace("SIGN", sign).replace("OPENED", family.opening + "\n" if opened else "")
    template = ChatTemplate(source, SPECIAL)
    assert template.markers == family
    assert served(template, "Hair falls out.") == ("Hair falls out.", "It is.")


@pytest.mark.skipif(find_spec("trl") is None, reason="the templates are TRL's")
@pytest.mark.parametrize("reasoning", ["Hair falls out.", None], ids=["thought", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_a_real_template_is_trained_as_it_is_served(name: str, reasoning: str | None) -> None:
    spec = find_spec("trl")
    assert spec is not None
    assert spec.origin
    path = Path(spec.origin).with_name("chat_templates") / f"{name}.jinja"
    thought, answer = served(ChatTemplate(path.read_text(encoding="utf-8"), SPECIAL), reasoning)
    assert thought == (reasoning or "")
    assert answer.startswith("It is.")
    assert "think" not in answer


@pytest.mark.parametrize("reasoning", ["Hair falls out.", None])
def test_an_empty_thought_that_the_template_writes_does_not_come_behind_the_thought(reasoning: str | None) -> None:
    template = ChatTemplate(NOT_THOUGHT, SPECIAL)
    messages = [Message("user", "Is it iron?"), Message("assistant", "It is.", reasoning)]
    text = template.segments(messages)[-1].text
    assert text == f"{reasoning or ''}\n</think>\n\nIt is.<|im_end|>\n"


@pytest.mark.parametrize("field", ["reasoning", "thinking", "thought"])
def test_a_template_gets_reasoning_in_the_field_that_it_reads(field: str) -> None:
    source = TURNS.replace(
        "{{ message.content }}", f"<think>{{{{ message.{field} }}}}</think>{{{{ message.content }}}}"
    )
    template = ChatTemplate(source.replace("SIGN", "").replace("OPENED", ""), SPECIAL)
    assert template.reasoning_field == field
    assert served(template, "Hair falls out.") == ("Hair falls out.", "It is.")


def test_a_word_in_a_template_is_no_field() -> None:
    template = ChatTemplate(TURNS.replace("SIGN", "a thinking model").replace("OPENED", ""), SPECIAL)
    assert template.reasoning_field is None


def test_a_template_that_reads_parts_gets_its_texts_as_parts() -> None:
    template = ChatTemplate(PARTS.replace("SIGN", "").replace("OPENED", ""), SPECIAL)
    assert template.takes_content_parts
    assert served(template, "Hair falls out.") == ("Hair falls out.", "It is.")
