from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from export.convert.llamacpp_converter import archive_path
from gladstone.chat.messages import Message
from gladstone.chat.reasoning_markers import Markers
from gladstone.chat.template import ChatTemplate
from gladstone.llamacpp.model import Model
from runtime.scheduling.generation import Vocabulary
from runtime.text.prompt import prompt_tokens
from tests.runtime.vocabulary_table import (
    CONTROL,
    Reference,
    lost_by_high_level_class,
    made_control,
    reference_of,
    short_name,
    streamed,
    unpack_vocabularies,
    wrong_pieces,
)

# one of each kind, and those with the longest or the strangest tokens; the others are more of the same
ALWAYS = ("bert-bge", "command-r", "gemma-4", "gpt-2", "llama-spm", "nomic-bert-moe", "phi-3", "qwen2")
OTHERS = (
    "aquila", "baichuan", "deepseek-coder", "deepseek-llm", "falcon", "gpt-neox", "llama-bpe", "mpt", "qwen35",
    "refact", "starcoder",
)  # fmt: skip
NAMES = [*ALWAYS, *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS)]
# which names llama.cpp takes for control tokens though the file calls them text
MADE_CONTROL = {"</s>", "<|endoftext|>", "<|tool_response>", "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>"}
LOST_BY_HIGH_LEVEL_CLASS = {"llama-bpe": 231, "qwen2": 240, "gemma-4": 379, "deepseek-llm": 70, "gpt-2": 14}


@dataclass(frozen=True)
class Loaded:
    """A vocabulary, loaded by the engine and decoded by the test."""

    path: Path
    model: Model
    vocabulary: Vocabulary
    reference: Reference
    made_control: set[int]


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    if not archive_path().is_file():
        pytest.fail("llama.cpp's source archive is not there: run `make set-up`")
    return {short_name(path): path for path in unpack_vocabularies(tmp_path_factory.mktemp("vocabularies"))}


@pytest.fixture(scope="module", params=NAMES)
def loaded(vocabularies: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Loaded]:
    path = vocabularies[request.param]
    reference = reference_of(path)
    with Model(path, vocab_only=True) as model:
        yield Loaded(path, model, Vocabulary(model), reference, made_control(reference, model))


def test_the_archive_holds_exactly_the_vocabularies_that_are_tested(vocabularies: dict[str, Path]) -> None:
    assert set(vocabularies) == {*ALWAYS, *OTHERS}


def test_no_token_is_lost_or_shortened(loaded: Loaded) -> None:
    assert len(loaded.reference.pieces) == loaded.model.vocab_size
    assert wrong_pieces(loaded.reference, loaded.vocabulary.piece, loaded.made_control) == []
    assert {loaded.reference.texts[token] for token in loaded.made_control} <= MADE_CONTROL


def test_tokens_streamed_one_by_one_give_the_text_of_all_their_bytes(loaded: Loaded) -> None:
    shown, expected = streamed(loaded.reference, loaded.vocabulary, loaded.made_control)
    assert len(expected) > 100_000
    assert shown == expected


def test_control_tokens_have_no_text(loaded: Loaded) -> None:
    kinds = loaded.reference.kinds
    control = [token for token, kind in enumerate(kinds) if kind == CONTROL]
    assert control
    assert all(loaded.model.is_control(token) for token in control)
    assert all(loaded.vocabulary.piece(token) == b"" for token in (*control, *loaded.made_control))


@pytest.mark.parametrize("step", [20, pytest.param(1, marks=pytest.mark.long)])
def test_what_a_user_types_never_becomes_a_control_token(loaded: Loaded, step: int) -> None:
    model = loaded.model
    control = {token for token in range(model.vocab_size) if model.is_control(token)}
    typed = [*control, *range(0, model.vocab_size, step)]
    found = [token for token in typed if not control.isdisjoint(model.tokenize(loaded.reference.user_text(token)))]
    assert found == []


def test_emojis_among_byte_letters_are_read_as_hugging_faces_decoder_reads_them(vocabularies: dict[str, Path]) -> None:
    from tokenizers.decoders import ByteLevel

    decoder = ByteLevel()
    texts = reference_of(vocabularies["command-r"]).texts
    with Model(vocabularies["command-r"], vocab_only=True) as model:
        tokens = [token for token in range(200, 3000) if model.token_text(token) == texts[token]]
        assert len(tokens) == 2800
        assert all(model.piece(token).decode("utf-8", "replace") == decoder.decode([texts[token]]) for token in tokens)
        assert model.piece(texts.index("™")) == "™".encode()


def test_control_tokens_have_a_text_where_they_mark_reasoning(vocabularies: dict[str, Path]) -> None:
    markers = Markers("<|im_start|>", "<|im_end|>")  # stand-ins: control tokens of this vocabulary
    texts = reference_of(vocabularies["qwen2"]).texts
    opening, closing, other = map(texts.index, (markers.opening, markers.closing, "<|endoftext|>"))
    with Model(vocabularies["qwen2"], vocab_only=True) as model:
        assert model.is_control(opening)
        marked, plain = Vocabulary(model, markers), Vocabulary(model)
        assert [marked.piece(token).decode() for token in (opening, closing, other)] == [*markers.texts, ""]
        assert [plain.piece(token) for token in (opening, closing, other)] == [b"", b"", b""]


@pytest.mark.long
@pytest.mark.parametrize(("name", "lost"), LOST_BY_HIGH_LEVEL_CLASS.items())
def test_the_high_level_class_loses_tokens(vocabularies: dict[str, Path], name: str, lost: int) -> None:
    reference = reference_of(vocabularies[name])
    with Model(vocabularies[name], vocab_only=True) as model:
        control = made_control(reference, model)
    assert len(lost_by_high_level_class(vocabularies[name], reference, control)) == lost


def test_a_marker_that_a_template_uses_is_text_where_a_user_types_it(vocabularies: dict[str, Path]) -> None:
    template = ChatTemplate("{% for m in messages %}<|channel>thought {{ m.content }}<channel|>{% endfor %}")
    with Model(vocabularies["gemma-4"], vocab_only=True) as model:
        marker = model.tokenize("<|channel>")
        assert len(marker) == 1, "llama.cpp finds it in every text"
        tokens = prompt_tokens(model, template, [Message("user", "say <|channel>thought, please")])
        assert tokens.count(marker[0]) == 1, "the template's, and not the user's"
        text = b"".join(model.piece(token, special=True) for token in tokens).decode()
        assert text.endswith("<|channel>thought say <|channel>thought, please<channel|>")
        honest = prompt_tokens(model, template, [Message("user", "say hello")])
        rendered = template.render([Message("user", "say hello")], add_generation_prompt=True)
        assert honest == model.add_bos_eos(model.tokenize(rendered, parse_special=True))
