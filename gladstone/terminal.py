"""Text of others on the user's terminal: what a model or a file says must not steer it."""

# control characters as their visible symbols. Newline and tab stay.
_VISIBLE = {code: 0x2400 + code for code in range(0x20)} | dict.fromkeys(range(128, 160), 65533) | {0x7F: 0x2421}
_VISIBLE = {code: symbol for code, symbol in _VISIBLE.items() if chr(code) not in "\n\t"}
# a stray half of a surrogate pair cannot be encoded; marks that turn the direction of writing would act on what follows
_VISIBLE |= dict.fromkeys([*range(0xD800, 0xE000), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 65533)


def visible(text: str) -> str:
    """The text with its control characters made visible and harmless."""
    return text.translate(_VISIBLE)


def one_line(text: str, longest: int | None = None) -> str:
    """The text made harmless on one line, with its end left out where it has more than `longest` characters.

    >>> one_line("two\\n  lines and more", 10)
    'two lines…'
    """
    flat = visible(" ".join(text.split()))
    return flat if longest is None or len(flat) <= longest else f"{flat[: longest - 1].rstrip()}…"
