"""MedQuAD's XML: a Document of question-answer pairs.

DOCTYPE and entities are refused, since XML attacks rely on them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from gladstone.errors import DataError
from gladstone.rows.row_types import MAX_ROW_BYTES, RowItem

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def read_pairs(file: BinaryIO, path: Path) -> Iterator[RowItem]:
    """Yield Question, Answer, qtype, Focus, Source and url of each pair; the source counts pairs from 1."""
    from xml.etree.ElementTree import ParseError  # imported here so that `--help` stays fast

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    data = file.read(MAX_ROW_BYTES + 1)
    if len(data) > MAX_ROW_BYTES:
        raise DataError(f"{path}: longer than {MAX_ROW_BYTES >> 20} MiB; no MedQuAD document is.")
    if not data.strip():
        raise DataError(f"{path}: the data file is empty.")
    try:
        document = fromstring(data, forbid_dtd=True)
    except DefusedXmlException:
        yield DataError(
            f"{path}: has a DOCTYPE or entities, which MedQuAD does not use; refused, since they can do harm."
        )
        return
    except (ParseError, ValueError, LookupError) as error:  # LookupError: an encoding that does not exist
        yield DataError(f"{path}: not XML: {error}.")
        return
    if document.tag != "Document":
        yield DataError(f"{path}: expected MedQuAD's <Document>, found <{document.tag[:40]}>.")
        return
    for number, pair in enumerate(document.iter("QAPair"), 1):
        yield _row(document, pair), f"{path}:{number}"


def _row(document: "Element", pair: "Element") -> dict[str, str | None]:
    question = pair.find("Question")
    return {
        "Question": pair.findtext("Question"),
        "Answer": pair.findtext("Answer"),
        "qtype": None if question is None else question.get("qtype"),
        "Focus": document.findtext("Focus"),
        "Source": document.get("source"),
        "url": document.get("url"),
    }
