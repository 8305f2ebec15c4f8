import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gladstone.chat.template import ChatTemplate
from gladstone.models.tokenizer import FolderTokenizer, load_tokenizer
from tests.faults.forked import Server
from tests.tiny_models import add_bos_to_every_text, write_model, write_rows_file, write_tokenizer
from tests.warm_python import TRAINING, warm_python


@pytest.fixture(scope="package")
def training_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Python that has imported unsloth."""
    with warm_python(tmp_path_factory.mktemp("warm"), TRAINING) as python:
        yield python


@pytest.fixture(scope="module")
def warm_children(training_python: Path) -> Iterator[None]:
    """Trainings of a module in processes of their own are forked from one that has imported unsloth."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(training_python))
        yield


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Runs `finetune` commands in forked children."""
    with Server(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> FolderTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def bos_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> FolderTokenizer:
    """The same tokenizer, made to put its BOS token before every text."""
    folder = tmp_path_factory.mktemp("bos-tokenizer")
    write_tokenizer(folder)
    add_bos_to_every_text(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def template(tokenizer: FolderTokenizer) -> ChatTemplate:
    return tokenizer.template()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    return write_rows_file(tmp_path / "rows.jsonl")
