"""Tokens that were added to a tokenizer, from the adapter's folder to the GGUF, its proof and an answer's end."""

import json
from pathlib import Path
from typing import Any

import pytest

from export.build import ExportOptions
from export.convert.convert import Conversion, convert
from export.convert.vocabulary_fixes import merge_scores, prepends_space
from export.merge.plan import read_plan
from export.merge.vocabulary_growth import VocabularyGrowth, find_vocabulary_growth
from export.original.model import SourceOptions
from export.pipeline import export_gguf
from export.proof.check import Check
from export.proof.file import verify_file, verify_vocabulary
from export.proof.trained import Trained
from gladstone.chat.messages import Conversation, Message
from gladstone.commands.progress import Silent
from gladstone.errors import ConfigError, UnsupportedError
from gladstone.gguf.header import read_header
from gladstone.models.tokenizer import load_tokenizer
from tests.export.tiny_runs import load_float32
from tests.families import write_family

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FLAN = "{% for m in messages %}{{ m['content'] }}{% if m['role'] != 'user' %}</s>{% endif %}{% endfor %}"
CHAT, WORDS = ["<|im_start|>", "<|im_end|>"], ["paracetamolum", "<drugname>"]
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # llama.h: LLAMA_TOKEN_TYPE_*
SETTINGS: dict[str, dict[str, Any]] = {
    "tinyllama": {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "mistral": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "qwen2": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "qwen3": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 903, 904]},
    "gemma3": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "distilgpt2": {"target_modules": ["c_attn"], "modules_to_save": ["wte", "lm_head"], "fan_in_fan_out": True},
    "flan-t5": {"target_modules": ["q", "v"], "modules_to_save": ["lm_head"], "task_type": "SEQ_2_SEQ_LM"},
}
WARNINGS = (
    "Model has `tie_word_embeddings",
    "Setting `save_embedding_layers`",
    "The new embeddings",
    "The new lm_head",
)
pytestmark = [pytest.mark.filterwarnings(f"ignore:{each}") for each in WARNINGS]


def add_tokens(base: Path, folder: Path, words: Any = WORDS) -> Any:
    """The base's tokenizer with ChatML and words added, as `save_pretrained` writes it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    seq2seq = json.loads((base / "config.json").read_text()).get("is_encoder_decoder")
    tokenizer.chat_template = FLAN if seq2seq else CHATML
    if not seq2seq:
        tokenizer.add_tokens(CHAT, special_tokens=True)
        tokenizer.eos_token = CHAT[1]
    tokenizer.add_tokens(words)
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_grown(base: Path, folder: Path, words: Any = WORDS, multiple: int | None = None, **settings: Any) -> Path:
    """An adapter's folder as PEFT and its user leave it: weights, settings, the tokenizer."""
    import torch
    from peft import LoraConfig, get_peft_model

    tokenizer, model = add_tokens(base, folder, words), load_float32(base)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=multiple)
        adapted = get_peft_model(model, LoraConfig(**{"task_type": "CAUSAL_LM", "init_lora_weights": False} | settings))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if ".modules_to_save." in name or "trainable_tokens" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
    adapted.save_pretrained(folder)
    return folder


def proven(base: Path, adapter: Path, out: Path) -> dict[str, Check]:
    convert(Conversion("grown", base, adapter, ((adapter, 1.0),)), out, Silent(), "f32")
    tokenizer = load_tokenizer(adapter)
    turns = (Message("user", "Name three bones."), Message("assistant", "…"))
    trained = Trained(tokenizer, tokenizer.template(), base, adapter, [Conversation(turns, "row")])
    return {point.name: point for point in verify_file(out, trained, Silent())}


