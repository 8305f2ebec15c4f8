"""JSON that every reader accepts. Whatever Gladstone stores or prints as JSON is written here.

JSON has no NaN and no infinity: such a number is written as the text "NaN", "Infinity" or "-Infinity", as in the JSON
form of Protocol Buffers. `number` reads it back; files of earlier versions may hold the bare words, which Python reads.
"""

import json
import math
from collections.abc import Callable
from typing import Any

NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def name_of(value: float) -> str:
    """The text that stands for a number that is not finite."""
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def tagged(value: float) -> dict[str, str]:
    """What transformers writes for a number that is not finite in a model's config.json, and reads."""
    return {"__float__": name_of(value)}


def json_text(  # noqa: PLR0913 - those of json.dumps
    value: Any,
    *,
    indent: int | None = None,
    sort_keys: bool = False,
    ensure_ascii: bool = False,
    default: Callable[[Any], Any] | None = None,
    non_finite: Callable[[float], Any] = name_of,
) -> str:
    """Return a value as JSON; `non_finite` returns what stands for a number that is not finite.

    `default` is that of json.dumps. Raises what json.dumps raises for a value that JSON cannot represent.
    """

    def dumped(plain: Any) -> str:
        return json.dumps(
            plain, indent=indent, sort_keys=sort_keys, ensure_ascii=ensure_ascii, default=default, allow_nan=False
        )

    try:
        return dumped(value)
    except ValueError:  # a number that is not finite, or a value that contains itself
        return dumped(_finite(value, non_finite))


def _finite(value: Any, non_finite: Callable[[float], Any]) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else non_finite(value)
    if isinstance(value, dict):
        return {_key(key): _finite(item, non_finite) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, non_finite) for item in value]
    return value


def _key(key: Any) -> Any:
    return name_of(key) if isinstance(key, float) and not math.isfinite(key) else key


def number(value: Any) -> Any:
    """Return the number that `json_text` wrote as a text; any other value is returned as it is.

    >>> number("-Infinity"), number(1.5), number("one")
    (-inf, 1.5, 'one')
    """
    return NAMES.get(value, value) if isinstance(value, str) else value


def numbers(value: Any) -> Any:
    """As `number`, for every value inside; no text of the file may be one of the names."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    return [numbers(item) for item in value] if isinstance(value, list) else number(value)
