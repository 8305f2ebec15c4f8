"""Tools, calls and results in chat templates: rendered as transformers does, scored as the assistant's turns."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gladstone.chat.guarded_template import GuardedTemplate
from gladstone.chat.messages import Message, ToolCall
from gladstone.chat.template import ChatTemplate
from gladstone.errors import DataError
from tests.gladstone.chat_templates import CHATML, GEMMA, TEMPLATES
from tests.gladstone.tool_templates import HERMES, MISTRAL, ONE_CALL, TEXT_ARGUMENTS, TOOL_TEMPLATES

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
DEFINITION = {
    "type": "function",
    "function": {
        "name": "lookup_dose",
        "description": "usual adult dose",
        "parameters": {
            "type": "object",
            "properties": {"drug": {"type": "string", "description": "its name"}},
            "required": ["drug"],
        },
    },
}
TOOLS = (json.dumps(DEFINITION),)
CALL = ToolCall("lookup_dose", '{"drug": "ibuprofén"}', "abcdefgh1")
QUESTION, RESULT = Message("user", "How much?"), Message("tool", '{"dose": "400 mg"}', tool_call_id="abcdefgh1")
CALLING, ANSWER = Message("assistant", "", tool_calls=(CALL,)), Message("assistant", "400 mg at a time.")
ROW = (QUESTION, CALLING, RESULT, ANSWER)
AGAIN = (*ROW, Message("user", "Sure?"), Message("assistant", "Quite sure."))
# real families' templates come with the peer that patches them for training
TRL = (
    Path(next(iter(getattr(importlib.util.find_spec("trl"), "submodule_search_locations", ())), "")) / "chat_templates"
)
REAL = (
    "qwen2_5",
    "qwen3",
    "llama3_1",
    "llama3_2",
    "glm4moe",
    "gptoss",
    "gemma4",
    "lfm2_2_5",
    "nemotron_3_nano",
    "qwen3_5_think",
)


def source_of(name: str) -> str:
    return TOOL_TEMPLATES[name] if name in TOOL_TEMPLATES else (TRL / f"{name}.jinja").read_text(encoding="utf-8")


def as_dicts(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """What a user of transformers writes, by its documentation."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            turn["tool_calls"] = [
                {"type": "function", "id": call.id,
                 "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
                for call in message.tool_calls
            ]  # fmt: skip
        if message.tool_call_id:
            turn |= {"tool_call_id": message.tool_call_id, "name": "lookup_dose"}
        turns.append(turn)
    return turns


@pytest.fixture(scope="module")
def peer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL)


@pytest.mark.parametrize("name", [*REAL, "hermes", "mistral", "one-call"])
def test_tools_and_calls_are_rendered_as_transformers_does(name: str, peer: Any) -> None:
    source = source_of(name)
    template = ChatTemplate(source, SPECIAL)
    for messages, prompt in ((ROW, False), (AGAIN, False), (ROW[:1], True), (ROW[:3], True)):
        expected = peer.apply_chat_template(
            as_dicts(messages), tools=[DEFINITION], chat_template=source, tokenize=False, add_generation_prompt=prompt
        )
        assert template.render(messages, tools=TOOLS, add_generation_prompt=prompt) == expected
        assert "lookup_dose" in expected


@pytest.mark.parametrize("name", [*REAL, *TOOL_TEMPLATES])
def test_calls_are_scored_with_their_end_and_results_never_are(name: str) -> None:
    template = ChatTemplate(source_of(name), SPECIAL)
    texts = [segment for example in template.examples(AGAIN, TOOLS) for segment in example]
    call, *answers = [segment.text for segment in texts if segment.scored]
    assert "lookup_dose" in call
    assert "ibuprof" in call
    assert not call.rstrip().endswith("lookup_dose")
    for answer, message in zip(answers, (ANSWER, AGAIN[-1]), strict=True):
        assert message.content in answer
        assert answer.strip() != message.content
    assert not any('"dose"' in text for text in (call, *answers))
    shown = "".join(segment.text for segment in texts if not segment.scored)
    assert "400 mg" in shown


@pytest.mark.parametrize("name", [*REAL, *TOOL_TEMPLATES])
def test_every_answer_follows_the_prompt_that_the_model_gets_when_it_is_served(name: str) -> None:
    template = ChatTemplate(source_of(name), SPECIAL)
    prompts = [
        template.render(AGAIN[:place], tools=TOOLS, add_generation_prompt=True)
        for place, message in enumerate(AGAIN)
        if message.role == "assistant"
    ]
    found = []
    for example in template.examples(AGAIN, TOOLS):
        text = ""
        for segment in example:
            found += [text] if segment.scored else []
            text += segment.text
    assert found == prompts


