import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from finetune.cli import main
from finetune.config.data import Source
from finetune.data import hub
from finetune.data.sources import source_file
from gladstone.errors import DataError
from gladstone.formats import read_conversations
from tests.tiny_models import medical_rows, write_rows_file


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLADSTONE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def laid_out(tmp_path: Path) -> Path:
    """A folder laid out like a dataset of the Hub, which `datasets` reads in the same way."""
    folder = tmp_path / "set"
    folder.mkdir()
    write_rows_file(folder / "train.jsonl", medical_rows()[:30])
    write_rows_file(folder / "test.jsonl", medical_rows()[30:])
    return folder


def test_a_data_set_is_streamed_once_and_read_from_the_cache(laid_out: Path, cache: Path) -> None:
    path = hub.cache_path("owner/name", None, "test", None)
    hub.write_json_lines(hub.stream_rows(str(laid_out), None, "test"), path)
    source = Source(path="hub:owner/name", split="test", format="qa")
    assert source_file(source) == path
    assert path.is_relative_to(cache)
    rows = read_conversations(source_file(source), source.format)
    assert [row.answer.content for row in rows] == [row["answer"] for row in medical_rows()[30:]]


def test_values_that_json_does_not_know_become_text(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    hub.write_json_lines([{"when": datetime(2026, 1, 2, tzinfo=UTC), "what": "é"}], tmp_path / "rows.jsonl")
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == {"when": "2026-01-02 00:00:00+00:00", "what": "é"}


def test_a_data_set_of_each_config_split_and_length_has_a_file_of_its_own(cache: Path) -> None:
    names = {
        hub.cache_path("a/b", None, "train", None), hub.cache_path("a/b", "en", "train", None), hub.cache_path("a/b", None, "test", None),
        hub.cache_path("a/b", None, "train", 500), hub.cache_path("a/b/../c", None, "train", None),
    }  # fmt: skip
    assert len(names) == 5
    assert all(path.parent == cache / "datasets" for path in names)


def test_without_a_network_the_message_says_how_to_bring_a_copy(cache: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["run", "medbot-mistral-7b", "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "hub:medalpaca/medical_meadow_medical_flashcards: cannot be fetched from the Hub" in done.output
    assert "give that file's path" in done.output
    assert not (tmp_path / "out").exists()
    assert not list(cache.rglob("*.jsonl"))


def test_an_error_in_the_middle_leaves_no_file(laid_out: Path, cache: Path) -> None:
    with (laid_out / "train.jsonl").open("a") as file:
        file.write('{"question": "cut sho')
    with pytest.raises(DataError, match=rf"hub:{laid_out}: cannot be fetched from the Hub"):
        hub.fetch(str(laid_out), None, "train", None)
    assert not list(cache.rglob("*.jsonl"))


def test_only_the_first_rows_are_read(laid_out: Path, cache: Path) -> None:
    (laid_out / "train.jsonl").rename(laid_out / "train-00000-of-00002.jsonl")
    (laid_out / "train-00001-of-00002.jsonl").write_text("not reached")
    path = hub.fetch(str(laid_out), None, "train", 5)
    assert path.is_relative_to(cache)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["answer"] for row in rows] == [row["answer"] for row in medical_rows()[:5]]
