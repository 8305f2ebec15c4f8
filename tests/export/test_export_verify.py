"""The proof on a healthy file, and each fault that it is there to find."""

import dataclasses
import math
import unicodedata
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.convert.convert import Conversion, convert
from export.original.finding import find, opened
from export.proof.answers import check_answers
from export.proof.check import Check
from export.proof.comparison import SETTLED_ROWS, TIE_LOGITS, Comparison, kl_limit
from export.proof.divergence import kl_divergence, log_softmax
from export.proof.file import proof_page, verify_file, verify_vocabulary
from export.proof.grown import same_tables
from export.proof.heldout import held_out_loss
from export.proof.quantised import check_quantised
from export.proof.reading_results import ReadingResults
from export.proof.reference import Reference
from export.proof.rows import proof_rows
from export.proof.texts import HAND_PICKED, proof_texts
from export.proof.trained import Trained, date_note, trained_of
from export.quantise.imatrix import calibration
from export.quantise.quantise import quantise
from export.quantise.types import Quantisation
from gladstone.chat.messages import Conversation, Message, ToolCall
from gladstone.chat.template import ChatTemplate
from gladstone.commands.progress import Silent
from gladstone.errors import ArtifactError
from gladstone.gguf.header import read_header
from gladstone.llamacpp.model import Model
from tests.export.tiny_runs import edit_json, rewrite_gguf, trained_by
from tests.families import write_family
from tests.gladstone import chat_templates, tool_templates
from tests.tiny_models import add_bos_to_every_text, copy_model

POINTS = [
    "vocabulary", "texts", "typed tokens", "special tokens", "chat template", "rendered turns", "prompts", "context",
    "distributions", "greedy answers",
]  # fmt: skip


def failed(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.detail for check in checks if not check.passed}


@pytest.mark.slow
def test_a_healthy_file_is_proven_in_every_point(f16: Path, trained: Trained) -> None:
    checks = verify_file(f16, trained, Silent())
    assert [check.name for check in checks] == POINTS
    assert failed(checks) == {}
    measured = {check.name: check.measured for check in checks}
    assert measured["vocabulary"]["entries"] == 49_152
    assert measured["texts"]["texts"] == 2_000
    assert measured["rendered turns"]["conversations"] == 50
    assert measured["distributions"]["mean_kl_nats"] < 2e-4
    assert measured["greedy answers"]["different"] == 0


@pytest.mark.slow
def test_a_wrong_end_token_is_found(f16: Path, trained: Trained, tmp_path: Path) -> None:
    faulty = rewrite_gguf(f16, tmp_path / "faulty.gguf", tokenizer__ggml__eos_token_id=0)
    found = failed(verify_vocabulary(faulty, trained))
    assert found.keys() == {"special tokens"}
    assert "eos is 0, trained 2" in found["special tokens"]


@pytest.mark.slow
def test_an_end_of_turn_that_does_not_stop_the_answer_is_found(f16: Path, trained: Trained) -> None:
    """llama.cpp knows `<|im_end|>` by name; a template of one's own may end turns with a token that it does not know."""
    template = ChatTemplate(trained.template.source.replace("<|im_end|>", "<jupyter_code>"))
    found = failed(verify_vocabulary(f16, dataclasses.replace(trained, template=template)))
    assert "the trained end of turn (13, '<jupyter_code>') does not stop the answer" in found["special tokens"]


@pytest.mark.slow
def test_another_template_is_found(f16: Path, trained: Trained, tmp_path: Path) -> None:
    text = trained.template.source + " "
    faulty = rewrite_gguf(f16, tmp_path / "faulty.gguf", tokenizer__chat_template=text)
    found = failed(verify_vocabulary(faulty, trained))
    assert found["chat template"] == "differs from the trained one"
    assert found["rendered turns"].startswith("100 of 100 renderings differ from transformers', first of ")


