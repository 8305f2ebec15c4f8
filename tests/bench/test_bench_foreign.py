"""Rows and model files as others make them: too long, without a template, with other vocabularies."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench.cli import main
from bench.measure.models import model_warnings, read_models
from bench.measure.prompts import PromptSettings
from bench.measure.token_counts import ContextLimits, RowTokens, TokenCountJob, count_tokens
from bench.measure.tokenizer_differences import find_token_mismatches, find_tokenizer_differences
from bench.report.summary import summarise
from bench.report.terminal import render_summary
from bench.results import Answer
from gladstone.commands.progress import Silent
from gladstone.llamacpp.model import Model
from tests.bench.bench_samples import make_inputs, make_report
from tests.faults.tiny_ggufs import tiny_bpe, tiny_spm
from tests.gladstone.gguf_files import STRING, Array
from tests.runtime.foreign_models import BOS, TEMPLATE, write_tiny

TOKENS, TYPES, ADDS_BOS = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.add_bos_token"
BARE_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
LONG = {"question": "a " * 300, "answer": "b"}
ROWS = [{"question": f"What is {name}?", "answer": f"the {name} and the heart"} for name in "abcd"]
Bench = Callable[..., tuple[int, str, dict[str, Any]]]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Run the command on models and rows: exit code, output and report."""

    def run(models: list[Path], rows: list[dict[str, Any]], *options: object) -> tuple[int, str, dict[str, Any]]:
        data, out = tmp_path / "rows.jsonl", tmp_path / "out"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        fixed = ["--data", data, "--out", out, "--speed-repeats", 0, "--max-tokens", 4, "--threads", 1]
        result = CliRunner().invoke(main, ["run", *map(str, [*models, *fixed, *options])])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        report = out / "report.json"
        return result.exit_code, result.output, json.loads(report.read_text()) if report.exists() else {}

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Path:
    return write_tiny(folder / "tiny.gguf", {})


@pytest.fixture(scope="module")
def bare(folder: Path) -> Path:
    """A base model without a template."""
    return write_tiny(folder / "bare.gguf", {TEMPLATE: None})


def test_long_rows_stop_before_a_model_is_loaded_and_the_options_named_exist(bench: Bench, tiny: Path) -> None:
    code, output, _ = bench([tiny], [*ROWS, LONG])
    assert code == 1
    assert "rows.jsonl:5: " in output
    assert "more than the context of 256 tokens" in output
    assert "trained for a context of 256 tokens" in output
    assert "perplexity and answers" not in output
    named = {word.strip("(),;:.") for word in output.split() if word.startswith(("--", "(--"))}
    assert named == {"--skip-bad"}
    assert "--skip-bad" in CliRunner().invoke(main, ["run", "--help"]).output


def test_skipped_rows_are_left_out_for_every_model_and_counted_in_all_forms(
    bench: Bench, tiny: Path, folder: Path, tmp_path: Path
) -> None:
    other = write_tiny(folder / "other.gguf", {TEMPLATE: BARE_TEMPLATE})
    rows = [ROWS[0], LONG, {"question": "no answer"}, *ROWS[1:]]
    code, output, report = bench([tiny, other], rows, "--skip-bad", "--answers", 2)
    assert code == 0
    assert [item["source"].rpartition(":")[2] for item in report["items"]] == ["1", "4", "5", "6"]
    assert {each["reason"]: each["rows"] for each in report["left_out"]} == {
        "cannot be read": 1,
        "longer than the context": 1,
    }
    for name in ("report.html", "report.md"):
        text = (tmp_path / "out" / name).read_text()
        assert "left out: 1 row, longer than the context" in text
        assert "4 of 5 rows" in text
    assert "left out: 1 row, cannot be read" in output
    assert report["settings"]["context_tokens"] == 256


def test_a_context_that_no_model_has_is_refused_and_a_smaller_one_is_kept(bench: Bench, tiny: Path) -> None:
    code, output, _ = bench([tiny], ROWS, "--context", 512)
    assert code == 1
    assert "512 tokens: expected 1 to 256" in output
    code, output, _ = bench([tiny], ROWS, "--context", 16)
    assert code == 1
    assert "more than the context of 16 tokens" in output
    assert "--context 256 fits all of them" in output


def test_too_few_rows_that_can_be_measured_are_refused(bench: Bench, tiny: Path) -> None:
    code, output, _ = bench([tiny], [ROWS[0], LONG, LONG], "--skip-bad")
    assert code == 1
    assert "1 of 3 rows can be measured, expected at least 2" in output


def test_what_a_file_of_rows_has_to_say_is_printed(bench: Bench, tiny: Path) -> None:
    code, output, report = bench([tiny], [row | {"id": 7} for row in ROWS])
    assert code == 0
    assert "not used: id (4 rows)" in output
    assert any("not used: id" in note for note in report["notes"])


