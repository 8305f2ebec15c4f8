"""Checked access to the fields of a row, with a record of the fields that were read."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from gladstone.chat.messages import Message
from gladstone.errors import DataError
from gladstone.formats.trimming import trim_after_marker, trimmed
from gladstone.rows.row_types import Row, kind_of, readable_fields

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
_EMPTY: tuple[object, ...] = (None, "", [], {})


class Fields:
    """One object of a row: the row itself, a turn, a call. Fields that are never read are reported as unused.

    `columns` maps each field to its name in the row; `exact` leaves texts untrimmed.
    """

    def __init__(
        self, values: Row, source: str, columns: Mapping[str, str] | None = None, *, exact: bool = False
    ) -> None:
        self.source, self.exact = source, exact
        self._values, self._columns = values, columns
        self._place = ""  # path of this object within the row, as "messages[]."
        self._read: set[str | None] = set()
        self._objects: list[Fields] = [self]  # shared by all objects of the row
        self.as_text: list[tuple[str, str]] = []  # field and kind of each value read as text, in the whole row

    def __contains__(self, name: str) -> bool:
        return self._name(name) in self._values

    def has(self, name: str) -> bool:
        """True if the field has a value: it is present, not null, and not an empty text, list or object."""
        return self.peek(name) not in _EMPTY

    def peek(self, name: str) -> Any:
        """Return the raw value without marking the field as read."""
        return self._values.get(self._name(name))  # type: ignore[arg-type]

    @property
    def names(self) -> list[str]:
        """The names of all fields."""
        return list(self._values)

    def unused(self) -> Iterator[str]:
        """Yield the fields of the row, turns and calls included, that have a value and were never read."""
        for part in self._objects:
            for name, value in part._values.items():
                if name not in part._read and value not in _EMPTY:
                    yield part._place + name

    def error(self, message: str) -> DataError:
        """Return a DataError that begins with the source of this object."""
        return DataError(f"{self.source}: {message}")

    def get(self, name: str) -> Any:
        """Return the raw value and mark the field as read; None if it is absent."""
        own = self._name(name)
        self._read.add(own)
        return self._values.get(own)  # type: ignore[arg-type]

    def text(self, name: str, *, numbers: bool = False) -> str | None:
        """Return the text, None if absent, null or blank; with `numbers`, numbers and booleans become text."""
        value = self.get(name)
        if numbers and isinstance(value, bool | int | float):
            return self._number(name, value)
        text = checked_text(value, f"field {self._name(name)!r}", self.source)
        return value if self.exact and text is not None else text

    def required_text(self, name: str, *, numbers: bool = False) -> str:
        """Return the text, as `text` does.

        Raises DataError, with the fields present, if it is absent, null or blank.
        """
        self.require(name)
        text = self.text(name, numbers=numbers)
        if text is None:
            raise self.error(f"field {self._name(name)!r} is empty.")
        return text

    def word(self, name: str) -> str:
        """Return a required text without surrounding spaces."""
        return self.required_text(name).strip()

    def items(self, name: str) -> list[Any] | None:
        """Return the list, None if absent, null or empty; a list written as JSON text, as in tables, is parsed."""
        value = self.get(name)
        if value in _EMPTY:
            return None
        if isinstance(value, str) and value.strip()[:1] == "[":
            value = parsed_json(value, f"field {self._name(name)!r}", self.source)
        if not isinstance(value, list):
            raise self.error(f"field {self._name(name)!r} is {kind_of(value)}, expected a list.")
        return value or None

    def required_items(self, name: str) -> list[Any]:
        """Return the non-empty list. Raises DataError, with the fields present, if there is none."""
        self.require(name)
        value = self.get(name)
        listed = isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("["))
        if listed and (items := self.items(name)):
            return items
        raise self.error(f"field {self._name(name)!r} must be a non-empty list.")

    def require(self, name: str) -> None:
        """Raise DataError, with the fields present, if the field is absent."""
        if name not in self:
            raise self.error(f"no field {self._name(name)!r}; the row has {readable_fields(self._values)}.")

    def within(self, value: object, name: str, what: str, expected: str) -> "Fields":
        """Wrap an object inside this one; `what` follows the source in errors, `name` is its path in notes."""
        source = f"{self.source} {what}"
        if not isinstance(value, dict):
            raise DataError(f"{source}: expected an object with {expected}, found {kind_of(value)}.")
        inner = Fields(value, source, exact=self.exact)
        inner._place = f"{self._place}{name}."
        inner._objects, inner.as_text = self._objects, self.as_text
        self._objects.append(inner)
        return inner

    def note_as_text(self, name: str, kind: str) -> None:
        """Note a value of another kind that was read as text."""
        self.as_text.append((f"{self._place}{self._name(name)}", kind))

    def _name(self, name: str) -> str | None:
        """The name that the row uses for a field; None if the columns do not map it."""
        return name if self._columns is None else self._columns.get(name)

    def _number(self, name: str, value: float) -> str:
        if isinstance(value, float) and not math.isfinite(value):
            raise self.error(f"field {self._name(name)!r} is {value}, expected text or a finite number.")
        self.note_as_text(name, "true or false" if isinstance(value, bool) else "numbers")
        return json.dumps(value, allow_nan=False)


def checked_text(value: object, what: str, source: str) -> str | None:
    """Return a trimmed text, None if null or blank. Raises DataError if the value is not text, or not valid Unicode."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise DataError(f"{source}: {what} is {kind_of(value)}, expected text.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{source}: {what} contains half of a surrogate pair (\\ud800 to \\udfff), which UTF-8 cannot encode. "
            "Correct the escape."
        ) from None
    return trimmed(value) or None


def parsed_json(text: str, what: str, source: str) -> Any:
    """Parse a JSON text. Raises DataError if it is invalid."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise DataError(f"{source}: {what} is JSON nested too deeply.") from None
    except ValueError as error:
        reason = f"{error.msg} (column {error.colno})" if isinstance(error, json.JSONDecodeError) else error
        raise DataError(f"{source}: {what} is not JSON: {reason}.") from None


def json_text(value: object, what: str, source: str) -> str:
    """Serialise a value as JSON. Raises DataError for what JSON cannot represent, and for half of a surrogate pair."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (RecursionError, TypeError, ValueError):
        raise DataError(
            f"{source}: {what} cannot be written as JSON: nested too deeply, or not a JSON value."
        ) from None
    checked_text(text, what, source)
    return text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def assistant_message(text: str, reasoning: str | None, row: Fields, *, may_be_empty: bool = False) -> Message:
    """Return the assistant's turn; reasoning that opens the text, `<think>…</think>`, becomes its own field.

    Raises DataError for a block without an end, for an empty answer after it unless `may_be_empty`, and for reasoning
    that is given both ways.
    """
    if row.exact or not text.lstrip().startswith(THINK_OPEN):
        return Message("assistant", text, reasoning)
    inside, closed, answer = text.lstrip().removeprefix(THINK_OPEN).partition(THINK_CLOSE)
    if not closed:
        raise row.error(f"the answer opens {THINK_OPEN} but never closes it.")
    if not answer.strip() and not may_be_empty:
        raise row.error(f"there is no answer after {THINK_CLOSE}.")
    if reasoning and inside.strip():
        raise row.error(f"reasoning is given twice, in its field and as {THINK_OPEN} in the answer.")
    return Message("assistant", trim_after_marker(answer), inside.strip() or reasoning)