@pytest.mark.slow
def test_two_swapped_entries_of_the_vocabulary_are_found(f16: Path, trained: Trained, tmp_path: Path) -> None:
    tokens = list(read_header(f16).metadata["tokenizer.ggml.tokens"])
    tokens[40_000], tokens[40_001] = tokens[40_001], tokens[40_000]
    faulty = rewrite_gguf(f16, tmp_path / "faulty.gguf", tokenizer__ggml__tokens=tokens)
    found = failed(verify_vocabulary(faulty, trained))
    assert "vocabulary" in found
    assert found["vocabulary"].startswith("2 entries differ, first id 40000: ")


@pytest.mark.slow
def test_another_pre_tokenizer_is_found(f16: Path, trained: Trained, tmp_path: Path) -> None:
    assert read_header(f16).metadata["tokenizer.ggml.pre"] == "smollm"
    faulty = rewrite_gguf(f16, tmp_path / "faulty.gguf", tokenizer__ggml__pre="default")
    found = failed(verify_vocabulary(faulty, trained))
    assert "texts" in found
    assert "texts get other token ids, first" in found["texts"]


@pytest.mark.slow
@pytest.mark.parametrize("file_adds", [True, False])
def test_a_flipped_bos_setting_is_found(
    f16: Path, trained: Trained, tiny_base: Path, tmp_path: Path, file_adds: bool
) -> None:
    """SmolLM2 puts no BOS in front; for the other direction the training tokenizer does and the file does not."""
    faulty = rewrite_gguf(f16, tmp_path / "faulty.gguf", tokenizer__ggml__add_bos_token=file_adds)
    if not file_adds:
        from gladstone.models.tokenizer import load_tokenizer

        folder = copy_model(tiny_base, tmp_path / "tokenizer")
        add_bos_to_every_text(folder)
        trained = dataclasses.replace(trained, tokenizer=load_tokenizer(folder))
    found = failed(verify_vocabulary(faulty, trained))
    does = "adds" if file_adds else "does not add"
    assert found == {"special tokens": f"the GGUF {does} BOS, training did the opposite"}


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.5, pytest.param(4.0, marks=pytest.mark.long)])
def test_a_wrong_rope_base_is_found(f16: Path, trained: Trained, tmp_path: Path, factor: float) -> None:
    base = read_header(f16).metadata["llama.rope.freq_base"]
    faulty = rewrite_gguf(f16, tmp_path / "faulty.gguf", llama__rope__freq_base=base * factor)
    found = failed(check_answers(faulty, "F16", trained, Silent()))
    assert "distributions" in found
    assert "mean KL" in found["distributions"]


@pytest.mark.slow
def test_an_adapter_merged_with_the_wrong_strength_is_found(
    f16: Path, trained: Trained, tiny_base: Path, tiny_run: Path, tmp_path: Path
) -> None:
    """alpha / sqrt(r) in place of alpha / r, the mistake of a merge that does not know rsLoRA."""
    adapter = copy_model(tiny_run / "adapter", tmp_path / "adapter")
    edit_json(adapter / "adapter_config.json", use_rslora=True)
    faulty = tmp_path / "faulty.gguf"
    convert(Conversion("tiny", tiny_base, tiny_run / "tokenizer", ((adapter, 1.0),)), faulty, Silent())
    found = failed(check_answers(faulty, "F16", trained, Silent()))
    assert found.keys() == {"distributions", "greedy answers"}


@pytest.mark.slow
def test_a_file_without_the_adapter_is_found(f16: Path, trained: Trained) -> None:
    found = failed(check_answers(f16, "F16", dataclasses.replace(trained, adapter=None), Silent()))
    assert found.keys() == {"distributions", "greedy answers"}


def test_texts_for_the_proof_are_as_many_as_asked_for_and_hold_the_hard_ones(trained: Trained) -> None:
    special = list(trained.tokenizer.special_tokens)
    texts = proof_texts(["a row", "another"], special, 500)
    assert len(texts) == 500
    assert set(HAND_PICKED) | {"a row", "another"} <= set(texts)
    assert all(any(token in text for text in texts) for token in special)
    assert "" in texts
    assert max(map(len, texts)) >= 20_000
    assert texts == proof_texts(["a row", "another"], special, 500)


