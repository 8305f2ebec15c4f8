"""GBNF, llama.cpp's grammar format: parsed into rules, checked, and written in the Lark dialect of llguidance.

A grammar without recursion becomes one terminal, a regular expression. In a recursive grammar every character is a
terminal of its own: a lexer with longest match would read `[a-z]+ "end"` differently from llama.cpp, while single
characters define the same language. Left recursion, which llama.cpp refuses, works.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from gladstone.errors import ConfigError
from runtime.grammars.regex import MAX_LEAST_REPETITIONS, MAX_QUANTIFIERS

# llguidance recurses from rule to rule on the native stack: a chain of 2,000 fits into 8 MiB, 5,000 do not
MAX_RULES = 1_000
MAX_SYMBOLS = 10_000
MAX_CHOICES = 2_000  # alternatives and repetitions: the first mask of 5,000 repetitions in a row takes a second
MAX_REPETITIONS = 10_000
MAX_DEPTH = 64
LAST_CODE_POINT = 0x10FFFF
ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}


@dataclass
class Symbol:
    """A character class as a regex (`rule` is None), or a reference to a rule; `most` None means unbounded."""

    text: str
    rule: str | None = None
    least: int = 1
    most: int | None = 1


@dataclass
class Rule:
    """Alternative sequences; `shown` is the name of the user's rule, also for a rule made from a group in it."""

    shown: str
    alternatives: list[list[Symbol]] = field(default_factory=list)


def gbnf_to_lark(text: str) -> str:
    """The grammar for llguidance. Raises ConfigError, with the line, for one that is invalid or can never end."""
    parser = _Parser(text)
    rules = parser.parse()
    if "root" not in rules:
        raise ConfigError("the GBNF grammar has no rule `root`, at which every text starts.")
    reachable = _reachable(rules)
    _check_ends(rules, reachable)
    small = parser.repetitions <= MAX_QUANTIFIERS and parser.least_product <= MAX_LEAST_REPETITIONS
    regular = small and not _is_recursive(rules, reachable)
    names = {name: f"{'R' if regular else 'r'}{number}" for number, name in enumerate(reachable)}
    lines = [f"start: {names['root']}"]
    for name in reachable:
        alternatives = (" ".join(_lark(symbol, names) for symbol in sequence) for sequence in rules[name].alternatives)
        lines.append(f"{names[name]}: " + " | ".join(alternatives))
    return "\n".join(lines) + "\n"


def _lark(symbol: Symbol, names: dict[str, str]) -> str:
    text = f"/{symbol.text}/" if symbol.rule is None else names[symbol.rule]
    if (symbol.least, symbol.most) == (1, 1):
        return text
    return f"{text}{{{symbol.least},{'' if symbol.most is None else symbol.most}}}"


def _reachable(rules: dict[str, Rule]) -> list[str]:
    """Names of the rules that `root` reaches. Raises ConfigError for a rule that is used but not defined."""
    order, waiting = ["root"], ["root"]
    seen = {"root"}
    while waiting:
        name = waiting.pop()
        for symbol in _symbols(rules[name]):
            if symbol.rule is None or symbol.rule in seen:
                continue
            if symbol.rule not in rules:
                raise ConfigError(f"the GBNF rule `{rules[name].shown}` uses `{symbol.rule}`, which is not defined.")
            seen.add(symbol.rule)
            order.append(symbol.rule)
            waiting.append(symbol.rule)
    return order


def _is_recursive(rules: dict[str, Rule], names: list[str]) -> bool:
    """Whether a rule can contain itself: removing unused rules repeatedly then leaves some."""
    uses = {name: [symbol.rule for symbol in _symbols(rules[name]) if symbol.rule is not None] for name in names}
    users = Counter(rule for used in uses.values() for rule in used)
    waiting = [name for name in names if not users[name]]
    taken = 0
    while waiting:
        taken += 1
        for rule in uses[waiting.pop()]:
            users[rule] -= 1
            if not users[rule]:
                waiting.append(rule)
    return taken < len(names)


def _symbols(rule: Rule) -> Iterator[Symbol]:
    for sequence in rule.alternatives:
        yield from sequence