@pytest.mark.parametrize("family", [
    name if name == "tinyllama" else pytest.param(name, marks=pytest.mark.long) for name in SETTINGS
])  # fmt: skip
def test_a_grown_vocabulary_is_proven_with_its_tokens(tmp_path: Path, family: str) -> None:
    base = write_family(family, tmp_path / "base")
    adapter = write_grown(base, tmp_path / "adapter", multiple=16, **SETTINGS[family])
    checks = proven(base, adapter, tmp_path / "grown.gguf")
    assert [point.describe() for point in checks.values() if not point.passed] == []
    assert "added tokens" in checks
    assert checks["added words"].limited is (family in ("tinyllama", "mistral"))  # whose texts have marked spaces
    metadata = read_header(tmp_path / "grown.gguf").metadata
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    kinds = {token.strip(): kind for token, kind in zip(tokens, types, strict=True)}
    assert len(tokens) % 16 == 0
    assert (tokens[-1], types[-1]) == (f"[PAD{len(tokens) - 1}]", UNUSED)
    assert [kinds[word] for word in WORDS] == [USER_DEFINED, USER_DEFINED]
    if family != "flan-t5":
        assert [kinds[token] for token in CHAT] == [CONTROL, CONTROL]
        assert tokens[metadata["tokenizer.ggml.eos_token_id"]] == CHAT[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family("qwen2", tmp_path_factory.mktemp("qwen") / "base")


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return write_grown(base, tmp_path_factory.mktemp("grown"), **SETTINGS["qwen2"])


def test_the_end_of_an_answer_that_is_no_end_of_text_stops_it(base: Path, tmp_path: Path) -> None:
    """As Unsloth's `add_new_tokens` leaves it: chat tokens added as words, eos_token as it was."""
    from transformers import AutoTokenizer

    adapter = write_grown(base, tmp_path / "adapter", ["<turn>", "</turn>"], **SETTINGS["qwen2"])
    tokenizer = AutoTokenizer.from_pretrained(adapter, local_files_only=True)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.chat_template = CHATML.replace("<|im_start|>", "<turn>").replace("<|im_end|>", "</turn>")
    tokenizer.save_pretrained(adapter)
    convert(Conversion("grown", base, adapter, ((adapter, 1.0),)), tmp_path / "grown.gguf", Silent(), "f32")
    folder = load_tokenizer(adapter)
    turns = (Message("user", "Name three bones."), Message("assistant", "…"))
    trained = Trained(folder, folder.template(), base, adapter, [Conversation(turns, "row")])
    checks = {point.name: point for point in verify_vocabulary(tmp_path / "grown.gguf", trained)}
    assert checks["special tokens"].passed, checks["special tokens"].describe()
    assert "'</turn>' stops the answer" in checks["special tokens"].detail


def test_how_the_vocabulary_grew_is_told(base: Path, grown: Path) -> None:
    growth = find_vocabulary_growth(base, grown, read_plan(base, [(grown, 1.0)]))
    assert growth
    assert (growth.before, growth.after) == (903, 905)
    assert [text for _, text in growth.added] == WORDS
    assert growth.describe() == "the vocabulary grew from 903 to 905 rows: 2 added ('paracetamolum', '<drugname>')."
    assert find_vocabulary_growth(base, base, read_plan(base, [])) is None


def test_added_tokens_in_a_table_that_had_room_are_told(base: Path, tmp_path: Path) -> None:
    """As in Qwen's, whose table is larger than its tokenizer; nothing of their rows was trained."""
    roomy = write_grown(base, tmp_path / "roomy", [], 64, target_modules=["q_proj"])
    merged = tmp_path / "merged"
    load_float32(base).save_pretrained(merged)
    add_tokens(base, merged, [])
    model = load_float32(merged)
    model.resize_token_embeddings(960)
    model.save_pretrained(merged)
    from peft import LoraConfig, get_peft_model

    adapter = tmp_path / "adapter"
    get_peft_model(load_float32(merged), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(adapter)
    add_tokens(base, adapter)
    growth = find_vocabulary_growth(merged, adapter, read_plan(merged, [(adapter, 1.0)]))
    assert growth
    assert (growth.before, growth.after, growth.untrained) == (960, 960, tuple(WORDS))
    assert "kept its 960 rows, which had room" in growth.describe()
    assert "'paracetamolum', '<drugname>' were not trained" in growth.describe()
    assert find_vocabulary_growth(base, roomy, read_plan(base, [(roomy, 1.0)]))


def test_tokens_without_a_row_are_refused(base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    add_tokens(base, tmp_path)
    get_peft_model(load_float32(base), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    plan = read_plan(base, [(tmp_path, 1.0)])
    with pytest.raises(
        UnsupportedError, match=r"2 tokens were added .*'paracetamolum'.* no rows .*has 903.*number 904"
    ):
        find_vocabulary_growth(base, tmp_path, plan)


def test_a_vocabulary_that_lost_tokens_is_refused(base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = load_float32(base)
    model.resize_token_embeddings(880)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=r"cut from 903 to 880 rows, and 23 tokens of the tokenizer lost theirs"):
        find_vocabulary_growth(base, base, read_plan(base, [(tmp_path, 1.0)]))


def test_another_models_tokenizer_is_refused(base: Path, tmp_path: Path) -> None:
    other = write_family("mistral", tmp_path / "other")
    with pytest.raises(UnsupportedError, match=r"not the base's tokenizer with tokens added"):
        find_vocabulary_growth(base, other, read_plan(base, []))


def test_what_a_file_over_the_base_or_beside_it_cannot_be_is_told_before_any_work(
    base: Path, grown: Path, tmp_path: Path
) -> None:
    asked = SourceOptions(str(base))
    with pytest.raises(
        UnsupportedError, match=r"(?s)merge it with `gladstone export gguf`.*905 tokens, the base's 903"
    ):
        export_gguf(grown, asked, ExportOptions(("q8_0",), lora=True), tmp_path / "lora", Silent())
    with pytest.raises(ConfigError, match=r"--with-base: the vocabulary grew from 903 to 905"):
        export_gguf(grown, asked, ExportOptions(("q8_0",), with_base=True), tmp_path / "both", Silent())
    assert not list(tmp_path.rglob("*.gguf"))


def test_the_export_says_how_the_vocabulary_grew(base: Path, grown: Path, tmp_path: Path) -> None:
    made = export_gguf(grown, SourceOptions(str(base)), ExportOptions(("q8_0",)), tmp_path, Silent())
    told = "the vocabulary grew from 903 to 905 rows: 2 added ('paracetamolum', '<drugname>')."
    assert told in made.notes
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert told.partition("<")[0] in card  # Markdown escapes the token's brackets
    assert told in (tmp_path / "proof.txt").read_text(encoding="utf-8")
    (checks,) = made.proof.values()
    assert {"added words", "added tokens"} <= {check.name for check in checks}


def test_words_that_a_gguf_cannot_find_as_training_did_are_told(base: Path, tmp_path: Path) -> None:
    from tokenizers import AddedToken

    words = [AddedToken("ibuprofenum", lstrip=True, rstrip=True)]
    adapter = write_grown(base, tmp_path / "adapter", words, **SETTINGS["qwen2"])
    point = proven(base, adapter, tmp_path / "grown.gguf")["added words"]
    assert point.passed
    assert point.describe().startswith("limited added words: ")
    assert "ibuprofenum" in point.detail
    assert "lstrip, rstrip" in point.detail


def test_scores_merge_what_the_tokenizer_merges_first() -> None:
    tokenizer = {"model": {"merges": ["a b", ["▁", "c"], "ab c"]}}
    scores = merge_scores(tokenizer, ["a", "ab", b"\xe2\x96\x81c", "abc"])
    assert scores[1] > scores[2] > scores[3] > scores[0]


@pytest.mark.parametrize(
    ("parts", "prepends"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend"}, {"type": "Replace"}]}}, True),
        ({"normalizer": {"type": "Replace"}}, False),
        ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}}, True),
        ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never"}}, False),
        ({"pre_tokenizer": {"type": "Metaspace", "add_prefix_space": False}}, False),
        ({}, False),
    ],
)
def test_the_space_in_front_is_the_tokenizers(parts: dict[str, Any], prepends: bool) -> None:
    assert prepends_space(parts) is prepends


def test_many_tokens_are_told_by_the_first_few() -> None:
    growth = VocabularyGrowth(100, 200, tuple((100 + number, f"t{number}") for number in range(90)), unused=10)
    assert "90 added ('t0', 't1', 't2', 't3', 't4' and 85 more); 10 rows belong to no token" in growth.describe()
