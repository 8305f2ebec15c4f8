"""Findings of the cleaning that are reported but leave a row unchanged, and the option that acts on each."""

from gladstone.commands.shell import command_line

LISTED_SOURCES = 3  # example rows listed for a finding

# name → description, the option that acts on it, and its effect
_FINDINGS = {
    "html": ("HTML tags or entities", "html=remove", "removes them"),
    "whitespace": ("runs of spaces or blank lines, or indentation", "whitespace=remove", "removes them"),
    "boilerplate": ("sentences that begin or end many answers", "boilerplate=remove", "removes them"),
    "too short": ("fewer than 10 characters in total", "min_chars=10", "leaves such rows out"),
    "echo": ("the answer repeats the words of the question", "echoes=drop", "leaves such rows out"),
    "cut": ("the answer stops mid-sentence", "cut_answers=drop sure", "leaves such rows out"),
}


def finding_text(name: str) -> str:
    """Return a finding in words."""
    return _FINDINGS[name][0]


def option(name: str) -> str:
    """Return the option that acts on a finding, as --set accepts it."""
    return f"data.cleaning.{_FINDINGS[name][1]}"


def describe_finding(name: str, examples: str = "") -> str:
    """Describe a finding, with example sources, and the option that acts on it."""
    text, _, effect = _FINDINGS[name]
    return f"{name}: {text}{examples}; {command_line('--set', option(name))} {effect}"