def as_logits(rows: list[list[float]]) -> Any:
    return np.array(rows, dtype=np.float32)


def test_the_divergence_is_that_of_the_definition() -> None:
    p, q = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]
    logits = [as_logits([[math.log(value) + shift for value in values]]) for values, shift in ((p, 3.0), (q, -7.0))]
    expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert kl_divergence(logits[0], logits[1])[0] == pytest.approx(expected, abs=1e-6)
    assert kl_divergence(logits[0], logits[0])[0] == 0
    assert np.exp(log_softmax(logits[0])).sum() == pytest.approx(1)


def test_the_divergence_stands_large_logits() -> None:
    assert kl_divergence(as_logits([[1e4, 0.0, -1e4]]), as_logits([[1e4, 0.0, -1e4]])).tolist() == [0.0]


@pytest.mark.parametrize(("gap", "passes"), [(0.5 * TIE_LOGITS, True), (2 * TIE_LOGITS, False)])
def test_another_best_token_is_no_fault_where_the_two_are_all_but_equal(gap: float, passes: bool) -> None:
    theirs = as_logits([[gap, 0.0, -9.0]] * 20)
    ours = as_logits([[0.0, 0.001, -9.0]] * 20)
    comparison = Comparison("F16", 1)
    comparison.add_logits(ours[:-1], theirs[:-1])
    comparison.add_greedy(ours[-1:], theirs[-1:], [1], ended=False)
    distributions, answers = comparison.checks("float32")
    assert distributions.measured["top1_agreement"] == 0
    assert distributions.measured["top1_agreement_but_for_ties"] == float(passes)
    assert answers.passed is passes
    assert answers.measured["equal_but_for_ties"] == int(passes)


def compared(rows: int, quantisation: str = "F16", **settings: Any) -> Comparison:
    """A comparison of rows that agree in each of their ten tokens."""
    comparison = Comparison(quantisation, 32, **settings)
    logits = as_logits([[3.0, 1.0, 0.0]] * 10)
    for _ in range(rows):
        comparison.add_row(logits, logits)
    return comparison


def test_equality_is_clear_after_enough_rows_without_one_token_beyond_the_limit() -> None:
    assert not compared(SETTLED_ROWS - 1).settled
    assert compared(SETTLED_ROWS).settled
    distributions, _ = compared(SETTLED_ROWS).checks("float32")
    assert (distributions.measured["rows"], distributions.measured["rows_in_all"]) == (SETTLED_ROWS, 32)
    assert f"the other {32 - SETTLED_ROWS} were not needed" in distributions.detail


@pytest.mark.parametrize("theirs", [[[3.0, 1.6, 0.0]], [[1.0, 1.2, 0.0]]])
def test_one_token_beyond_the_limit_leaves_all_rows_to_be_compared(theirs: list[list[float]]) -> None:
    comparison = compared(SETTLED_ROWS)
    comparison.add_row(as_logits([[3.0, 1.0, 0.0]]), as_logits(theirs))
    assert not comparison.settled


def test_a_different_greedy_answer_a_quantised_file_and_one_with_other_tables_leave_all_rows_to_be_compared() -> None:
    comparison = compared(SETTLED_ROWS)
    logits = as_logits([[3.0, 1.0, 0.0]])
    comparison.add_greedy(logits, logits, [1], ended=False)
    assert not comparison.settled
    assert not compared(SETTLED_ROWS, "Q8_0").settled
    assert not compared(SETTLED_ROWS, settles=False).settled


@pytest.mark.slow
def test_a_swapped_row_of_a_token_that_no_text_has_is_seen_in_the_tables(
    f16: Path, trained: Trained, tmp_path: Path
) -> None:
    def swap(data: Any) -> Any:
        changed = data.copy()
        changed[[40_000, 40_001]] = changed[[40_001, 40_000]]
        return changed

    faulty = rewrite_gguf(f16, tmp_path / "faulty.gguf", spoilt={"token_embd.weight": swap})
    model = Reference(trained).model
    assert same_tables(f16, model)
    assert not same_tables(faulty, model)


