"""Word lists and tests: function words, words that reverse a meaning, misprints."""

COMMON_WORDS = frozenset((
    "a", "an", "the", "of", "to", "in", "on", "at", "by", "for", "from", "with", "and", "or", "is", "are", "was", "be",
    "were", "do", "does", "did", "can", "could", "may", "might", "will", "would", "should", "has", "have", "had", "i",
    "my", "me", "you", "your", "it", "its", "this", "that", "these", "those", "there", "what", "which", "who", "how",
    "when", "please", "about", "any", "some", "as", "s",
))  # fmt: skip
FUNCTION_WORDS = frozenset(("a", "an", "the", "is", "are", "was", "were", "be", "do", "does", "did", "please"))
REVERSING_WORDS = frozenset((
    "not", "no", "never", "none", "neither", "nor", "without", "cannot", "t", "unless", "except", "only", "if", "but",
    "before", "after", "more", "less", "most", "least", "high", "higher", "low", "lower", "left", "right", "increase",
    "increases", "increased", "decrease", "decreases", "decreased", "rarely", "always", "often", "avoid", "stop",
    "start", "all", "any", "some", "each", "both", "other", "than", "and", "or", "over", "under", "above", "below",
))  # fmt: skip
NEGATIONS = frozenset(("not", "no", "never", "without", "cannot", "t", "neither", "nor", "none"))
MIN_MISPRINT = 5  # letters; in shorter words, one other letter makes another word


def differs_by_one_letter(one: str, other: str) -> bool:
    """True if inserting, deleting or replacing one letter turns a word of at least five letters into the other."""
    if abs(len(one) - len(other)) > 1 or min(len(one), len(other)) < MIN_MISPRINT:
        return False
    if not (one.isalpha() and other.isalpha()):
        return False
    begin = next((index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    if begin is None:
        return True
    return one[begin + (len(one) >= len(other)) :] == other[begin + (len(other) >= len(one)) :]


def has_no_misprints(word: str) -> bool:
    """True for numbers, symbols and single letters, which have no misprints: any other one has another meaning."""
    return len(word) == 1 or not word.isalpha()