def _check_ends(rules: dict[str, Rule], names: list[str]) -> None:
    """Raises ConfigError for a rule without a finite text, such as `a ::= "x" a`; in linear time."""
    missing: list[int] = []  # for each alternative: the number of its symbols not yet known to end
    users: dict[str, list[tuple[int, str]]] = defaultdict(list)
    ends: set[str] = set()
    waiting: list[str] = []
    for name in names:
        for sequence in rules[name].alternatives:
            needed = [symbol.rule for symbol in sequence if symbol.rule is not None and symbol.least > 0]
            for rule in needed:
                users[rule].append((len(missing), name))
            missing.append(len(needed))
            if not needed:
                waiting.append(name)
    while waiting:
        name = waiting.pop()
        if name in ends:
            continue
        ends.add(name)
        for alternative, user in users[name]:
            missing[alternative] -= 1
            if missing[alternative] == 0:
                waiting.append(user)
    for name in names:
        if name not in ends:
            raise ConfigError(f"the GBNF rule `{rules[name].shown}` can never end: every alternative needs it again.")


class _Parser:
    """Parses the text in one pass, with the syntax of llama.cpp's parser."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._rules: dict[str, Rule] = {}
        self._count = 0
        self._choices = 0
        self.repetitions = 0
        self.least_product = 1  # of all minimum repetitions, as if they were nested

    def parse(self) -> dict[str, Rule]:
        """All rules by name; groups get names that a user cannot write."""
        self._skip(newlines=True)
        while self._at < len(self._text):
            name = self._name()
            if name in self._rules:
                raise self._error(f"the rule `{name}` is defined a second time")
            rule = self._add(name, name)
            self._skip()
            self._expect("::=")
            self._skip(newlines=True)
            self._alternatives(rule, 0)
            if self._at < len(self._text) and self._text[self._at] not in "\r\n":
                raise self._error("expected a new line or the end of the rule")
            self._skip(newlines=True)
        return self._rules

    def _add(self, name: str, shown: str) -> Rule:
        if len(self._rules) >= MAX_RULES:
            raise self._error(f"more than {MAX_RULES:,} rules and groups")
        rule = self._rules[name] = Rule(shown)
        return rule

    def _alternatives(self, rule: Rule, depth: int) -> None:
        while True:
            rule.alternatives.append(self._sequence(rule, depth))
            self._choose()
            if self._peek() != "|":
                return
            self._at += 1
            self._skip(newlines=True)

    def _sequence(self, rule: Rule, depth: int) -> list[Symbol]:
        sequence: list[Symbol] = []
        while True:
            item = self._item(rule, depth)
            if item is None:
                return sequence
            self._skip(newlines=depth > 0)
            if self._peek() and self._peek() in "*+?{":
                item = [self._repeated(self._whole(item, rule), depth)]
            sequence += item
            self._read(len(item))

    def _item(self, rule: Rule, depth: int) -> list[Symbol] | None:
        """The symbols of a literal, or one symbol; None at the end of the sequence."""
        letter = self._peek()
        if letter == '"':
            return self._literal()
        if letter == "[":
            return [Symbol(self._class())]
        if letter == "(":
            return [self._group(rule, depth + 1)]
        if letter == ".":
            self._at += 1
            return [Symbol(_ranges([(0, LAST_CODE_POINT)]))]
        if letter in ("<", "!"):
            raise self._error("tokens by name or number are not supported")
        if _is_word(letter):
            return [Symbol("", self._name())]
        return None

    def _whole(self, item: list[Symbol], rule: Rule) -> Symbol:
        """The symbol that a repetition applies to: a whole literal, as in llama.cpp."""
        if len(item) == 1:
            return item[0]
        name = f"({self._at})"
        self._add(name, rule.shown).alternatives.append(item)
        return Symbol("", name)

    def _group(self, rule: Rule, depth: int) -> Symbol:
        if depth > MAX_DEPTH:
            raise self._error(f"groups nest more than {MAX_DEPTH} deep")
        name = f"({self._at}"
        group = self._add(name, rule.shown)
        self._at += 1
        self._skip(newlines=True)
        self._alternatives(group, depth)
        self._expect(")")
        return Symbol("", name)

    def _repeated(self, symbol: Symbol, depth: int) -> Symbol:
        """The symbol with the repetitions at the current position."""
        layers = 0
        while self._peek() and self._peek() in "*+?{":
            least, most = self._bounds()
            self._skip(newlines=depth > 0)
            if (symbol.least, symbol.most) != (1, 1):
                layers += 1
                if layers > MAX_DEPTH:
                    raise self._error(f"repetitions nest more than {MAX_DEPTH} deep")
                name = f"(*{self._at}"
                self._add(name, "root").alternatives.append([symbol])
                symbol = Symbol("", name)
            symbol = Symbol(symbol.text, symbol.rule, least, most)
        return symbol

    def _read(self, count: int) -> None:
        self._count += count
        if self._count > MAX_SYMBOLS:
            raise self._error(f"more than {MAX_SYMBOLS:,} characters, ranges and references")

    def _choose(self) -> None:
        self._choices += 1
        if self._choices > MAX_CHOICES:
            raise self._error(f"more than {MAX_CHOICES:,} alternatives and repetitions")

    def _bounds(self) -> tuple[int, int | None]:
        letter = self._peek()
        self._choose()
        self.repetitions += 1
        self._at += 1
        if letter != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[letter]
        self._skip(newlines=True)
        least = self._number()
        most: int | None = least
        self._skip(newlines=True)
        if self._peek() == ",":
            self._at += 1
            self._skip(newlines=True)
            most = self._number() if self._peek().isdigit() else None
            self._skip(newlines=True)
        self._expect("}")
        self.least_product = min(self.least_product * max(least, 1), MAX_LEAST_REPETITIONS + 1)
        if most is not None and most < least:
            raise self._error(f"a repetition of at least {least} and at most {most}")
        return least, most

    def _number(self) -> int:
        start = self._at
        while self._peek() in tuple("0123456789"):
            self._at += 1
        digits = self._text[start : self._at]
        if not digits:
            raise self._error("expected a number of repetitions")
        if len(digits) > len(str(MAX_REPETITIONS)) or int(digits) > MAX_REPETITIONS:
            raise self._error(f"more than {MAX_REPETITIONS:,} repetitions")
        return int(digits)

    def _literal(self) -> list[Symbol]:
        self._at += 1
        symbols = []
        while self._peek() != '"':
            code = self._character()
            symbols.append(Symbol(_ranges([(code, code)])))
        self._at += 1
        return symbols

    def _class(self) -> str:
        self._at += 1
        negated = self._peek() == "^"
        self._at += negated
        ranges = []
        while self._peek() != "]":
            low = high = self._character()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                high = self._character()
            if high < low:
                raise self._error(f"a range from {chr(low)!r} down to {chr(high)!r}")
            ranges.append((low, high))
            self._read(1)
        self._at += 1
        if not ranges:
            raise self._error("an empty character class")
        return _ranges(ranges, negated=negated)

    def _character(self) -> int:
        letter = self._peek()
        if not letter:
            raise self._error("unexpected end of the text")
        self._at += 1
        if letter != "\\":
            return ord(letter)
        kind = self._peek()
        self._at += 1
        if kind in ESCAPES:
            return ord(ESCAPES[kind])
        if kind not in HEX_ESCAPES:
            raise self._error(f"unknown escape \\{kind}")
        digits = self._text[self._at : self._at + HEX_ESCAPES[kind]]
        if len(digits) < HEX_ESCAPES[kind] or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
            raise self._error(f"expected {HEX_ESCAPES[kind]} hexadecimal digits after \\{kind}")
        code = int(digits, 16)
        if code > LAST_CODE_POINT or 0xD800 <= code <= 0xDFFF:
            raise self._error(f"\\{kind}{digits} is not a character")
        self._at += len(digits)
        return code

    def _name(self) -> str:
        start = self._at
        while _is_word(self._peek()):
            self._at += 1
        if start == self._at:
            raise self._error("expected the name of a rule")
        return self._text[start : self._at]

    def _skip(self, *, newlines: bool = False) -> None:
        """Skip blanks and comments, and with `newlines` line ends."""
        blanks = (" ", "\t", "\r", "\n") if newlines else (" ", "\t")
        while True:
            letter = self._peek()
            if letter == "#":
                while self._peek() not in ("", "\r", "\n"):
                    self._at += 1
            elif letter in blanks:
                self._at += 1
            else:
                return

    def _expect(self, text: str) -> None:
        if not self._text.startswith(text, self._at):
            raise self._error(f"expected `{text}`")
        self._at += len(text)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _error(self, what: str) -> ConfigError:
        line = self._text.count("\n", 0, self._at) + 1
        rest = self._text[self._at : self._at + 20].partition("\n")[0]
        where = f"before {rest!r}" if rest else "at the end of the line"
        return ConfigError(f"the GBNF grammar cannot be read, line {line}, {where}: {what}.")


def _is_word(letter: str) -> bool:
    return letter.isascii() and (letter.isalnum() or letter in ("-", "_")) and letter != ""


def _ranges(ranges: list[tuple[int, int]], *, negated: bool = False) -> str:
    inside = "".join(f"\\x{{{low:x}}}-\\x{{{high:x}}}" for low, high in ranges)
    return f"[{'^' if negated else ''}{inside}]"
