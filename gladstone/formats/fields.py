"""Checked access to the fields of a row, which remembers what was read."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from gladstone.chat import Message
from gladstone.errors import DataError
from gladstone.formats.trimming import trimmed, trimmed_behind
from gladstone.rows.limits import Row, kind_of, readable_fields

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
_EMPTY: tuple[object, ...] = (None, "", [], {})


class Fields:
    """One object of a row: the row itself, a turn, a call. A field that nothing reads is noted as unused.

    `columns` says under which name of the row each field is found; `exact` takes texts as they stand.
    """

    def __init__(
        self, values: Row, source: str, columns: Mapping[str, str] | None = None, *, exact: bool = False
    ) -> None:
        self.source, self.exact = source, exact
        self._values, self._columns = values, columns
        self._place = ""  # of this object within the row, as "messages[]."
        self._read: set[str | None] = set()
        self._objects: list[Fields] = [self]  # of the whole row
        self.as_text: list[tuple[str, str]] = []  # field and kind of each value that was read as text, of the whole row

    def __contains__(self, name: str) -> bool:
        return self._name(name) in self._values

    def has(self, name: str) -> bool:
        """True if the field holds something: it is there, not null, and no empty text, list or object."""
        return self.peek(name) not in _EMPTY

    def peek(self, name: str) -> Any:
        """The value as it stands, which does not count as read."""
        return self._values.get(self._name(name))  # type: ignore[arg-type]

    @property
    def names(self) -> list[str]:
        """The names of all fields."""
        return list(self._values)

    def unused(self) -> Iterator[str]:
        """The fields of the row, turns and calls included, that hold something and that nothing has read."""
        for each in self._objects:
            for name, value in each._values.items():
                if name not in each._read and value not in _EMPTY:
                    yield each._place + name

    def error(self, message: str) -> DataError:
        """The error of this object."""
        return DataError(f"{self.source}: {message}")

    def get(self, name: str) -> Any:
        """The value as it stands, None where it is absent."""
        own = self._name(name)
        self._read.add(own)
        return self._values.get(own)  # type: ignore[arg-type]

    def text(self, name: str, *, numbers: bool = False) -> str | None:
        """The text, None where it is absent, null or blank; with `numbers`, also a number, true or false as text."""
        value = self.get(name)
        if numbers and isinstance(value, bool | int | float):
            return self._number(name, value)
        text = checked_text(value, f"field {self._name(name)!r}", self.source)
        return value if self.exact and text is not None else text

    def required_text(self, name: str, *, numbers: bool = False) -> str:
        """The text, as above. Raises DataError with the fields there are if it is absent, null or blank."""
        self.require(name)
        text = self.text(name, numbers=numbers)
        if text is None:
            raise self.error(f"field {self._name(name)!r} is empty.")
        return text

    def word(self, name: str) -> str:
        """A required text without any space around it."""
        return self.required_text(name).strip()

    def items(self, name: str) -> list[Any] | None:
        """The list, None where it is absent, null or empty; the JSON text of one, as tables hold it, is read."""
        value = self.get(name)
        if value in _EMPTY:
            return None
        if isinstance(value, str) and value.strip()[:1] == "[":
            value = parsed_json(value, f"field {self._name(name)!r}", self.source)
        if not isinstance(value, list):
            raise self.error(f"field {self._name(name)!r} is {kind_of(value)}, expected a list.")
        return value or None

    def required_items(self, name: str) -> list[Any]:
        """The non-empty list. Raises DataError with the fields there are."""
        self.require(name)
        value = self.get(name)
        listed = isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("["))
        if listed and (found := self.items(name)):
            return found
        raise self.error(f"field {self._name(name)!r} must be a non-empty list.")

    def require(self, name: str) -> None:
        """Raises DataError with the fields there are if the field is absent."""
        if name not in self:
            raise self.error(f"no field {self._name(name)!r}; the row has {readable_fields(self._values)}.")

    def within(self, value: object, name: str, what: str, expected: str) -> "Fields":
        """An object inside this one; `what` stands behind the source in errors, `name` in notes ("messages[]")."""
        source = f"{self.source} {what}"
        if not isinstance(value, dict):
            raise DataError(f"{source}: expected an object with {expected}, found {kind_of(value)}.")
        inner = Fields(value, source, exact=self.exact)
        inner._place = f"{self._place}{name}."
        inner._objects, inner.as_text = self._objects, self.as_text
        self._objects.append(inner)
        return inner

    def note_as_text(self, name: str, kind: str) -> None:
        """Note a value that is no text and was read as one."""
        self.as_text.append((f"{self._place}{self._name(name)}", kind))

    def _name(self, name: str) -> str | None:
        """The row's own name of a field; None where the columns name none."""
        return name if self._columns is None else self._columns.get(name)

    def _number(self, name: str, value: float) -> str:
        if isinstance(value, float) and not math.isfinite(value):
            raise self.error(f"field {self._name(name)!r} is {value}, expected text or a finite number.")
        self.note_as_text(name, "true or false" if isinstance(value, bool) else "numbers")
        return json.dumps(value)


def checked_text(value: object, place: str, source: str) -> str | None:
    """A value as trimmed text, None where it is null or blank. Raises DataError if it is none, or no Unicode."""
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
    return trimmed(value) or None


def parsed_json(text: str, place: str, source: str) -> Any:
    """The value of a JSON text. Raises DataError if it is none."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise DataError(f"{source}: {place} is JSON that is nested too deeply.") from None
    except ValueError as error:
        reason = f"{error.msg} (column {error.colno})" if isinstance(error, json.JSONDecodeError) else error
        raise DataError(f"{source}: {place} is no JSON: {reason}.") from None


def json_text(value: object, place: str, source: str) -> str:
    """A value as JSON text. Raises DataError for what JSON cannot hold, and for half of a surrogate pair."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (RecursionError, TypeError, ValueError):
        raise DataError(f"{source}: {place} cannot be written as JSON: nested too deeply, or no JSON value.") from None
    checked_text(text, place, source)
    return text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def assistant_message(text: str, reasoning: str | None, row: Fields, *, may_be_empty: bool = False) -> Message:
    """The assistant's turn; reasoning that the text opens with, `<think>…</think>`, becomes the field it is.

    Raises DataError for a block that does not close, for nothing after it unless that `may_be_empty`, and for reasoning
    given in both ways.
    """
    if row.exact or not text.lstrip().startswith(THINK_OPEN):
        return Message("assistant", text, reasoning)
    inside, closed, answer = text.lstrip().removeprefix(THINK_OPEN).partition(THINK_CLOSE)
    if not closed:
        raise row.error(f"the answer opens {THINK_OPEN} and never closes it.")
    if not answer.strip() and not may_be_empty:
        raise row.error(f"there is no answer after {THINK_CLOSE}.")
    if reasoning and inside.strip():
        raise row.error(f"reasoning is given twice, in its field and as {THINK_OPEN} in the answer.")
    return Message("assistant", trimmed_behind(answer), inside.strip() or reasoning)
