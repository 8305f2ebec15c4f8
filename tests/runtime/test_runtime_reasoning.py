import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gladstone.chat.reasoning_markers import FAMILIES, THINK, Markers, find_markers
from gladstone.llamacpp.model import Model
from runtime.request import Completion, Event, Request
from runtime.sampling.sampler import Sampling
from runtime.scheduling.generation import Generation, Vocabulary
from runtime.text.reasoning_splitter import Piece, ReasoningSplitter

EACH = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.opening + family.bridge)
CUTS = st.lists(st.integers(0, 200), max_size=14)
NEWLINES = st.sampled_from(["", "\n", "\n\n"])
# what looks like the beginning of a marker, and is none
WORDS = st.lists(
    st.sampled_from(["iron", " low", "\n", "\n\n", "<", "</", "<|", "[", "é", "🩺", " ", "<|en"]), max_size=8
)
TEXTS = WORDS.map("".join).map(lambda text: f"a{text}.")
FEW = settings(max_examples=25)  # of each family
REOPENING = [family for family in FAMILIES if family.again]
ENDING = [family for family in FAMILIES if family.ending]


def split(text: str, cuts: list[int], family: Markers, *, opened: bool = False) -> tuple[str, str]:
    """Reasoning and answer of a text that comes in pieces."""
    splitter = ReasoningSplitter(opened=opened, markers=family)
    ends = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces: list[Piece] = []
    for begin, end in itertools.pairwise(ends):
        pieces += splitter.feed(text[begin:end])
    pieces += splitter.flush()
    assert all(piece.text for piece in pieces)
    assert [piece.reasoning for piece in pieces] == sorted((piece.reasoning for piece in pieces), reverse=True)
    reasoning = "".join(piece.text for piece in pieces if piece.reasoning)
    return reasoning, "".join(piece.text for piece in pieces if not piece.reasoning)


@EACH
@FEW
@given(TEXTS, TEXTS, st.lists(NEWLINES, min_size=5, max_size=5), CUTS)
def test_reasoning_and_answer_are_separated_wherever_the_text_is_cut(
    family: Markers, thought: str, answer: str, gaps: list[str], cuts: list[int]
) -> None:
    before, opened, closing, closed, bridged = gaps
    text = f"{before}{family.opening}{opened}{thought}{closing}{family.closing}{closed}{family.bridge}{bridged}{answer}"
    assert split(text, cuts, family) == (thought, answer)


@EACH
@FEW
@given(TEXTS, TEXTS, NEWLINES, CUTS)
def test_reasoning_that_the_prompt_opened_is_separated_from_the_answer(
    family: Markers, thought: str, answer: str, gap: str, cuts: list[int]
) -> None:
    text = f"{gap}{thought}{gap}{family.closing}{gap}{family.bridge}{gap}{answer}"
    assert split(text, cuts, family, opened=True) == (thought, answer)


@EACH
@FEW
@given(TEXTS, CUTS)
def test_an_answer_may_follow_reasoning_without_a_bridge(family: Markers, answer: str, cuts: list[int]) -> None:
    assert split(f"{family.opening}hm{family.closing}{answer}", cuts, family) == ("hm", answer)


@EACH
@FEW
@given(TEXTS, NEWLINES, CUTS)
def test_empty_reasoning_shows_nothing(family: Markers, answer: str, gap: str, cuts: list[int]) -> None:
    assert split(f"{family.opening}{gap}{family.closing}{family.bridge}{gap}{answer}", cuts, family) == ("", answer)


@EACH
@FEW
@given(TEXTS, NEWLINES, CUTS)
def test_an_answer_without_reasoning_is_an_answer(family: Markers, answer: str, gap: str, cuts: list[int]) -> None:
    assert split(answer, cuts, family) == ("", answer)
    if family.direct:
        assert split(f"{gap}{family.direct}{gap}{answer}", cuts, family) == ("", answer)


