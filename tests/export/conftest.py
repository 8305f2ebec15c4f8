import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.convert.convert import Conversion, convert
from export.proof.trained import Trained
from gladstone.commands.progress import Silent
from gladstone.formats import read_conversations
from gladstone.models.tokenizer import load_tokenizer
from tests.export.tiny_runs import write_run
from tests.tiny_models import write_model
from tests.warm_python import warm_python


@pytest.fixture(scope="package", autouse=True)
def children_start_warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The children of an export are forked from a process that has imported torch and transformers."""
    with warm_python(tmp_path_factory.mktemp("warm")) as python, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(python))
        yield


@pytest.fixture(scope="package")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("export") / "base")


@pytest.fixture(scope="package")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A finished run. Tests that spoil it copy it first."""
    return write_run(tmp_path_factory.mktemp("export") / "run", tiny_base)


@pytest.fixture(scope="package")
def f16(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_run: Path) -> Path:
    """The run's model, merged and converted."""
    path = tmp_path_factory.mktemp("export") / "tiny-f16.gguf"
    convert(Conversion("tiny", tiny_base, tiny_run / "tokenizer", ((tiny_run / "adapter", 1.0),)), path, Silent())
    return path


@pytest.fixture(scope="package")
def trained(tiny_base: Path, tiny_run: Path) -> Trained:
    """What the run's file is held against."""
    tokenizer = load_tokenizer(tiny_run / "tokenizer")
    rows = read_conversations(tiny_run / "data" / "test.jsonl", "messages")
    return Trained(tokenizer, tokenizer.template(), tiny_base, tiny_run / "adapter", rows)
