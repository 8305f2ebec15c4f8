"""What becomes of each token of the vocabularies in llama.cpp's source archive.

`python -m tests.runtime.vocabulary_table` prints, for each, how many tokens' bytes are lost or shortened by the engine
and by llama-cpp-python's high-level class.
"""

import shutil
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from export.convert.llamacpp_converter import archive_path
from gladstone.gguf.header import read_header
from gladstone.llamacpp.library import library
from gladstone.llamacpp.model import Model
from runtime.scheduling.generation import Vocabulary
from runtime.text.detokenizer import Detokenizer

NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6
PLACE = "/vendor/llama.cpp/models/"


@dataclass(frozen=True)
class Reference:
    """What a vocabulary's metadata say: the text and the kind of each token, and its bytes; None for those without."""

    texts: list[str]
    kinds: list[int]
    pieces: list[bytes | None]

    def user_text(self, token: int) -> str:
        """What somebody types who spells a token."""
        piece = self.pieces[token]
        return self.texts[token] if piece is None else piece.decode("utf-8", "replace")


def unpack_vocabularies(folder: Path) -> list[Path]:
    """The archive's vocabularies as files in `folder`, which grows by some 100 MB."""
    with tarfile.open(archive_path()) as archive:
        for member in archive:
            if PLACE in member.name and member.name.endswith(".gguf"):
                source = archive.extractfile(member)
                assert source is not None
                with (folder / PurePosixPath(member.name).name).open("wb") as target:
                    shutil.copyfileobj(source, target)
    return sorted(folder.glob("*.gguf"))


def short_name(path: Path) -> str:
    return path.stem.removeprefix("ggml-vocab-")


def reference_of(path: Path) -> Reference:
    """Decoded here, from the metadata alone."""
    metadata = read_header(path).metadata
    texts: list[str] = metadata["tokenizer.ggml.tokens"]
    kinds: list[int] = metadata["tokenizer.ggml.token_type"]
    decode = _byte_letters() if metadata["tokenizer.ggml.model"] == "gpt2" else _with_spaces
    decoders: dict[int, Callable[[str], bytes]] = {
        NORMAL: decode,
        USER_DEFINED: str.encode,
        BYTE: lambda text: bytes([int(text[3:-1], 16)]),
    }
    pieces = [decoders[kind](text) if kind in decoders else None for text, kind in zip(texts, kinds, strict=True)]
    return Reference(texts, kinds, pieces)


def made_control(reference: Reference, model: Model) -> set[int]:
    """Tokens with a text that llama.cpp takes for control tokens, by their names, whatever the file calls them."""
    return {token for token, piece in enumerate(reference.pieces) if piece is not None and model.is_control(token)}


def _with_spaces(text: str) -> bytes:
    return text.replace("▁", " ").encode()


def _byte_letters() -> Callable[[str], bytes]:
    """GPT-2's: each byte has a letter, its own where that can be printed, else the next one from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {chr(byte): byte for byte in printable}
    letters |= {chr(256 + place): byte for place, byte in enumerate(b for b in range(256) if b not in printable)}

    def decode(text: str) -> bytes:
        """A token with another letter in it stands for itself, as in the decoder of Hugging Face's tokenizers."""
        return bytes(map(letters.__getitem__, text)) if letters.keys() >= set(text) else text.encode()

    return decode


def wrong_pieces(reference: Reference, piece: Callable[[int], bytes], but: set[int]) -> list[int]:
    """The tokens whose bytes are not those that the vocabulary says."""
    wanted = ((token, piece) for token, piece in enumerate(reference.pieces) if piece is not None and token not in but)
    return [token for token, bytes_wanted in wanted if piece(token) != bytes_wanted]


def streamed(reference: Reference, vocabulary: Vocabulary, but: set[int]) -> tuple[str, str]:
    """All pieces through the text layer one at a time, and their bytes decoded at once."""
    stream, pieces = Detokenizer(), []
    for token, wanted in enumerate(reference.pieces):
        if wanted is not None and token not in but:
            stream.feed(vocabulary.piece(token))
            pieces.append(wanted)
    stream.flush()
    return (stream.reasoning or "") + stream.text, b"".join(pieces).decode("utf-8", "replace")


def lost_by_high_level_class(path: Path, reference: Reference, but: set[int]) -> list[int]:
    """The tokens that `LlamaModel.detokenize` of llama-cpp-python, under its class `Llama`, gives other bytes for."""
    from llama_cpp._internals import LlamaModel

    params = library().llama_model_default_params()
    params.vocab_only = True
    with closing(LlamaModel(path_model=str(path), params=params, verbose=False)) as model:
        return wrong_pieces(reference, lambda token: bytes(model.detokenize([token])), but)


def _print_table(folder: Path) -> None:
    print(f"{'vocabulary':16}{'tokens':>9}{'with text':>11}{'lost by us':>12}{'lost by Llama':>15}{'made control':>14}")
    for path in unpack_vocabularies(folder):
        reference = reference_of(path)
        with Model(path, vocab_only=True) as model:
            control = made_control(reference, model)
            ours = wrong_pieces(reference, Vocabulary(model).piece, control)
        theirs = lost_by_high_level_class(path, reference, control)
        texts = len(reference.pieces) - reference.pieces.count(None)
        print(
            f"{short_name(path):16}{len(reference.texts):9,}{texts:11,}{len(ours):12,}{len(theirs):15,}{len(control):14,}"
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        _print_table(Path(place))