def test_a_template_takes_calls_in_the_way_that_it_needs() -> None:
    texts = ChatTemplate(TEXT_ARGUMENTS, SPECIAL)
    assert '<|call|>lookup_dose\n```json\n{"drug": "ibuprofén"}\n```<|end|>' in texts.render(ROW, tools=TOOLS)
    mistral = ChatTemplate(MISTRAL, SPECIAL)
    assert "abcdefgh1" in mistral.render(ROW, tools=TOOLS)
    for own_id in ("call_0123456789", None):
        calling = replace(CALLING, tool_calls=(replace(CALL, id=own_id),))
        text = mistral.render((QUESTION, calling, replace(RESULT, tool_call_id=own_id), ANSWER), tools=TOOLS)
        made = text.partition('"id": "')[2][:9]
        assert made.isalnum()
        assert f'"call_id": "{made}"' in text


def test_a_result_gets_name_and_id_of_the_call_that_it_answers() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m | tojson }}{% endfor %}{{ tools | tojson }}")
    both = replace(CALLING, tool_calls=(CALL, ToolCall("weigh", "{}", "abcdefgh2")))
    named = template.turns(
        (QUESTION, both, replace(RESULT, tool_call_id="abcdefgh2"), replace(RESULT, tool_call_id=None))
    )
    assert [(turn["name"], turn["tool_call_id"]) for turn in named[2:]] == [
        ("weigh", "abcdefgh2"), ("lookup_dose", "abcdefgh1"),
    ]  # fmt: skip


REFUSED = [
    (CHATML, ROW, TOOLS, "does not show the model its tools"),
    (CHATML, ROW[:1] + ROW[3:], TOOLS, "leave `tools` out of rows that call none"),
    (CHATML, ROW, (), "does not write tool calls"),
    (GEMMA, ROW, (), "does not write tool calls.*roles must alternate"),
    (TEMPLATES["mistral"], (QUESTION, ANSWER, RESULT, ANSWER), (), "would be lost or read as an answer"),
    (ONE_CALL, (QUESTION, replace(CALLING, tool_calls=(CALL, CALL)), RESULT, ANSWER), TOOLS, "2 calls in one turn"),
]


@pytest.mark.parametrize(("source", "messages", "tools", "told"), REFUSED)
def test_a_template_without_tools_is_refused_by_its_name(
    source: str, messages: tuple[Message, ...], tools: tuple[str, ...], told: str
) -> None:
    with pytest.raises(DataError, match=told) as caught:
        ChatTemplate(source, SPECIAL, name="smollm").render(messages, tools=tools)
    assert "the chat template of smollm " in str(caught.value)
    assert "base.chat_template" in str(caught.value)


@pytest.mark.parametrize("name", ["question-answer", "instruction", "flan-t5-medical"])
def test_templates_of_plain_questions_take_no_tools(name: str) -> None:
    path = Path(__file__).parents[2] / "gladstone" / "chat" / "templates" / f"{name}.jinja"
    template = ChatTemplate(path.read_text(encoding="utf-8"), SPECIAL)
    for tools in (TOOLS, ()):
        with pytest.raises(DataError, match=r"base\.chat_template"):
            template.render(ROW, tools=tools)


def test_text_beside_a_call_that_the_template_leaves_out_is_refused() -> None:
    spoken = replace(CALLING, content="Let me look that up.")
    with pytest.raises(DataError, match="Let me look that up"):
        ChatTemplate(ONE_CALL, SPECIAL).examples((QUESTION, spoken, RESULT, ANSWER), TOOLS)
    kept = ChatTemplate(HERMES, SPECIAL).examples((QUESTION, spoken, RESULT, ANSWER), TOOLS)
    assert "Let me look that up." in "".join(segment.text for segment in kept[0] if segment.scored)


@pytest.mark.parametrize("text", ["not JSON", "[1]"])
def test_arguments_and_definitions_that_are_no_object_are_refused(text: str) -> None:
    template = ChatTemplate(HERMES, SPECIAL)
    with pytest.raises(DataError, match="a tool's definition"):
        template.render(ROW, tools=(text,))
    with pytest.raises(DataError, match="the arguments of 'lookup_dose'"):
        template.render(
            (QUESTION, replace(CALLING, tool_calls=(replace(CALL, arguments=text),)), *ROW[2:]), tools=TOOLS
        )


def test_tools_reach_a_guarded_template_as_they_reach_one_within_the_process() -> None:
    plain = ChatTemplate(MISTRAL, SPECIAL)
    with GuardedTemplate(MISTRAL, SPECIAL) as guarded:
        assert guarded.render(AGAIN, tools=TOOLS) == plain.render(AGAIN, tools=TOOLS)
        assert guarded.examples(AGAIN, TOOLS) == plain.examples(AGAIN, TOOLS)
        assert guarded.tool_support == plain.tool_support
    with GuardedTemplate(CHATML, SPECIAL) as guarded, pytest.raises(DataError, match="would be lost"):
        guarded.render(ROW, tools=TOOLS)
