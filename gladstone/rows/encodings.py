"""Text encodings: whatever a file's is, its readers see UTF-8. Names charset_normalizer.

UTF-8 comes first. A byte-order mark names UTF-16 and UTF-32. Another encoding is taken only where the file as a whole
is not UTF-8, and a detector finds one that fits: a damaged byte in a UTF-8 file makes a bad row, no other encoding.
"""

import codecs
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from gladstone.errors import DataError
from gladstone.rows.limits import FileDamage, Note

if TYPE_CHECKING:
    from charset_normalizer import CharsetMatch

MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
CANDIDATES = ["cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1257", "koi8_r", "mac_roman", "cp850",
              "gb18030", "big5", "cp932", "euc_jp", "cp949"]  # fmt: skip
EVERYDAY = {"cp949": "euc_kr", "gb18030": "gb2312", "cp932": "shift_jis"}  # the part of it that texts are written in
SAMPLE_BYTES = 64 << 10
PIECE_BYTES = 4096
MIN_PIECES = 3  # so many places that are not UTF-8 are more than damage
MIN_TIMES = 9  # and so many times as many as places that are
TIDY = 0.2  # as CLOSE, for a better reading of an encoding that pairs bytes
PAIRS = ("gb18030", "big5", "cp932", "euc_jp", "cp949")
FEW_SHARE = 0.05  # of all characters
CLOSE = 0.02  # two encodings whose scores differ by less cannot be told apart
ADVICE = (
    "Save the file as UTF-8, or name its encoding (data.encoding in a recipe, --encoding of `finetune data check` and "
    "`bench run`)"
)


def check_encoding(name: str) -> str:
    """The name as Python spells it. Raises ValueError if there is no text encoding of that name."""
    try:
        found = codecs.lookup(name)
        "a".encode(found.name)
    except (LookupError, UnicodeError):
        raise ValueError(f"unknown encoding {name!r}; for example utf-8, cp1252, utf-16, shift_jis") from None
    return found.name


