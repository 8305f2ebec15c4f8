"""Text encodings: readers see UTF-8, whatever the encoding of the file. Imports charset_normalizer.

UTF-8 has precedence. A byte-order mark selects UTF-16 or UTF-32. Any other encoding is used only if the file as a whole
is not UTF-8 and the detector finds one that fits: a damaged byte in a UTF-8 file makes a bad row, not another encoding.
"""

import codecs
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from gladstone.errors import DataError
from gladstone.rows.problems import FileDamage, Note

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
EVERYDAY = {"cp949": "euc_kr", "gb18030": "gb2312", "cp932": "shift_jis"}  # the subset that everyday text uses
SAMPLE_BYTES = 64 << 10
PIECE_BYTES = 4096
MIN_PIECES = 3  # fewer lines that are not UTF-8 count as damage
MIN_TIMES = 9  # required ratio of lines that are not UTF-8 to non-ASCII lines that are
TIDY = 0.2  # like CLOSE, for a double-byte encoding whose text reads better
PAIRS = ("gb18030", "big5", "cp932", "euc_jp", "cp949")
FEW_SHARE = 0.05  # share of all characters
CLOSE = 0.02  # encodings whose scores differ by less are indistinguishable
_STRAY = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of bytes that are not UTF-8
ADVICE = (
    "Save the file as UTF-8, or name its encoding (data.encoding in a recipe, --encoding of `finetune data check` and "
    "`bench run`)"
)


def find_stray_byte(text: str, begin: int = 0, end: int | None = None) -> int:
    """Return the first byte that is not UTF-8 in a text decoded with surrogateescape; 0 if there is none."""
    stray = _STRAY.search(text, begin, len(text) if end is None else end)
    return ord(stray[0]) - 0xDC00 if stray else 0


def check_encoding(name: str) -> str:
    """Return Python's name for an encoding. Raises ValueError if there is no text encoding of that name."""
    try:
        codec = codecs.lookup(name)
        "a".encode(codec.name)
    except (LookupError, UnicodeError):
        raise ValueError(f"unknown encoding {name!r}; for example utf-8, cp1252, utf-16, shift_jis") from None
    return codec.name


def decoded(data: bytes, name: str) -> str:
    """Decode a whole text: UTF-8, or UTF-16 or UTF-32 with a byte-order mark, which is dropped.

    Raises DataError, prefixed with `name`, for other bytes.
    """
    encoding = next((marked for start, marked in MARKS.items() if data.startswith(start)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        expected = "UTF-8" if encoding == "utf-8-sig" else f"{encoding.upper()}, as its byte-order mark says"
        raise DataError(f"{name}: byte {error.start + 1:,} is not {expected}.") from None
    if "\0" in text:
        raise DataError(f"{name}: it contains NUL characters, like UTF-16 without a byte-order mark. Save it as UTF-8.")
    return text


def as_utf8(
    path: Path, head: bytes, rest: Iterator[bytes], again: Callable[[], BinaryIO], encoding: str | None
) -> Iterator[bytes | Note]:
    """Yield the file's bytes as UTF-8, in chunks, and a note if they were in another encoding.

    `again` reopens the file to sample all of it. Raises DataError if the encoding cannot be determined, or if a later
    part of the file contradicts it.
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
        raise DataError(f"{path}: every other byte is 0, like in UTF-16 or UTF-32 without a byte-order mark. {ADVICE}.")


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
                raise FileDamage(f"{path}: most of it looks like {name}, but it begins as UTF-8. {ADVICE}.") from None
            yield Note(
                f"{path}: not UTF-8; read as {name}, which was detected; data.encoding or --encoding overrides it"
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
                f"{path}:{line}: byte 0x{byte:02x} is not {name}, the encoding that the file is read as. {ADVICE}."
            ) from None
        line += text.count("\n")
        if text:
            yield text.encode("utf-8", "surrogatepass")


def _detect(path: Path, again: Callable[[], BinaryIO]) -> str | None:
    """Return the encoding of a file that is not UTF-8; None if only some bytes are damaged, or if no encoding fits."""
    from charset_normalizer import from_bytes

    sample = _sample(again)
    if not sample:
        return None
    matches = list(from_bytes(sample, cp_isolation=CANDIDATES))
    if not matches:
        return None
    odd = {match.encoding: _oddness(str(match), match.encoding) for match in matches}
    first = matches[0]
    # of two double-byte encodings, the right one may score as less tidy
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
        raise FileDamage(f"{path}: not UTF-8; it may be {names}, each of which gives a different text. {ADVICE}.")
    return "cp1252" if "cp1252" in best.could_be_from_charset else best.encoding


def _hardly_matters(matches: "Sequence[CharsetMatch]") -> bool:
    """True if the encodings differ in a few characters only, like a Western text with some accents.

    If the text were in the language of another code page, they would differ in every other word.
    """
    texts = [str(match) for match in matches]
    differing = sum(len(set(characters)) > 1 for characters in zip(*texts, strict=False))
    return differing < FEW_SHARE * len(texts[0])


def _oddness(text: str, encoding: str) -> tuple[int, bool]:
    """Count capitals after small letters, and tell whether non-ASCII characters include more than punctuation.

    Russian in KOI8-R also decodes as cp1251, with the case of its letters inverted; curly quotes decode as letters.
    Japanese also decodes as Korean, into syllables that Korean rarely uses: characters outside the everyday subset
    count.
    """
    capitals = sum(small.islower() and capital.isupper() for small, capital in pairwise(text))
    everyday = EVERYDAY.get(encoding)
    rare = sum(len(char.encode(everyday, "ignore")) not in (1, 2) for char in text) if everyday else 0
    beyond = any(not unicodedata.category(char).startswith("P") for char in set(text) if not char.isascii())
    return capitals + rare, beyond


def _sample(again: Callable[[], BinaryIO]) -> bytes:
    """Return lines that are not UTF-8, at most SAMPLE_BYTES of them; nothing if they are few or a small share."""
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
        except DataError:  # the end of the file is damaged: decide by what precedes it
            pass
    return bytes(sample) if invalid >= MIN_PIECES and invalid >= MIN_TIMES * valid else b""


def _is_utf8(piece: bytes, *, begun: bool, cut: bool) -> bool:
    """True for UTF-8; a character at either end of the piece may be cut."""
    if begun:
        start = next((at for at in range(min(4, len(piece))) if not 0x80 <= piece[at] < 0xC0), 0)
        piece = piece[start:]
    try:
        piece.decode()
    except UnicodeDecodeError as error:
        return cut and error.reason == "unexpected end of data"
    return True
