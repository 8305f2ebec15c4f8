import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from gladstone.artifacts import Manifest, record_file, write_manifest
from gladstone.errors import ArtifactError
from gladstone.gguf.header import read_info
from gladstone.machine.host import cache_dir
from runtime.trust.checked_files import FOLDER_NAME, MAX_ENTRIES, SETTLED_S, Stamp, is_checked, mark_checked
from runtime.trust.load_check import check_loadable
from runtime.trust.load_check_child import in_one_line
from runtime.trust.provenance import verify
from tests.faults.tiny_ggufs import MODELS, tiny_bpe
from tests.gladstone.gguf_files import STRING, U32, Gguf
from tests.waiting import PATIENCE_S, wait_until

ROOT = Path(__file__).parents[2]
OLD_NS = 10**18


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("GLADSTONE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def written(folder: Path, file: Gguf, name: str = "model.gguf") -> Path:
    path = folder / name
    path.write_bytes(file.content())
    return path


def refusal(path: Path, check: Callable[[Path], object] = check_loadable) -> str:
    """The message for this file, checked to be one line that names it."""
    with pytest.raises(ArtifactError) as caught:
        check(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    return message


def entries() -> list[Path]:
    folder = cache_dir() / FOLDER_NAME
    return sorted(folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("name", MODELS)
def test_a_sound_model_of_each_kind_passes_and_nothing_is_printed(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    check_loadable(written(tmp_path, MODELS[name]()))
    assert capfd.readouterr() == ("", "")


def test_the_embedded_model_passes_and_is_then_remembered(smollm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_loadable(smollm)
    assert len(entries()) == 1
    monkeypatch.setattr(sys, "executable", "/nowhere/python")  # no further child can be started
    check_loadable(smollm)
    check_loadable(smollm, vocab_only=True)  # a full check covers the vocabulary


def test_a_file_without_weights_passes_for_its_vocabulary_only(tmp_path: Path) -> None:
    file = tiny_bpe()
    file.tensors, file.data = [], b""
    path = written(tmp_path, file)
    check_loadable(path, vocab_only=True)
    message = refusal(path)
    assert "llama.cpp cannot load it: error loading model: " in message
    assert "token_embd.weight" in message


@pytest.mark.parametrize(("name", "at"), [("token_embd.weight", 0), ("blk.1.ffn_up.weight", 34 * 7)])
def test_a_weight_that_is_nan_is_found_wherever_it_is(name: str, at: int, tmp_path: Path) -> None:
    """The second is the scale of a block of 8-bit weights."""
    file = tiny_bpe()
    begin = next(entry.offset for entry in file.tensors if entry.name == name) + at
    file.data = file.data[:begin] + b"\xff\xff\xff\x7f" + file.data[begin + 4 :]
    assert f"the weights of {name!r} contain NaN or Inf. Download or copy" in refusal(written(tmp_path, file))


def test_weights_whose_sums_are_no_numbers_are_found(tmp_path: Path) -> None:
    file = tiny_bpe()
    begin = next(entry.offset for entry in file.tensors if entry.name == "output_norm.weight")
    file.data = file.data[:begin] + b"\xff\xff\x7f\x7f" * 64 + file.data[begin + 256 :]
    assert "its logits contain NaN or Inf" in refusal(written(tmp_path, file))


def test_a_refusal_by_llama_cpp_quotes_its_message(tmp_path: Path) -> None:
    file = tiny_bpe()
    file.set("tokenizer.ggml.pre", STRING, "nonsense")
    message = refusal(written(tmp_path, file))
    assert "llama.cpp cannot load it: error loading model: " in message
    assert "nonsense" in message
    assert "newer" in message


def test_a_file_that_llama_cpp_dies_of_is_refused(tmp_path: Path) -> None:
    """More layers in the decoder than in all: `n_head` of llama-hparams.cpp aborts over it."""
    file = MODELS["t5"]()
    file.set("t5.decoder_block_count", U32, 3)
    message = refusal(written(tmp_path, file))
    assert "SIGABRT" in message or "cannot load it" in message


def test_an_assertion_of_llama_cpp_is_reported_without_the_folder_it_was_built_in(tmp_path: Path) -> None:
    file = tiny_bpe()
    file.tensors = [
        entry if entry.name != "blk.0.attn_norm.weight" else type(entry)(entry.name, entry.shape, 26, entry.offset)
        for entry in file.tensors
    ]
    message = refusal(written(tmp_path, file))
    assert "(SIGABRT): " in message
    assert "/ggml/" not in message


def test_a_load_check_that_takes_too_long_is_ended(smollm: Path) -> None:
    message = refusal(smollm, lambda path: check_loadable(path, timeout_s=0.01))
    assert "took more than 0 s" in message
    assert psutil.Process().children() == []
    assert not entries()


@pytest.mark.skipif(sys.platform != "linux", reason="limits what a process allocates")
def test_a_load_check_that_takes_too_much_memory_is_ended(tmp_path: Path) -> None:
    def check(path: Path) -> None:
        check_loadable(path, room_bytes=-200_000)  # leaves 27 kB for a file of 227 kB

    assert "takes more memory than its 226.8 kB" in refusal(written(tmp_path, tiny_bpe()), check)


def test_a_load_check_ends_with_the_process_that_started_it(smollm: Path) -> None:
    code = f"from pathlib import Path; from runtime.trust.load_check import check_loadable; check_loadable(Path({str(smollm)!r}))"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as parent:
        wait_until(psutil.Process(parent.pid).children, "the trial begins")
        children = psutil.Process(parent.pid).children()
        parent.send_signal(signal.SIGKILL)
    psutil.wait_procs(children, timeout=PATIENCE_S)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_only_a_file_that_is_still_the_same_is_checked(tmp_path: Path) -> None:
    path = written(tmp_path, tiny_bpe())
    stamps = [Stamp.of(path, 100)]
    mark_checked("kind", path, stamps)
    assert not entries()  # it changed a moment ago: it might change again without another time
    time.sleep(SETTLED_S)
    mark_checked("kind", path, stamps)
    assert is_checked("kind", path)
    assert not is_checked("another kind", path)
    state = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # size and time as before
    assert not is_checked("kind", path)


def test_an_entry_that_is_none_is_as_if_there_were_none(smollm: Path) -> None:
    mark_checked("kind", smollm, [Stamp.of(smollm, 100)])
    for text in ("", "[]", "{", "[1]", '[{"name": "x"}]', "null"):
        entries()[0].write_text(text)
        assert not is_checked("kind", smollm)


def test_the_number_of_entries_is_bounded(smollm: Path) -> None:
    stamps = [Stamp.of(smollm, 100)]
    for number in range(MAX_ENTRIES + 5):
        mark_checked(f"kind {number}", smollm, stamps)
    assert len(entries()) == MAX_ENTRIES
    assert is_checked(f"kind {MAX_ENTRIES + 4}", smollm)
    assert not is_checked("kind 0", smollm)


def test_a_cache_folder_that_cannot_be_written_to_costs_nothing_but_time(
    smollm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GLADSTONE_CACHE", str(tmp_path / "file"))
    mark_checked("kind", smollm, [Stamp.of(smollm, 100)])
    assert not is_checked("kind", smollm)


def export(folder: Path, file: Gguf, *, template_sha256: str | None = None) -> Path:
    """A finished folder with this file in it."""
    folder.mkdir()
    path = written(folder, file)
    template = template_sha256 or read_info(path).template_sha256
    write_manifest(folder, Manifest("export", (record_file(folder, path),), {}, {}, {}, template_sha256=template))
    return path


def test_a_file_of_a_manifest_is_compared_with_it_and_not_tried(tmp_path: Path) -> None:
    """That of a model which no trial would pass."""
    file = tiny_bpe()
    path = export(tmp_path / "run", file)
    assert verify(path).is_verified
    assert verify(path).stage == "export"


def test_a_file_that_differs_from_its_manifest_is_refused_though_it_was_remembered(tmp_path: Path) -> None:
    path = export(tmp_path / "run", tiny_bpe())
    time.sleep(SETTLED_S)
    verify(path)
    assert len(entries()) == 1
    assert verify(path).is_verified
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert "its bytes differ from the manifest's sha256" in refusal(path, verify)


def test_a_template_other_than_the_trained_one_is_named(tmp_path: Path) -> None:
    path = export(tmp_path / "run", tiny_bpe(), template_sha256="0" * 64)
    assert "trained on one template, served on another" in refusal(path, verify)


def test_a_file_that_the_manifest_does_not_list_is_tried(tmp_path: Path) -> None:
    path = export(tmp_path / "run", tiny_bpe())
    other = path.rename(path.with_name("other.gguf"))
    assert verify(other).manifest == "no manifest (the one beside it does not list other.gguf)"
    other.write_bytes(other.read_bytes()[:-1])
    assert "the file is cut short" in refusal(other, verify)


def test_a_message_of_several_lines_becomes_one() -> None:
    log = "load: reading\nllama_model_load: error loading model: no\x1b[2J tensor\nload: failed to load model"
    told = in_one_line(f"model.gguf: llama.cpp cannot load it. It says:\n{log}")
    assert told == "model.gguf: llama.cpp cannot load it: error loading model: no␛[2J tensor"
    assert in_one_line("model.gguf: no vocabulary.") == "model.gguf: no vocabulary."
    assert in_one_line("no memory for a context. llama.cpp says:\ninit: out") == "no memory for a context: out"