@EACH
@FEW
@given(TEXTS, NEWLINES, CUTS)
def test_reasoning_that_never_ends_is_not_an_answer(family: Markers, thought: str, gap: str, cuts: list[int]) -> None:
    assert split(f"{family.opening}{gap}{thought}{gap}", cuts, family) == (thought, "")
    assert split(f"{gap}{thought}{gap}", cuts, family, opened=True) == (thought, "")


@EACH
@FEW
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), CUTS)
def test_markers_within_an_answer_are_text(family: Markers, which: list[int], cuts: list[int]) -> None:
    written = " and ".join(family.texts[number % len(family.texts)] for number in which)
    answer = f"Write {written} so."
    assert split(answer, cuts, family) == ("", answer)
    assert split(f"{family.opening}hm{family.closing}{family.bridge}{answer}", cuts, family) == ("hm", answer)


@EACH
@FEW
@given(st.data(), CUTS)
def test_a_marker_that_was_cut_short_behind_its_first_token_is_not_shown(
    family: Markers, data: st.DataObject, cuts: list[int]
) -> None:
    thought = f"{family.opening}hm{family.closing}"
    places = (("", family.opening), ("", family.direct), (thought, family.bridge))
    awaited = [(before, marker) for before, marker in places if re.match("<[^>]+>.", marker)]
    for before, marker in awaited:
        end = data.draw(st.integers(marker.index(">") + 1, len(marker) - 1))
        assert split(before + marker[:end], cuts, family) == ("hm" if before else "", "")


@pytest.mark.parametrize("answer", ["<", "</", "<|", "<thin", "<|chan", "[TH", " "])
def test_an_answer_that_might_have_become_a_marker_is_shown_at_the_end(answer: str) -> None:
    assert all(split(answer, [], family) == ("", answer) for family in FAMILIES)


@pytest.mark.parametrize("family", REOPENING, ids=lambda family: family.opening)
@FEW
@given(TEXTS, TEXTS, TEXTS, CUTS)
def test_a_second_block_of_reasoning_belongs_to_the_reasoning(
    family: Markers, first: str, second: str, answer: str, cuts: list[int]
) -> None:
    thoughts = f"{family.opening}{first}{family.closing}{family.again}{second}{family.closing}"
    assert split(f"{thoughts}{family.bridge}{answer}", cuts, family) == (f"{first}\n\n{second}", answer)
    assert split(thoughts, cuts, family) == (f"{first}\n\n{second}", "")


@pytest.mark.parametrize("family", ENDING, ids=lambda family: family.opening)
@FEW
@given(TEXTS, NEWLINES, st.sampled_from(["", "\n", " \n"]), CUTS)
def test_what_stands_behind_an_answer_is_dropped_unless_more_follows(
    family: Markers, answer: str, gap: str, tail: str, cuts: list[int]
) -> None:
    begin = f"{family.opening}hm{family.closing}{family.bridge}"
    assert split(f"{begin}{answer}{gap}{family.ending}{tail}", cuts, family) == ("hm", answer)
    more = f"{answer}{gap}{family.ending}{tail} and so on."
    assert split(begin + more, cuts, family) == ("hm", more)


@pytest.mark.parametrize("family", ENDING, ids=lambda family: family.opening)
def test_an_answer_is_shown_while_it_comes_and_only_its_possible_end_is_held_back(family: Markers) -> None:
    splitter = ReasoningSplitter(markers=family)
    fed = (
        f"{family.opening}hm{family.closing}{family.bridge}",
        "Iron",
        "\n",
        "is",
        f"\n{family.ending}\n",
        " low",
        ".",
    )
    shown = ["".join(piece.text for piece in splitter.feed(text)) for text in fed]
    assert shown == ["hm", "Iron", "", "\nis", "", f"\n{family.ending}\n low", "."]
    assert splitter.flush() == []