def test_a_model_without_a_template_is_refused_with_both_ways_out(bench: Bench, bare: Path) -> None:
    code, output, _ = bench([bare], ROWS)
    assert code == 1
    assert "--raw" in output
    assert "--chat-template" in output
    assert "chatml" in output


def test_plain_text_is_scored_without_a_template(bench: Bench, bare: Path, tmp_path: Path) -> None:
    texts = [{"text": "the heart and the blood " * count} for count in (1, 2, 60)]
    code, output, report = bench([bare], texts)
    assert code == 0
    assert report["settings"]["raw"]
    assert "on 3 texts" in output
    assert [metric["name"] for metric in report["metrics"]] == ["perplexity"]
    # more tokens than the context has: scored in pieces
    assert report["items"][2]["models"]["bare"]["loss"]["tokens"] > 256
    assert "without a chat template" in (tmp_path / "out" / "report.html").read_text()
    assert "without a chat template" in (tmp_path / "out" / "report.md").read_text()
    (tmp_path / "out" / "manifest.json").unlink()
    code, output, _ = bench([bare], texts, "--regex", "yes|no")
    assert code == 1
    assert "--regex" in output
    assert "no row of" in output


def test_raw_answers_are_scored_behind_their_question_as_it_is(bench: Bench, bare: Path) -> None:
    from runtime.engine import Engine, EngineOptions

    code, _output, report = bench([bare], [*ROWS, {"text": "the blood"}], "--raw", "--format", "qa", "--skip-bad")
    assert code == 0
    with Engine(bare, EngineOptions(raw=True, threads=1)) as engine:
        prompt = engine.text_tokens(ROWS[0]["question"] + "\n")
        expected = engine.score(prompt, [engine.model.tokenize(ROWS[0]["answer"])])[0]
    assert report["items"][0]["models"]["bare"]["loss"]["nats"] == pytest.approx(expected.nats, rel=1e-5)
    assert report["items"][0]["models"]["bare"]["loss"]["tokens"] == expected.tokens


@pytest.mark.parametrize("option", [("--chat-template", "chatml"), ("--reasoning-tokens", 4), ("--no-think",)])
def test_what_needs_a_template_cannot_count_with_raw(bench: Bench, bare: Path, option: tuple[Any, ...]) -> None:
    code, output, _ = bench([bare], ROWS, "--raw", *option)
    assert code == 1
    assert option[0] in output


def test_a_named_template_and_its_arguments_reach_the_model_and_the_report(
    bench: Bench, bare: Path, tmp_path: Path
) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{% if loud %}LOUD {% endif %}" + BARE_TEMPLATE)
    code, _output, plain = bench([bare], ROWS, "--chat-template", template)
    assert code == 0
    (tmp_path / "out" / "manifest.json").unlink()
    code, _output, loud = bench([bare], ROWS, "--chat-template", template, "--template-arg", "loud=true")
    assert code == 0
    lengths = [each["items"][0]["models"]["bare"]["answer"]["prompt_tokens"] for each in (plain, loud)]
    assert lengths[1] > lengths[0]
    assert "loud=true" in loud["settings"]["asked"]
    (tmp_path / "out" / "manifest.json").unlink()
    code, output, _ = bench([bare], ROWS, "--chat-template", template, "--template-arg", "quiet=true")
    assert code == 1
    assert "never reads 'quiet'" in output


THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def test_no_think_is_what_each_template_reads_for_it_and_leaves_thoughts_of_references_out(
    bench: Bench, folder: Path, tiny: Path, tmp_path: Path
) -> None:
    thinks = write_tiny(folder / "thinks.gguf", {TEMPLATE: THINKS})
    rows = [
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": f"<think>why</think>{n}"}]}
        for n in "ab"
    ]
    reports = []
    for options in ((), ("--no-think",)):
        code, output, report = bench([thinks, tiny], rows, *options)
        assert code == 0, output
        reports.append(report)
        (tmp_path / "out" / "manifest.json").unlink()
    plain, without = ([each["items"][0]["models"][name] for name in ("thinks", "tiny")] for each in reports)
    with Model(tiny, vocab_only=True) as model:
        opening = len(model.tokenize("<think>\n\n</think>\n\n"))
    assert without[0]["answer"]["prompt_tokens"] == plain[0]["answer"]["prompt_tokens"] + opening
    assert without[1]["answer"]["prompt_tokens"] == plain[1]["answer"]["prompt_tokens"]
    assert all(each["loss"]["tokens"] < other["loss"]["tokens"] for each, other in zip(without, plain, strict=True))
    assert "without thinking" in reports[1]["settings"]["asked"]
    code, output, _ = bench([thinks], rows, "--no-think", "--template-arg", "enable_thinking=true")
    assert code == 1
    assert "contradict" in output


