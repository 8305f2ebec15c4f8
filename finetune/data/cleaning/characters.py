"""Removes invisible characters that carry no meaning.

Invisible characters with a meaning stay: joiners in Persian, Indic scripts and emoji, variation selectors, flag tags,
invisible operators, and direction marks in texts with right-to-left letters.
"""

import re
import unicodedata

# scripts without spaces between words, which may use zero-width spaces: Thai, Lao, Tibetan, Myanmar, Khmer, Tai,
# Balinese, Javanese, Cham
_UNSPACED = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9ff\uaa00-\uaadf"
# byte-order mark, zero-width space, word joiner, and control characters except those that end lines, separate fields
# (U+001C to 1F), move the cursor (backspace, escape), or are letters in another encoding (U+0080 to 9F)
_UNSEEN = re.compile(f"[\u0000-\u0007\u000e-\u001a\u007f\ufeff]|(?<![{_UNSPACED}])[\u200b\u2060](?![{_UNSPACED}])")
_ANY = re.compile("[\u0000-\u0007\u000e-\u001a\u007f\u00ad\u200b\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_SOFT_HYPHEN = re.compile("(?<=[^\\W\\d_])\u00ad+(?=[^\\W\\d_])")
_DIRECTIONS = re.compile("[\u202a-\u202e\u2066-\u2069]")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]")


def normalise_characters(text: str) -> str:
    """Compose characters (NFC) and remove invisible ones without meaning."""
    composed = unicodedata.normalize("NFC", text)
    if not _ANY.search(composed):
        return composed
    seen = _SOFT_HYPHEN.sub(_unless_visible, _UNSEEN.sub("", composed))
    if not _RIGHT_TO_LEFT.search(seen):
        seen = _DIRECTIONS.sub("", seen)
    return seen if seen == composed else normalise_characters(seen)  # removal may have made two characters composable


def _unless_visible(hyphens: re.Match[str]) -> str:
    """Remove a soft hyphen between small letters; elsewhere (2-3 mg, X-ray) it may replace a visible hyphen."""
    text, begin, end = hyphens.string, hyphens.start(), hyphens.end()
    within = text[begin - 1].islower() and text[end].islower() and hyphens[0] == "\u00ad"
    return "" if within else hyphens[0]


def width(text: str) -> int:
    """Return the width of a text in columns: Chinese, Japanese and Korean characters count twice."""
    if text.isascii():
        return len(text)
    return len(text) + sum(unicodedata.east_asian_width(character) in "WF" for character in text)
