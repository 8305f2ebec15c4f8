"""A GGUF as the base model to train: the error names what to give instead; the embedded one is accepted."""

from pathlib import Path

import pytest

from gladstone.artifacts import Manifest, record_file, write_manifest
from gladstone.commands.progress import Silent
from gladstone.errors import ConfigError
from gladstone.gguf.trainable_base import gguf_repository_error, source_hub_id
from gladstone.models.base_model import find_local_base, resolve_base
from gladstone.models.embedded_model import EMBEDDED
from tests.faults.tiny_ggufs import tiny_bpe
from tests.gladstone.gguf_files import STRING
from tests.gladstone.wrong_files import with_keys, written

SOURCE = "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct"


def refused(name: str | Path) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve_base(str(name), Silent())
    message = str(caught.value)
    assert message.startswith("base.model: ")
    assert "\n" not in message
    return message


def test_the_source_that_the_metadata_names_is_reported(tmp_path: Path) -> None:
    file = with_keys(tiny_bpe(), ("general.base_model.0.repo_url", STRING, SOURCE))
    assert "made from HuggingFaceTB/SmolLM2-135M-Instruct: give that Hub id" in refused(
        written("model.gguf", file)(tmp_path)
    )


def test_a_file_that_names_no_source_is_reported_by_its_name(tmp_path: Path) -> None:
    assert "(it calls itself 'Tiny')" in refused(written("blob", tiny_bpe())(tmp_path))


def test_what_was_exported_here_names_its_base(tmp_path: Path) -> None:
    path = written("model.gguf", tiny_bpe())(tmp_path)
    write_manifest(tmp_path, Manifest("export", (record_file(tmp_path, path),), {}, {"base": "owner/base"}, {}))
    assert "a run whose base is owner/base" in refused(path)


def test_a_gguf_that_is_not_there_is_reported(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.gguf")
    assert "no such file" in refused("models/none.gguf")  # by its slash it could be a Hub id


def test_a_folder_of_gguf_files_is_reported(tmp_path: Path) -> None:
    written("model-q4.gguf", tiny_bpe())(tmp_path)
    assert "holds model-q4.gguf, a GGUF" in refused(tmp_path)


def test_a_repository_of_gguf_files_is_known_by_its_name() -> None:
    assert "original model" in str(gguf_repository_error("base.model", "someone/Model-1B-GGUF"))
    assert gguf_repository_error("base.model", "someone/Model-1B") is None


def test_the_embedded_model_s_own_file_is_trained(embedded_gguf: Path, tmp_path: Path) -> None:
    copy = tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf"
    copy.symlink_to(embedded_gguf)
    base, embedded = find_local_base(str(copy), Silent()), find_local_base(EMBEDDED, Silent())
    assert base is not None
    assert embedded is not None
    assert base.fingerprint == embedded.fingerprint


@pytest.mark.parametrize(
    ("metadata", "source"),
    [
        ({"general.base_model.0.repo_url": SOURCE}, "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ({"general.source.huggingface.repository": "owner/model"}, "owner/model"),
        ({"general.repo_url": "https://huggingface.co/owner/model-GGUF"}, None),
        ({"general.url": "https://example.org/owner/model"}, None),
        ({"general.base_model.0.repo_url": 3}, None),
        ({}, None),
    ],
)
def test_a_source_is_a_hub_id_and_no_other_gguf(metadata: dict[str, object], source: str | None) -> None:
    assert source_hub_id(metadata) == source
