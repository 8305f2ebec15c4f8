"""Characters that nobody sees and nobody misses.

Those that carry meaning stay: joiners of Persian, of Indic scripts and of emoji, variation selectors, tags of flags,
invisible operators, directions in texts that have right-to-left letters.
"""

import re
import unicodedata

# scripts that write no space between words, and may mark them by a zero-width one: Thai, Lao, Tibetan, Myanmar, Khmer,
# Tai, Balinese, Javanese, Cham
_UNSPACED = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9ff\uaa00-\uaadf"
# control characters, less those that end lines, separate fields (U+001C to 1F), move a cursor (backspace, escape) or
# stand where another encoding has letters (U+0080 to 9F); byte order mark; zero-width space and joiner of words
_UNSEEN = re.compile(f"[\u0000-\u0007\u000e-\u001a\u007f\ufeff]|(?<![{_UNSPACED}])[\u200b\u2060](?![{_UNSPACED}])")
_ANY = re.compile("[\u0000-\u0007\u000e-\u001a\u007f\u00ad\u200b\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_SOFT_HYPHEN = re.compile("(?<=[^\\W\\d_])\u00ad+(?=[^\\W\\d_])")
_DIRECTIONS = re.compile("[\u202a-\u202e\u2066-\u2069]")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]")


def normal_characters(text: str) -> str:
    """Composed characters (NFC), and no unseen ones that carry no meaning."""
    composed = unicodedata.normalize("NFC", text)
    if not _ANY.search(composed):
        return composed
    seen = _SOFT_HYPHEN.sub(_unless_visible, _UNSEEN.sub("", composed))
    if not _RIGHT_TO_LEFT.search(seen):
        seen = _DIRECTIONS.sub("", seen)
    return seen if seen == composed else normal_characters(seen)  # what stood between two characters may be gone


def _unless_visible(hyphens: re.Match[str]) -> str:
    """Nothing within a word in small letters; elsewhere (2-3 mg, X-ray) it may stand for a hyphen that was seen."""
    text, begin, end = hyphens.string, hyphens.start(), hyphens.end()
    within = text[begin - 1].islower() and text[end].islower() and hyphens[0] == "\u00ad"
    return "" if within else hyphens[0]


def width(text: str) -> int:
    """Length of a text in columns: a character of Chinese, Japanese or Korean counts twice."""
    if text.isascii():
        return len(text)
    return len(text) + sum(unicodedata.east_asian_width(character) in "WF" for character in text)
