"""Checked access to the fields of a row."""

from gladstone.chat import Message
from gladstone.errors import DataError
from gladstone.rows.limits import Row, kind_of, readable_fields

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


def required_text(row: Row, name: str, source: str) -> str:
    """The non-empty text under `name`, stripped. Raises DataError with the keys the row has."""
    if name not in row:
        raise DataError(f"{source}: no field {name!r}; the row has {readable_fields(row)}.")
    text = optional_text(row, name, source)
    if text is None:
        raise DataError(f"{source}: field {name!r} is empty.")
    return text


def optional_text(row: Row, name: str, source: str) -> str | None:
    """The text under `name`, stripped, or None where it is absent, null or blank."""
    return checked_text(row.get(name), f"field {name!r}", source)


def checked_text(value: object, place: str, source: str) -> str | None:
    """A value as stripped text, None where it is null or blank. Raises DataError if it is none, or no Unicode."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise DataError(f"{source}: {place} is {kind_of(value)}, expected text.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{source}: {place} holds half of a surrogate pair (\\ud800 to \\udfff), which no UTF-8 file can hold. "
            "Correct the escape."
        ) from None
    return value.strip() or None


def required_list(row: Row, name: str, source: str) -> list[object]:
    """The non-empty list under `name`. Raises DataError with the keys the row has."""
    if name not in row:
        raise DataError(f"{source}: no field {name!r}; the row has {readable_fields(row)}.")
    value = row[name]
    if not isinstance(value, list) or not value:
        raise DataError(f"{source}: field {name!r} must be a non-empty list.")
    return value


def assistant_message(text: str, reasoning: str | None, source: str) -> Message:
    """The assistant's turn; reasoning that the text opens with, `<think>…</think>`, becomes the field it is.

    Raises DataError for a block that does not close, for nothing after it, and for reasoning given in both ways.
    """
    if not text.startswith(THINK_OPEN):
        return Message("assistant", text, reasoning)
    inside, closed, answer = text.removeprefix(THINK_OPEN).partition(THINK_CLOSE)
    if not closed:
        raise DataError(f"{source}: the answer opens {THINK_OPEN} and never closes it.")
    if not answer.strip():
        raise DataError(f"{source}: there is no answer after {THINK_CLOSE}.")
    if reasoning and inside.strip():
        raise DataError(f"{source}: reasoning is given twice, in its field and as {THINK_OPEN} in the answer.")
    return Message("assistant", answer.strip(), inside.strip() or reasoning)