@pytest.mark.slow
def test_torch_computes_the_first_rows_of_a_healthy_file_and_all_rows_of_a_faulty_one(
    f16: Path, trained: Trained, tmp_path: Path
) -> None:
    many = [
        Conversation((Message("user", f"What is {number}?"), Message("assistant", f"It is {number}.")), "")
        for number in range(20)
    ]
    subject = dataclasses.replace(trained, rows=many)
    base = read_header(f16).metadata["llama.rope.freq_base"]
    faulty = rewrite_gguf(f16, tmp_path / "faulty.gguf", llama__rope__freq_base=base * 0.99)
    healthy, spoilt = (check_answers(path, "F16", subject, Silent())[0] for path in (f16, faulty))
    assert (healthy.passed, healthy.measured["rows"]) == (True, SETTLED_ROWS)
    assert spoilt.measured["rows"] == spoilt.measured["rows_in_all"] == 20


@pytest.mark.slow
def test_a_wrong_context_is_found(f16: Path, trained: Trained, tmp_path: Path) -> None:
    faulty = rewrite_gguf(f16, tmp_path / "faulty.gguf", llama__context_length=8192)
    found = failed(verify_vocabulary(faulty, trained))
    assert found == {"context": "the GGUF says 8192 tokens, the base was made for 2,048"}


@pytest.mark.slow
def test_two_tokens_that_begin_a_text_are_found(f16: Path, trained: Trained, tmp_path: Path) -> None:
    source = "{{ bos_token }}{{ bos_token }}" + trained.template.source
    faulty = rewrite_gguf(f16, tmp_path / "faulty.gguf", tokenizer__chat_template=source)
    changed = dataclasses.replace(trained, template=ChatTemplate(source, trained.template.special_tokens))
    assert failed(verify_vocabulary(faulty, trained)).keys() == {"chat template", "rendered turns"}
    assert "begin with two BOS" in failed(verify_vocabulary(faulty, changed))["prompts"]


@pytest.mark.slow
def test_a_template_that_writes_the_minute_is_proven_with_the_time_of_the_run(
    f16: Path, trained: Trained, tmp_path: Path
) -> None:
    source = "{{- '<|im_start|>system\n' + strftime_now('%d %b %Y %H:%M') + '<|im_end|>\n' -}}" + chat_templates.CHATML
    template = ChatTemplate(source, trained.template.special_tokens, now=datetime(2025, 1, 2, 3, 4))
    dated = dataclasses.replace(trained, template=template)
    path = rewrite_gguf(f16, tmp_path / "dated.gguf", tokenizer__chat_template=source)
    assert failed(verify_vocabulary(path, dated)) == {}
    row = next(row for row in trained.rows if not row.is_text)
    assert "02 Jan 2025 03:04" in trained.tokenizer.decode(dated.prompt(row, 0))


@pytest.mark.slow
def test_rows_with_tools_are_proven_as_they_were_trained(f16: Path, trained: Trained, tmp_path: Path) -> None:
    calling = Message("assistant", "", tool_calls=(ToolCall("weigh", '{"kg": 70}', "c1"),))
    asked = (Message("user", "Weigh me."), calling)
    tools = ('{"type": "function", "function": {"name": "weigh", "description": "a person", "parameters": {}}}',)
    answered = (*asked, Message("tool", "70 kg", tool_call_id="c1"), Message("assistant", "You weigh 70 kg."))
    rows = [Conversation(asked, "x:1", tools), Conversation(answered, "x:2", tools)]
    source = tool_templates.HERMES.removeprefix("{{- bos_token }}")  # this model's BOS opens a turn
    template = ChatTemplate(source, trained.template.special_tokens)
    subject = dataclasses.replace(trained, template=template, rows=rows)
    path = rewrite_gguf(f16, tmp_path / "tools.gguf", tokenizer__chat_template=template.source)
    assert failed(verify_vocabulary(path, subject)) == {}
    longer, shorter = proof_rows(subject)
    assert '{"name": "weigh", "arguments": {"kg": 70}}' in trained.tokenizer.decode(shorter.answer)
    assert "<tool_response>\n70 kg" in trained.tokenizer.decode(longer.prompt)
    assert trained.tokenizer.decode(longer.answer) == "You weigh 70 kg."
    assert '"arguments": {"kg": 70}' in calibration("rows", rows, template, "", 1).text


