"""Checked access to the fields of a row."""

from gladstone.errors import DataError
from gladstone.rows import Row


def required_text(row: Row, name: str, source: str) -> str:
    """The non-empty text under `name`, stripped. Raises DataError with the keys the row has."""
    if name not in row:
        raise DataError(f"{source}: no field {name!r}; the row has {', '.join(map(repr, row)) or 'no fields'}.")
    text = optional_text(row, name, source)
    if text is None:
        raise DataError(f"{source}: field {name!r} is empty.")
    return text


def optional_text(row: Row, name: str, source: str) -> str | None:
    """The text under `name`, stripped, or None where it is absent, null or blank."""
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise DataError(f"{source}: field {name!r} is {type(value).__name__}, expected text.")
    _check_unicode(value, name, source)
    return value.strip() or None


def _check_unicode(text: str, name: str, source: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{source}: field {name!r} holds half of a surrogate pair (\\ud800 to \\udfff), which no UTF-8 file can "
            "hold. Correct the escape."
        ) from None