@pytest.mark.parametrize(
    ("template", "opening", "bridge"),
    [
        ("{{ '<|im_start|>assistant\\n<think>\\n' }}", "<think>", ""),
        ("{%- if '</think>' in content %}{{ content.split('</think>')[-1] }}", "<think>", ""),
        ("{{ '<think>' ~ thought ~ '</think>' }} {{ '<tool><response>' ~ result }}", "<think>", ""),
        ("# Valid channels: analysis, final. {{ '<|start|>assistant<|channel|>final<|message|>' + content }}",
         "<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"),
        ("{%- for part in text.split('<channel|>') -%}{{ part.split('<|channel>')[0] }}", "<|channel>thought", ""),
        ("{{ message.content.split('<unused95>')[-1] }}", "<unused94>thought", ""),
        ("<|CHATBOT_TOKEN|><|START_THINKING|><|END_THINKING|>{{ '<|START_RESPONSE|>' }}",
         "<|START_THINKING|>", "<|START_RESPONSE|>"),
        ("<|CHATBOT_TOKEN|><|START_THINKING|>{{ '<|START_TEXT|>' + msg + '<|END_TEXT|>' }}",
         "<|START_THINKING|>", "<|START_TEXT|>"),
        ("Think between [THINK] and [/THINK], then answer.", "[THINK]", ""),
        ("{%- set begin = '<seed:think>' -%}{%- set end = '</seed:think>' -%}", "<seed:think>", ""),
        ("{%- set inner = '<|inner_prefix|>' -%}{%- set outer = '<|inner_suffix|>' -%}", "<|inner_prefix|>", ""),
        ("{{ content.split('◁/think▷')[-1] }}", "◁think▷", ""),
        ("{{- '<|open|>' + tag -}}{{- '<|sep|>' -}}", "<|open|>think<|sep|>", "<|open|>response<|sep|>"),
        ("Put thoughts into <think></think> and the reply into <response></response>.", "<think>", "<response>"),
        ("Start with 'Here is my thought process:', then 'Here is my response:'.", "Here is my thought process:", ""),
        ("{{ thoughts + '\\n[BEGIN FINAL RESPONSE]\\n' }}", "Here are my reasoning steps:", ""),
        ("{{ '<mm:think>' ~ thought ~ '</mm:think>' }}", "<mm:think>", ""),
        ("{{ '<|im_start|>' + message.role + '\\n' + message.content }}", "<think>", ""),
        ("", "<think>", ""),
    ],
)  # fmt: skip
def test_the_family_is_found_by_what_its_templates_hold(template: str, opening: str, bridge: str) -> None:
    found = find_markers(template)
    assert (found.opening, found.bridge) == (opening, bridge)


def test_every_family_can_be_found() -> None:
    assert all(find_markers(sign) == family for family in FAMILIES for sign in family.signs or (family.opening,))
    assert find_markers("no marker at all") == THINK


@pytest.fixture(scope="module")
def vocabulary_model(smollm: Path) -> Iterator[Model]:
    with Model(smollm, vocab_only=True) as model:
        yield model


@EACH
@pytest.mark.parametrize("opened", [False, True])
def test_a_budget_closes_the_reasoning_and_leads_to_the_answer(
    vocabulary_model: Model, family: Markers, opened: bool
) -> None:
    model, events = vocabulary_model, list[Event]()
    begin = [] if opened else model.tokenize(family.opening + "\n")
    prompt = model.tokenize("Hello" + (family.opening if opened else ""))
    request = Request(prompt, Sampling(max_tokens=500), reasoning_tokens=6)
    generation = Generation(Vocabulary(model, family), request, 2048, events.append)
    generation.open()
    for token in (*begin, *model.tokenize(" one two three four five six seven eight nine")):
        before = len(generation.tokens)
        generation.write(token)
        if len(generation.tokens) > before + 1:  # it wrote on by itself
            break
    for token in model.tokenize("The answer."):
        generation.write(token)
    generation.end("end")
    done = events[-1]
    assert isinstance(done, Completion)
    assert done.reasoning is not None
    assert done.reasoning.startswith(" one two three")
    assert "seven" not in done.reasoning
    assert done.text.strip() == "The answer."
    assert generation.tokens[: len(prompt) + len(begin)] == prompt + begin
