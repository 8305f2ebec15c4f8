"""Limits that a regular expression must meet before llguidance reads it, and a limit for nested brackets."""

import re

from gladstone.errors import ConfigError

MAX_GROUP_DEPTH = 50
# optional parts take quadratic time: `\w*` 500 times takes 67 ms and 19 MB, 4,000 times 4 s and 1 GB
MAX_QUANTIFIERS = 500
# required repetitions are expanded: (a{100}){100} takes 9 ms, (a{1000}){1000} 1.6 s and 220 MB
MAX_LEAST_REPETITIONS = 10_000

_COUNT = re.compile(r"\{\s*([0-9]+)")


def check_regex(pattern: str, where: str) -> int:
    """The number of quantifiers. Raises ConfigError for too many, for deep nesting, and for a trailing backslash."""
    quantifiers = 0
    least = [1]  # for each open group: the most repetitions that a part of it requires
    escaped, last = False, 1
    for at, letter in enumerate(pattern):
        if escaped:
            escaped, last = False, 1
        elif letter == "\\":
            escaped = True
        elif letter in "*+?{":
            quantifiers += 1
            count = _COUNT.match(pattern, at)
            last *= _at_most(count[1]) if count else 1
            least[-1] = max(least[-1], last)
        elif letter in "([":
            least.append(1)
        elif letter in ")]" and len(least) > 1:
            last = least.pop()
            least[-1] = max(least[-1], last)
        elif letter not in "0123456789,}":
            last = 1
        if len(least) > MAX_GROUP_DEPTH:
            raise ConfigError(f"{where} nests groups more than {MAX_GROUP_DEPTH} deep, at character {at + 1:,}.")
        if least[-1] > MAX_LEAST_REPETITIONS:
            raise ConfigError(
                f"{where} requires more than {MAX_LEAST_REPETITIONS:,} repetitions, at character {at + 1:,}."
            )
    if escaped:
        raise ConfigError(f"{where} ends with a lone backslash: write \\\\ for a backslash.")
    if quantifiers > MAX_QUANTIFIERS:
        raise ConfigError(f"{where} has {quantifiers:,} quantifiers, at most {MAX_QUANTIFIERS} are allowed.")
    return quantifiers


def _at_most(digits: str) -> int:
    """The number, or the limit + 1 if it has too many digits."""
    return int(digits) if len(digits) <= len(str(MAX_LEAST_REPETITIONS)) else MAX_LEAST_REPETITIONS + 1


def check_nesting(text: str, most: int, what: str) -> None:
    """Raises ConfigError if square and curly brackets nest too deep for a parser on the native stack."""
    depth = 0
    for letter in text:
        if letter in "[{":
            depth += 1
            if depth > most:
                raise ConfigError(f"{what} nests more than {most} deep.")
        elif letter in "]}":
            depth -= 1