def decoded(data: bytes, name: str) -> str:
    """A whole text in UTF-8, or in UTF-16 or UTF-32 behind a byte-order mark, which is dropped.

    Raises DataError, which `name` begins, for other bytes.
    """
    encoding = next((each for start, each in MARKS.items() if data.startswith(start)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        expected = "UTF-8" if encoding == "utf-8-sig" else f"{encoding.upper()}, which its byte-order mark says"
        raise DataError(f"{name}: byte {error.start + 1:,} is not {expected}.") from None
    if "\0" in text:
        raise DataError(f"{name}: it holds NUL characters, as UTF-16 without a byte-order mark does. Save it as UTF-8.")
    return text


def as_utf8(
    path: Path, head: bytes, rest: Iterator[bytes], again: Callable[[], BinaryIO], encoding: str | None
) -> Iterator[bytes | Note]:
    """The file's bytes in UTF-8, in chunks, and a note where they were in another encoding.

    `again` opens the file anew, for a look at all of it. Raises DataError where the encoding cannot be told, and where
    a later part of the file contradicts it.
    """
    mark = next((name for start, name in MARKS.items() if head.startswith(start)), None)
    pieces = chain([head], rest)
    if encoding or mark:
        name = encoding or str(mark)
        if codecs.lookup(name).name == "utf-8":
            yield from pieces
            return
        yield Note(f"{path}: read as {name}")
        yield from _recoded(path, pieces, name)
        return
    _check_no_wide(path, head)
    yield from _guarded(path, pieces, again)


def _check_no_wide(path: Path, head: bytes) -> None:
    start = head[:400]
    zeros = start.count(0)
    if (
        0.3 * len(start) < zeros < 0.9 * len(start)
        and len(start) >= 8
        and (start[::2].count(0) != start[1::2].count(0))
    ):
        raise DataError(f"{path}: every other byte is 0, as in UTF-16 or UTF-32 without a byte-order mark. {ADVICE}.")


def _guarded(path: Path, pieces: Iterator[bytes], again: Callable[[], BinaryIO]) -> Iterator[bytes | Note]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    ascii_so_far = True
    for data in pieces:
        try:
            decoder.decode(data)
        except UnicodeDecodeError:
            name = _detect(path, again)
            if name is None:
                yield data
                yield from pieces
                return
            if not ascii_so_far:
                raise FileDamage(
                    f"{path}: most of it looks like {name}, but its beginning is UTF-8. {ADVICE}."
                ) from None
            yield Note(
                f"{path}: not UTF-8; read as {name}, found by looking; data.encoding or --encoding names another"
            )
            yield from _recoded(path, chain([data], pieces), name)
            return
        ascii_so_far = ascii_so_far and data.isascii()
        yield data


def _recoded(path: Path, pieces: Iterator[bytes], name: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(name)()
    line = 1
    for data in chain(pieces, [b""]):
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            line += error.object.count(b"\n", 0, error.start)
            byte = error.object[error.start]
            raise FileDamage(
                f"{path}:{line}: not {name} (byte 0x{byte:02x}), as which the file is read. {ADVICE}."
            ) from None
        line += text.count("\n")
        if text:
            yield text.encode("utf-8", "surrogatepass")


def _detect(path: Path, again: Callable[[], BinaryIO]) -> str | None:
    """The encoding of a file that is not UTF-8; None where it is, but for some bytes, or where none fits."""
    from charset_normalizer import from_bytes

    sample = _sample(again)
    if not sample:
        return None
    matches = list(from_bytes(sample, cp_isolation=CANDIDATES))
    if not matches:
        return None
    odd = {match.encoding: _oddness(str(match), match.encoding) for match in matches}
    first = matches[0]
    # of two that pair bytes, one that reads better may look less tidy
    tolerance = {name: TIDY if name in PAIRS and odd[name] < odd[first.encoding] else CLOSE for name in odd}
    matches = [match for match in matches if match.chaos - first.chaos < tolerance[match.encoding]]
    matches.sort(key=lambda match: (odd[match.encoding], -match.coherence))
    best = matches[0]
    rivals = [
        match
        for match in matches[1:]
        if odd[match.encoding] == odd[best.encoding] and best.coherence - match.coherence < CLOSE
    ]
    alike = [match.encoding for match in (best, *rivals)]
    if rivals and "cp1252" in alike and _hardly_matters([best, *rivals]):
        return "cp1252"
    if rivals:
        names = ", ".join(alike[:4])
        raise FileDamage(f"{path}: not UTF-8; it may be {names}, which read different text from it. {ADVICE}.")
    return "cp1252" if "cp1252" in best.could_be_from_charset else best.encoding


def _hardly_matters(matches: "Sequence[CharsetMatch]") -> bool:
    """Whether the encodings differ in a few characters only: a text in a Western language with some accents.

    Of a text in the language of another code page they would differ in every other word.
    """
    texts = [str(match) for match in matches]
    differing = sum(len(set(characters)) > 1 for characters in zip(*texts, strict=False))
    return differing < FEW_SHARE * len(texts[0])


def _oddness(text: str, encoding: str) -> tuple[int, bool]:
    """How often a capital follows a small letter, and whether there is more beyond ASCII than quotes and dashes.

    Russian in KOI8-R reads as Cyrillic in cp1251 too, small letters for capitals; curly quotes read as letters.
    Japanese reads as Korean too, in syllables that Korean hardly has: what its everyday part lacks is counted.
    """
    capitals = sum(small.islower() and capital.isupper() for small, capital in pairwise(text))
    everyday = EVERYDAY.get(encoding)
    rare = sum(len(char.encode(everyday, "ignore")) not in (1, 2) for char in text) if everyday else 0
    beyond = any(not unicodedata.category(char).startswith("P") for char in set(text) if not char.isascii())
    return capitals + rare, beyond


def _sample(again: Callable[[], BinaryIO]) -> bytes:
    """The pieces that are not UTF-8, at most SAMPLE_BYTES of them; none where they are few, or few beside others."""
    valid = invalid = 0
    sample = bytearray()
    cut = False
    with again() as file:
        try:
            while piece := file.readline(PIECE_BYTES):
                begun, cut = cut, not piece.endswith(b"\n")
                if piece.isascii():
                    continue
                if _is_utf8(piece, begun=begun, cut=cut):
                    valid += 1
                    continue
                invalid += 1
                if len(sample) < SAMPLE_BYTES:
                    sample += piece
        except DataError:  # its end is damaged: what lies before decides
            pass
    return bytes(sample) if invalid >= MIN_PIECES and invalid >= MIN_TIMES * valid else b""


def _is_utf8(piece: bytes, *, begun: bool, cut: bool) -> bool:
    """True for UTF-8; a character at the ends of a piece may be cut."""
    if begun:
        start = next((at for at in range(min(4, len(piece))) if not 0x80 <= piece[at] < 0xC0), 0)
        piece = piece[start:]
    try:
        piece.decode()
    except UnicodeDecodeError as error:
        return cut and error.reason == "unexpected end of data"
    return True