def test_where_the_template_writes_the_date_an_export_says_which_one_was_trained(tiny_run: Path) -> None:
    template = ChatTemplate("{{ strftime_now('%d') }}")
    with opened(find(tiny_run), Silent()) as older:
        training = dataclasses.replace(older.training, template_date=datetime(2026, 11, 30, 23, 59, 58))
        dated = dataclasses.replace(older, training=training)
        assert date_note(older, ChatTemplate(chat_templates.CHATML)) == []
        assert "is not recorded" in date_note(older, template)[0]
        assert "2026-11-30 23:59:58" in date_note(dated, template)[0]
        assert trained_of(dated).template.now == datetime(2026, 11, 30, 23, 59, 58)


@pytest.mark.slow
def test_a_template_of_another_family_is_found(f16: Path, trained: Trained, tmp_path: Path) -> None:
    faulty = rewrite_gguf(f16, tmp_path / "faulty.gguf", tokenizer__chat_template=chat_templates.LLAMA_3)
    assert failed(verify_vocabulary(faulty, trained)).keys() == {"chat template", "rendered turns"}


@pytest.mark.slow
def test_a_special_token_that_became_text_is_found(f16: Path, trained: Trained, tmp_path: Path) -> None:
    types = list(read_header(f16).metadata["tokenizer.ggml.token_type"])
    types[trained.tokenizer.special_tokens["<|im_start|>"]] = 1
    faulty = rewrite_gguf(f16, tmp_path / "faulty.gguf", tokenizer__ggml__token_type=types)
    assert {"texts", "prompts"} <= failed(verify_vocabulary(faulty, trained)).keys()


@pytest.mark.slow
def test_lost_merges_are_found(f16: Path, trained: Trained, tmp_path: Path) -> None:
    merges = read_header(f16).metadata["tokenizer.ggml.merges"]
    faulty = rewrite_gguf(f16, tmp_path / "faulty.gguf", tokenizer__ggml__merges=merges[:30_000])
    assert {"vocabulary", "texts"} <= failed(verify_vocabulary(faulty, trained)).keys()


def transposed(data: Any) -> Any:
    return data.T.copy()