def _unlike(first: Path, other: Path) -> tuple[str, list[str]]:
    """Why the answers of two files are other tokens, and all that is said of the second file."""
    models = read_models([first, other], PromptSettings(), Silent())
    items = make_inputs({"a": ["x"] * 3}).items
    tokens = [
        [row for row in count_tokens(TokenCountJob(model.path, items, PromptSettings())) if isinstance(row, RowTokens)]
        for model in models
    ]
    differences = find_tokenizer_differences(models)
    found = find_token_mismatches(models, tokens, differences)
    return found.get(models[1].label, ""), model_warnings(models, differences)


def test_another_template_on_the_same_vocabulary_is_called_that(tiny: Path, folder: Path) -> None:
    end = "{% for m in messages %}{{ m.content }}<|im_end|><|endoftext|>{% endfor %}"
    why, warnings = _unlike(tiny, write_tiny(folder / "template.gguf", {TEMPLATE: end}))
    assert "chat template" in why
    assert "<|im_end|><|endoftext|>" in why
    assert "vocabulary" not in why
    assert any("different chat templates" in warning for warning in warnings)
    same = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|endoftext|>{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    # one control token for another: the answer's tokens can be compared, one by one
    assert _unlike(tiny, write_tiny(folder / "same.gguf", {TEMPLATE: same}))[0] == ""


def test_added_tokens_bos_and_another_vocabulary_are_each_named(tiny: Path, folder: Path) -> None:
    keys = {name: value for name, _, value in tiny_bpe().keys}
    _, warnings = _unlike(tiny, write_tiny(folder / "bos.gguf", {ADDS_BOS: 1}))
    assert any("starts every text with '<|endoftext|>' (BOS), tiny does not" in warning for warning in warnings)
    special = Array(keys[TYPES].kind, [*keys[TYPES].values[:-1], 1])
    _, warnings = _unlike(tiny, write_tiny(folder / "special.gguf", {TYPES: special}))
    assert any("different tokens are special in its vocabulary ('<|im_end|>')" in warning for warning in warnings)
    tokens = Array(STRING, [*keys[TOKENS].values[:-1], "<|grown|>"])
    _, warnings = _unlike(tiny, write_tiny(folder / "grown.gguf", {TOKENS: tokens, "tokenizer.ggml.eos_token_id": 0}))
    assert any("'<|grown|>', '<|im_end|>' in tiny" in warning for warning in warnings)
    spm = folder / "spm.gguf"
    spm.write_bytes(tiny_spm().content())
    why, _ = _unlike(tiny, spm)
    assert "its vocabulary is different" in why
    assert BOS.startswith("tokenizer")


def test_rows_are_counted_as_they_are_then_scored(tiny: Path) -> None:
    from runtime.engine import Engine, EngineOptions

    items = make_inputs({"a": ["x"] * 2}).items
    room, *rows = count_tokens(TokenCountJob(tiny, items, PromptSettings()))
    with Engine(tiny, EngineOptions(threads=1)) as engine:
        assert room == ContextLimits(engine.context_tokens, 256)
        prompt = engine.prompt_tokens(items[0].prompt)
        loss = engine.answer_loss(items[0].messages)
    assert isinstance(rows[0], RowTokens)
    assert rows[0].prompt == len(prompt)
    assert rows[0].needed == len(prompt) + loss.tokens


def test_answers_that_only_thought_are_told_with_the_options_that_help() -> None:
    inputs = make_inputs({"a": ["the heart"] * 12, "b": ["the heart"] * 12})
    thought = Answer("", "I wonder", "length", 9, 128)

    def with_thoughts(count: int) -> Any:
        first, other = inputs.measured
        answers = (*[thought] * count, *other.answers[count:])
        return summarise(replace(inputs, measured=(first, replace(other, answers=answers))), [])

    some = with_thoughts(5)
    (told,) = [warning for warning in some.warnings if "reasoning" in warning]
    assert "5 of 12 answers of b" in told
    assert all(option in told for option in ("--reasoning-tokens", "--max-tokens", "--no-think"))
    assert some.models[1].results["token_f1"].mean == pytest.approx(7 / 12)
    every = with_thoughts(12)
    assert "token_f1" not in every.models[1].results
    assert "token_f1" not in every.models[1].differences
    plain = make_report({"a": ["the heart"] * 12, "b": [""] * 12})
    every = replace(every, settings=plain.settings, provenance=plain.provenance)
    text = render_summary(every, Path("out"))
    assert re.search(r"\ntoken F1 +1\.00 \[1\.00, 1\.00\] +–\n", text)
    from bench.report.html import render_page
    from bench.report.markdown import render_markdown

    for page in (render_markdown(every), render_page(every)):
        assert "the reasoning used up its tokens" in page
        assert "the reasoning used up the tokens of every answer" in page
