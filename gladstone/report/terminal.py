"""Untrusted text on the user's terminal: nothing that a model or a file says may control it."""

# control characters map to their visible symbols; newline and tab stay
_VISIBLE = {code: 0x2400 + code for code in range(0x20)} | dict.fromkeys(range(128, 160), 65533) | {0x7F: 0x2421}
_VISIBLE = {code: symbol for code, symbol in _VISIBLE.items() if chr(code) not in "\n\t"}
# lone surrogates cannot be encoded; bidirectional control marks would reorder the text that follows
_VISIBLE |= dict.fromkeys([*range(0xD800, 0xE000), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 65533)


def visible(text: str) -> str:
    """Return the text with control characters replaced by visible, harmless symbols."""
    return text.translate(_VISIBLE)


def one_line(text: str, longest: int | None = None) -> str:
    """Return the text on one line, harmless, and cut to `longest` characters if it has more.

    >>> one_line("two\\n  lines and more", 10)
    'two lines…'
    """
    flat = visible(" ".join(text.split()))
    return flat if longest is None or len(flat) <= longest else f"{flat[: longest - 1].rstrip()}…"
