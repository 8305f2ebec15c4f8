"""Synonyms in plain and clinical English, to recognise paraphrased questions."""

from functools import lru_cache

from finetune.data.leaks.synonym_lists import GENERAL, NAMES

_GROUP_OF: dict[str, set[int]] = {}
_GENERAL_GROUPS = len(GENERAL.strip().splitlines())
_GROUPS = [line.split() for line in [*GENERAL.strip().splitlines(), *NAMES.strip().splitlines()]]
for _number, _words in enumerate(_GROUPS):
    for _word in _words:
        _GROUP_OF.setdefault(_word, set()).add(_number)


def are_synonyms(one: str, other: str) -> bool:
    """True if a line of the list has both words, in singular or plural, or as a verb with -s, -ed or -ing."""
    return not synonym_groups(one).isdisjoint(synonym_groups(other))


@lru_cache(maxsize=1 << 12)
def synonyms(word: str) -> frozenset[str]:
    """Return the words, in all forms, that share a line of the list with a word."""
    words = {form for group in synonym_groups(word) for form in _GROUPS[group]}
    ended = {f"{form}{ending}" for form in words for ending in ("s", "es", "ed", "d", "ing")}
    return frozenset(words | ended | {f"{form.removesuffix('e')}ing" for form in words})


@lru_cache(maxsize=1 << 14)
def synonym_groups(word: str) -> set[int]:
    """Return the numbers of the list's lines that contain a word."""
    forms = {word, *(word.removesuffix(ending) for ending in ("s", "es", "ed", "d", "ing"))}
    if word.endswith("ing"):
        forms.add(f"{word.removesuffix('ing')}e")
    return {number for form in forms if form in _GROUP_OF for number in _GROUP_OF[form]}


def is_general(word: str) -> bool:
    """True for a word that shapes a question and names no part of the body, people or illness."""
    groups = synonym_groups(word)
    return bool(groups) and max(groups) < _GENERAL_GROUPS