def swapped(data: Any) -> Any:
    return np.concatenate([data[len(data) // 2 :], data[: len(data) // 2]])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("blk.0.attn_output.weight", transposed),
        ("blk.1.ffn_down.weight", swapped),
        pytest.param("blk.0.attn_norm.weight", np.zeros_like, marks=pytest.mark.long),
        pytest.param("token_embd.weight", swapped, marks=pytest.mark.long),
        pytest.param("output_norm.weight", lambda data: data * 0.5, marks=pytest.mark.long),
    ],
)
def test_spoilt_weights_are_found(f16: Path, trained: Trained, tmp_path: Path, name: str, spoil: Any) -> None:
    faulty = rewrite_gguf(f16, tmp_path / "faulty.gguf", spoilt={name: spoil})
    assert "distributions" in failed(check_answers(faulty, "F16", trained, Silent()))


@pytest.mark.slow
def test_a_lost_bias_is_found_though_llama_cpp_loads_the_file_without_a_word(tmp_path: Path) -> None:
    base = write_family("qwen2", tmp_path / "base")
    whole = tmp_path / "whole.gguf"
    convert(Conversion("tiny", base, base), whole, Silent())
    faulty = rewrite_gguf(whole, tmp_path / "faulty.gguf", spoilt={"blk.0.attn_v.bias": None})
    trained = trained_by(base)
    assert failed(check_answers(whole, "F16", trained, Silent())) == {}
    assert "distributions" in failed(check_answers(faulty, "F16", trained, Silent()))


@pytest.mark.slow
def test_a_tokenizer_written_as_one_with_byte_fallback_is_found(f16: Path, trained: Trained, tmp_path: Path) -> None:
    """What the converter makes, without a word, of a folder that was rebuilt from a GGUF."""
    faulty = rewrite_gguf(f16, tmp_path / "faulty.gguf", tokenizer__ggml__model="llama", tokenizer__ggml__pre="default")
    with pytest.raises(ArtifactError, match="no token for the byte 0x00"):
        verify_vocabulary(faulty, trained)


@pytest.mark.slow
def test_a_file_composes_characters_where_the_tokenizer_does(tmp_path: Path) -> None:
    base = write_family("qwen2", tmp_path / "base")
    path = tmp_path / "whole.gguf"
    convert(Conversion("tiny", base, base), path, Silent())
    trained, text = trained_by(base), "cafe\u0301 \u1e9b\u0323"
    with Model(path) as model:
        assert model.tokenize(text) == trained.tokenizer.encode(text)
        assert model.tokenize(text) == model.tokenize(unicodedata.normalize("NFC", text))
    assert failed(verify_vocabulary(path, trained)) == {}
    silent = rewrite_gguf(path, tmp_path / "silent.gguf", gladstone__tokenizer__composes=False)
    checks = {check.name: check for check in verify_vocabulary(silent, trained)}
    assert checks["texts"].passed
    assert "llama.cpp by itself leaves them apart" in checks["texts"].detail


@pytest.mark.slow
def test_a_missing_tensor_is_refused_before_anything_is_compared(f16: Path, trained: Trained, tmp_path: Path) -> None:
    faulty = rewrite_gguf(f16, tmp_path / "faulty.gguf", spoilt={"blk.1.ffn_up.weight": None})
    with pytest.raises(ArtifactError, match=r"llama\.cpp cannot load it"):
        check_answers(faulty, "F16", trained, Silent())


@pytest.mark.slow
def test_each_quantised_file_is_measured_against_the_whole(f16: Path, trained: Trained, tmp_path: Path) -> None:
    files = {}
    for quant in ("q8_0", "q2_k"):
        files[quant] = tmp_path / f"{quant}.gguf"
        quantise(f16, files[quant], Quantisation(quant), Silent())
    found, whole = check_quantised(f16, files | {"f16": f16}, trained, Silent())
    assert all(check.passed for check in found.values())
    kl = {name: check.measured["mean_kl_nats"] for name, check in found.items()}
    assert kl["f16"] == 0
    assert found["f16"].measured["perplexity_ratio"] == 1
    assert 0 < kl["q8_0"] < kl["q2_k"]
    low, high = found["q8_0"].measured["perplexity_ratio_interval"]
    assert low <= found["q8_0"].measured["perplexity_ratio"] <= high
    alone = held_out_loss(f16, trained, Silent())
    assert whole.nats == pytest.approx(alone.nats)
    assert whole.tokens == alone.tokens


@pytest.mark.slow
def test_one_reading_of_the_whole_proves_measures_and_serves_the_quantised_files_as_three_do(
    f16: Path, trained: Trained, tmp_path: Path
) -> None:
    """The same checks over as many tokens and rows; only the last bits depend on what is read together."""
    file = tmp_path / "q4_0.gguf"
    quantise(f16, file, Quantisation("q4_0"), Silent())
    whole = ReadingResults(keeps=True)
    once = {check.name: check for check in verify_file(f16, trained, Silent(), files=1, results=whole)}
    apart = {check.name: check for check in check_answers(f16, "F16", trained, Silent())}
    assert [*once] == POINTS
    for name, counted in (("distributions", "positions"), ("greedy answers", "prompts")):
        assert once[name].passed
        assert once[name].measured[counted] == apart[name].measured[counted] > 0
    assert whole.kept is not None
    costs, loss = check_quantised(f16, {"q4_0": file}, trained, Silent(), whole)
    alone, whole_loss = check_quantised(f16, {"q4_0": file}, trained, Silent())
    assert whole.held_out is not None
    for found in (whole.held_out, loss):
        assert found.tokens == whole_loss.tokens
        assert found.nats == pytest.approx(whole_loss.nats, rel=1e-3)
    measured, expected = costs["q4_0"].measured, alone["q4_0"].measured
    assert (measured["tokens"], measured["rows"]) == (expected["tokens"], expected["rows"])
    assert measured["mean_kl_nats"] == pytest.approx(expected["mean_kl_nats"], rel=0.02)


@pytest.mark.slow
def test_a_fault_is_found_where_held_out_answers_are_read_behind_the_same_prompts(
    f16: Path, trained: Trained, tmp_path: Path
) -> None:
    spoilt = rewrite_gguf(f16, tmp_path / "spoilt.gguf", spoilt={"blk.1.ffn_down.weight": swapped})
    other = rewrite_gguf(f16, tmp_path / "other.gguf", tokenizer__ggml__eos_token_id=0)
    whole = ReadingResults(keeps=True)
    assert failed(verify_file(f16, trained, Silent(), results=whole)) == {}
    assert failed(verify_file(spoilt, trained, Silent(), results=whole)).keys() >= {"distributions"}
    assert len(whole.vocabularies) == 1
    assert failed(verify_file(other, trained, Silent(), results=whole)).keys() == {"special tokens"}
    assert len(whole.vocabularies) == 2


def test_the_limit_of_a_type_is_wider_the_fewer_bits_it_has() -> None:
    limits = [kl_limit(name) for name in ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_S", "Q2_K")]
    assert limits == sorted(limits)
    assert len({*limits}) == len(limits)


def test_the_page_names_what_failed_and_the_cure() -> None:
    proof = {
        "tiny": [Check("context", True, "2,048 tokens"), Check("texts", False, "1 of 2 differ", {}, "Export again.")]
    }
    assert proof_page(proof, {"run": "tiny"}, {"tiny.gguf": "abc"}) == (
        "NOT PROVEN: 1 of 2 checks.\n\nrun       tiny\n\ntiny\n  passed  context: 2,048 tokens\n"
        "  FAILED  texts: 1 of 2 differ\n          Export again.\n\nsha256\n  abc  tiny.gguf\n"
    )


def test_a_folder_is_asked_a_few_questions_where_there_are_no_rows(tiny_base: Path) -> None:
    trained = trained_by(tiny_base)
    assert trained.adapter is None
    assert len(trained.rows) >= 5
    assert not trained.seq2seq


@pytest.mark.slow
def test_the_reference_of_a_base_in_4_bit_computes_with_the_weights_that_its_bits_stand_for(
    trained: Trained, tiny_base: Path, tmp_path: Path
) -> None:
    """Not with what a processor's own 4-bit kernel rounds them to."""
    from safetensors.torch import load_file, save_file

    from export.merge.plan import as_nf4

    folder = copy_model(tiny_base, tmp_path / "rounded")
    weights = load_file(folder / "model.safetensors")
    rounded = {name: as_nf4(each.float()) if "_proj." in name else each for name, each in weights.items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
    texts = [[1, 7, 300, 41_000, 9], [5, 6]], [[3, 4], [8]]
    whole = dataclasses.replace(trained, adapter=None)
    in_4_bit = Reference(dataclasses.replace(whole, base=tiny_base, onto="nf4")).logits(*texts)
    in_full = Reference(dataclasses.replace(whole, base=folder)).logits(*texts)
    for ours, theirs in zip(in_4_bit, in_full, strict=True):
        assert kl_divergence(theirs, ours).max() < 1e-8
