"""Finds personal data by pattern, and masks it; reports give its kind and source, never the data.

A name in running text is not found.
"""

import re
from collections import Counter

_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_DATE = (
    r"(?:\d{1,2}[./-]\d{1,2}[./-](?:\d{4}|\d{2})|\d{4}-\d{2}-\d{2}"
    rf"|\d{{1,2}}(?:st|nd|rd|th)?\s+(?:of\s+)?(?:{_MONTHS})[a-z]*\.?,?\s+\d{{4}}"
    rf"|(?:{_MONTHS})[a-z]*\.?\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+\d{{4}})"
)
# kind → pattern; the group `value` is masked
PATTERNS: dict[str, re.Pattern[str]] = {
    "e-mail": re.compile(r"(?P<value>[\w.+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,5})"),
    "date of birth": re.compile(
        rf"(?:\bborn(?:\s+on)?|\bdate\s+of\s+birth|\bbirth\s?date|\bd\.?o\.?b\b\.?)\s*(?:is|was|:|-)?\s*(?P<value>{_DATE})",
        re.IGNORECASE,
    ),
    "record number": re.compile(
        r"(?:\bmrn|\bmedical\s+record(?:\s+(?:number|no\.?|#))?|\b(?:patient|hospital|case|chart|insurance|policy)"
        r"\s+(?:id|number|no\.?|#)|\bnhs(?:\s+(?:number|no\.?))?|\bssn|\bsocial\s+security(?:\s+(?:number|no\.?))?)"
        r"\s*(?:is|was|:|#|-)?\s*(?P<value>\d{3}\s\d{3}\s\d{4}|(?=(?:[A-Z-]*\d){3})[A-Z0-9][A-Z0-9-]{3,20})\b",
        re.IGNORECASE,
    ),
    "social security number": re.compile(r"(?<![\w-])(?P<value>\d{3}-\d{2}-\d{4})(?![\w-])"),
    "telephone": re.compile(
        r"(?<![\w.,/-])(?P<value>\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,5}\d{2,4}"
        r"|\(\d{2,4}\)\s?\d{3,4}[ .-]\d{3,4}|\d{3}[ .-]\d{3}[ .-]\d{4}|0\d{2,4}[ -/]\d{3,4}[ -]?\d{3,4})(?![\w-])"
    ),
}

_DIGIT = re.compile(r"\d")


def mask_personal_data(text: str) -> tuple[str, Counter[str]]:
    """Replace personal data by `[kind]`, and count the occurrences of each kind."""
    counts: Counter[str] = Counter()
    has_digits = _DIGIT.search(text) is not None
    for kind, pattern in PATTERNS.items():
        if not ("@" in text if kind == "e-mail" else has_digits):
            continue
        text, count = pattern.subn(lambda match, kind=kind: _masked(match, kind), text)  # type: ignore[misc]
        if count:
            counts[kind] += count
    return text, counts


def _masked(match: re.Match[str], kind: str) -> str:
    begin, end = match.span("value")
    whole = match[0]
    return whole[: begin - match.start()] + f"[{kind}]" + whole[end - match.start() :]
