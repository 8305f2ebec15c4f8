import dataclasses
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.config import BenchConfig
from bench.measure.items import read_items
from bench.measure.models import model_warnings, read_models
from bench.measure.prompts import PromptSettings
from bench.report.html import render_page
from bench.report.json_report import report_json
from bench.report.markdown import render_markdown
from bench.report.summary import summarise
from bench.report.tables import speed_table
from bench.report.terminal import render_summary
from bench.results import Answer, Loss, Report, SpeedRun
from bench.run import write_report
from gladstone.artifacts import Manifest, check_files, read_manifest, record_file, write_manifest
from gladstone.commands.progress import Silent
from gladstone.errors import ArtifactError, DataError
from tests.bench.bench_samples import make_inputs, make_report, model_file, speed_run

HOSTILE = (
    '<script>alert(1)</script><img src="http://evil/x.png" onerror="x()"> ![x](http://evil/) | `</textarea>` {{ 7*7 }}'
)
GOOD, BAD = ["the heart", "a heart", "the heart", "heart"], ["a liver", "no", "the lung", "of the heart"]


class Page(HTMLParser):
    """Collects the tags, and what would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [pair for pair in attrs if pair[0] in ("src", "href", "srcset", "action", "onerror")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_a_model_writes_is_text_on_the_page_and_nothing_else() -> None:
    report = make_report({HOSTILE: [HOSTILE] * 4, "b": GOOD})
    page = Page(render_page(report))
    assert not {"script", "img", "textarea", "iframe", "link"} & set(page.tags)
    assert page.fetched == []
    assert page.text.count(HOSTILE) >= 4
    assert page.tags.count("svg") == 3


def test_the_page_forbids_itself_every_request_and_has_the_dark_in_its_style() -> None:
    text = render_page(make_report({"a": GOOD, "b": BAD}))
    assert "default-src 'none'; style-src 'unsafe-inline'" in text
    assert "prefers-color-scheme: dark" in text
    assert "url(" not in text
    assert "@import" not in text


def test_what_a_model_writes_is_text_in_markdown_and_nothing_else() -> None:
    text = render_markdown(make_report({"a": [HOSTILE] * 4, "b": GOOD}))
    assert "<script" not in text.replace("\\<script", "")
    assert "![" not in text
    assert "](" not in text.replace("\\](", "")


def test_the_headline_says_what_is_better_and_what_cannot_be_told() -> None:
    nats = {"base": [30.0, 31, 29, 30], "tuned": [20.0, 21, 20, 20]}
    report = make_report({"base": BAD * 3, "tuned": BAD * 3}, {name: values * 3 for name, values in nats.items()})
    assert report.headline == (
        "tuned against base: perplexity 20.09 → 7.58, better (difference −12.51, 95 % interval "
        f"{_signed(report, 'low')} to {_signed(report, 'high')}, 12 rows); not distinguishable: ROUGE-1, ROUGE-2, ROUGE-L, "
        "token F1, exact match; decodes at 2.00 × the speed (2.00–2.00 over 3 rounds).",
    )


def _signed(report: Report, end: str) -> str:
    from bench.report.number_format import format_signed

    return format_signed(getattr(report.models[1].differences["perplexity"].result, end))


def test_one_model_alone_is_described_and_not_judged() -> None:
    report = make_report({"base": GOOD})
    assert report.headline[0].startswith("base has a perplexity of 2.72 (95 % interval 2.72 to 2.72)")
    assert report.models[0].differences == {}
    assert "Difference" not in render_summary(report, Path("out"))
    assert Page(render_page(report)).tags.count("table") == 4


def test_models_that_split_the_text_differently_are_not_compared_by_perplexity() -> None:
    inputs = make_inputs({"a": GOOD, "b": GOOD})
    other = dataclasses.replace(inputs.measured[1], losses=tuple(Loss(5.0, 11) for _ in range(4)))
    report = summarise(dataclasses.replace(inputs, measured=(inputs.measured[0], other)), [])
    assert report.models[1].differences["perplexity"].verdict == "not comparable"
    assert any("b and a split the reference answers into different tokens" in warning for warning in report.warnings)


def test_speeds_that_other_work_disturbed_are_told_by_model_and_round() -> None:
    inputs = make_inputs({"a": ["the heart"] * 4, "b": ["the heart"] * 4})
    quiet, beside = speed_run(), replace(speed_run(), other_processors=1.02, processors=2)
    assert not any("Other work" in warning for warning in summarise(inputs, []).warnings)
    first, second = inputs.measured
    measured = (first, replace(second, speed=(quiet, beside, replace(beside, other_processors=0.5))))
    (told,) = [each for each in summarise(replace(inputs, measured=measured), []).warnings if "Other work" in each]
    assert "2 of 6 speed measurements (b in round 2, b in round 3)" in told
    assert "1.0 of 2 processors" in told


def test_speeds_on_a_gpu_show_their_layers_and_warn_where_the_shares_differ() -> None:
    inputs = make_inputs({"a": ["the heart"] * 4, "b": ["the heart"] * 4})
    whole = replace(speed_run(), gpu_layers=31, all_layers=31, gpu_memory_bytes=10**9, placement="gpu layers 31 of 31")
    other = replace(whole, gpu_layers=13, all_layers=13)
    part = replace(whole, gpu_layers=5, all_layers=13)

    def summary(run: SpeedRun) -> Report:
        first, second = inputs.measured
        return summarise(replace(inputs, measured=(replace(first, speed=(whole,)), replace(second, speed=(run,)))), [])

    assert not any("share of the layers" in warning for warning in summary(other).warnings)
    (told,) = [warning for warning in summary(part).warnings if "share of the layers" in warning]
    assert "(a: 31 of 31, b: 5 of 13)" in told
    report = replace(make_report({"a": ["the heart"] * 4}), models=summary(part).models)
    rows = dict(speed_table(report).rows)
    assert [cell.text for cell in rows["on GPUs"]] == ["31 of 31 layers 1.00 GB", "5 of 13 layers 1.00 GB"]
    assert "a: gpu layers 31 of 31" in render_markdown(report)
    assert "on GPUs" not in dict(speed_table(make_report({"a": ["the heart"] * 4})).rows)


def test_answers_without_an_end_are_counted() -> None:
    inputs = make_inputs({"a": GOOD})
    answers = (
        Answer("x", None, "length", 9, 128),
        Answer("x", None, "context", 9, 50),
        *inputs.measured[0].answers[2:],
    )
    report = summarise(
        dataclasses.replace(inputs, measured=(dataclasses.replace(inputs.measured[0], answers=answers),)), []
    )
    assert report.models[0].truncated_answers == 2


def test_the_json_keeps_every_item_of_every_model_so_that_two_runs_compare_pairwise() -> None:
    data = json.loads(json.dumps(report_json(make_report({"a": GOOD, "b": BAD}))))
    assert [item["source"] for item in data["items"]] == [f"rows.jsonl:{line}" for line in (1, 2, 3, 4)]
    values = data["items"][0]["models"]["b"]
    assert values["loss"] == {"nats": 10.0, "tokens": 10}
    assert values["answer"]["text"] == "a liver"
    assert set(values["scores"]) == {"rouge1", "rouge2", "rougeL", "bleu", "token_f1", "exact_match"}
    means = [item["models"]["a"]["scores"]["token_f1"] for item in data["items"]]
    assert data["models"][0]["results"]["token_f1"]["mean"] == pytest.approx(sum(means) / 4)
    assert data["models"][1]["differences"]["rouge1"]["verdict"] == "too few answers to judge"


def test_the_manifest_is_written_last_and_names_what_was_measured(tmp_path: Path) -> None:
    write_report(tmp_path, make_report({"a": GOOD, "b": BAD}))
    manifest = read_manifest(tmp_path)
    check_files(tmp_path, manifest)
    assert manifest.stage == "bench"
    assert manifest.parents == {"a": "a" * 8, "b": "b" * 8}
    assert manifest.template_sha256 == "t" * 64
    assert [record.path for record in manifest.files] == ["report.json", "report.md", "report.html"]


def test_unlike_files_are_told_in_plain_words() -> None:
    first = model_file("a")
    assert model_warnings([first, model_file("b")]) == []
    same = model_warnings([first, model_file("b", sha256=first.sha256)])
    assert same == ["b and a are the same file: every difference between them is noise."]
    template = model_warnings([first, model_file("b", template_sha256="u" * 64)])
    assert "b and a have different chat templates" in template[0]
    quant = model_warnings([first, model_file("b", quantisation="Q4_K_M")])
    assert "b is Q4_K_M and a is Q8_0" in quant[0]


def test_a_manifest_beside_the_model_with_another_template_is_an_error(embedded_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.symlink_to(embedded_gguf)
    record = record_file(tmp_path, path)
    manifest = Manifest("export", (record,), {}, {}, {}, template_sha256="0" * 64)
    write_manifest(tmp_path, manifest)
    with pytest.raises(ArtifactError, match="not the one it was trained with according to its manifest"):
        read_models([path], PromptSettings(), Silent())
    write_manifest(tmp_path, dataclasses.replace(manifest, files=(dataclasses.replace(record, sha256="0" * 64),)))
    with pytest.raises(ArtifactError, match="damaged or changed since it was made"):
        read_models([path], PromptSettings(), Silent())


def test_labels_are_the_shortest_ends_that_differ(embedded_gguf: Path, tmp_path: Path) -> None:
    import shutil

    paths = [tmp_path / name / "model.gguf" for name in ("base", "tuned")]
    for path in paths:
        path.parent.mkdir()
        shutil.copy(embedded_gguf, path)
    assert [model.label for model in read_models(paths, PromptSettings(), Silent())] == ["base/model", "tuned/model"]


def test_half_a_character_in_a_row_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n{"question": "a", "answer": "\\ud800"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:2: field 'answer' contains half of a surrogate pair"):
        read_items(BenchConfig((), path))
