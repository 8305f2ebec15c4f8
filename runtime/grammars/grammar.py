"""Constrained decoding: llguidance compiles a grammar for a model's vocabulary and masks the tokens it forbids.

Only this module uses llguidance. Grammars that would exceed limits that llguidance lacks (native stack, quadratic time)
are refused before it sees them.
"""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from gladstone.errors import ConfigError, UnsupportedError
from runtime.grammars.gbnf import gbnf_to_lark
from runtime.grammars.json_schema import prepare_schema
from runtime.grammars.regex import check_regex

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from gladstone.llamacpp.model import Model

Kind = Literal["json_schema", "json_object", "regex", "gbnf"]

MAX_SOURCE_BYTES = {"json_schema": 128 * 1024, "json_object": 0, "regex": 64 * 1024, "gbnf": 64 * 1024}
COMPILE_STACK_BYTES = 64 * 1024 * 1024
# a lexer state takes one to two kB; the mask of a token may use about 25 ms of each fuel
LIMITS: dict[str, Any] = {
    "max_lexer_states": 50_000,
    "step_lexer_fuel": 350_000,
    "step_max_items": 50_000,
    "verbose_errors": False,
}
# an ambiguous grammar fills the row of each character: at 2,000 items a token takes half a second; an object has three
# items for each optional property
MAX_ITEMS_IN_ROW = {"gbnf": 1_000, "json_schema": 5_000, "json_object": 5_000, "regex": 2_000}
MAX_MESSAGE_LETTERS = 200
DEAD_END = "the answer cannot continue to match the grammar: the vocabulary has no token for what must follow."

_stack_size = threading.Lock()


@dataclass(frozen=True)
class Grammar:
    """A grammar that a whole answer must match; `source` is empty for `json_object`."""

    kind: Kind
    source: str = ""

    def __post_init__(self) -> None:
        """Raises ConfigError for an unknown kind, and for text that is missing, too long or not Unicode."""
        if self.kind not in get_args(Kind):
            raise ConfigError(f"the grammar is of kind {self.kind!r}, expected one of {', '.join(get_args(Kind))}.")
        if not self.source.strip() and self.kind not in ("json_object", "regex"):
            raise ConfigError(f"the grammar of kind {self.kind} is empty.")
        try:
            size = len(self.source.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"the grammar of kind {self.kind} contains a lone surrogate at character {error.start + 1:,}."
            ) from error
        most = MAX_SOURCE_BYTES[self.kind]
        if size > most:
            raise ConfigError(f"the grammar of kind {self.kind} has {size:,} bytes, at most {most:,} are allowed.")


class GrammarCompiler:
    """Compiles grammars for the vocabulary of a model. Create one for each model."""

    def __init__(self, model: "Model") -> None:
        """Takes 0.25 s for 49,000 tokens. Raises UnsupportedError if the vocabulary has no end token."""
        from llguidance import LLTokenizer

        self.vocab_size = model.vocab_size
        self.end_tokens = frozenset(token for token in range(model.vocab_size) if model.ends_generation(token))
        if not self.end_tokens:
            raise UnsupportedError(f"{model.path}: the vocabulary has no end token, which a grammar requires.")
        vocabulary = _Vocabulary(model, self.end_tokens)
        self._tokenizer = LLTokenizer(vocabulary, eos_token=sorted(self.end_tokens))  # type: ignore[arg-type]
        vocabulary.tokenizer = self._tokenizer

    def compile(self, grammar: Grammar) -> "Constraint":
        """A constraint at its first token. Raises ConfigError for a grammar that is invalid, endless or too large."""
        from llguidance import LLMatcher, LLParserLimits

        definition = _definition(grammar)
        limits = LLParserLimits(**LIMITS, max_items_in_row=MAX_ITEMS_IN_ROW[grammar.kind])
        matcher = _on_large_stack(lambda: LLMatcher(self._tokenizer, definition, log_level=0, limits=limits))
        if matcher.is_error():
            raise ConfigError(f"the grammar of kind {grammar.kind} cannot be used: {_short(matcher.get_error())}")
        constraint = Constraint(matcher, self.vocab_size, self.end_tokens)
        try:
            constraint.allowed()  # a grammar without any match, or too large, fails at the first token
            constraint.forced()
        except UnsupportedError as error:
            raise ConfigError(f"the grammar of kind {grammar.kind} cannot be used: {error}") from error
        return constraint


class Constraint:
    """The state of one answer in a grammar: `mask` logits, sample, `accept` the token, until `finished`."""

    def __init__(self, matcher: Any, vocab_size: int, end_tokens: frozenset[int]) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._end_tokens = end_tokens
        import numpy as np

        self._bits = np.zeros((1, (vocab_size + 31) // 32), dtype=np.int32)
        self._ended = False

    def allowed(self) -> "npt.NDArray[np.bool_]":
        """Which tokens may come next, (V,) bool. Raises UnsupportedError if that exceeds the limits."""
        import numpy as np
        from llguidance.numpy import fill_next_token_bitmask

        if self._ended:
            allowed = np.zeros(self._vocab_size, dtype=np.bool_)
            allowed[list(self._end_tokens)] = True
            return allowed
        fill_next_token_bitmask(self._matcher, self._bits)
        self._check()  # on an error the mask allows the end token, which would look like a complete answer
        allowed = np.unpackbits(self._bits.view(np.uint8)[0], count=self._vocab_size, bitorder="little").view(np.bool_)
        if not allowed.any():
            raise UnsupportedError(DEAD_END)
        return allowed

    def mask(self, logits: "npt.NDArray[np.float32]") -> None:
        """Set the logits (V,) of forbidden tokens to -inf, in place. Raises UnsupportedError as `allowed` does."""
        import numpy as np

        if logits.shape != (self._vocab_size,):
            raise ValueError(f"logits of shape {logits.shape}, expected ({self._vocab_size},)")
        allowed = self.allowed()
        np.copyto(logits, -np.inf, where=~allowed)

    def allows(self, token: int) -> bool:
        """Whether a token may come next, without computing a mask."""
        if token in self._end_tokens:
            return self.may_end
        if self._ended or not 0 <= token < self._vocab_size:
            return False
        allows: bool = self._matcher.validate_tokens([token]) == 1
        self._check()
        return allows

    def accept(self, token: int) -> None:
        """Advance by one token. Raises ValueError for a forbidden one, and then keeps its state."""
        if not self.allows(token):
            raise ValueError(f"token {token} is not allowed by the grammar here")
        if token in self._end_tokens:
            self._ended = True
            return
        self._matcher.consume_token(token)
        self._check()

    @property
    def finished(self) -> bool:
        """True if the text is complete and nothing can follow, so that the answer ends without an end token."""
        return self._ended or bool(self._matcher.is_stopped())

    @property
    def may_end(self) -> bool:
        """True if the text so far is complete, whether or not more can follow."""
        return self.finished or bool(self._matcher.is_accepting())

    def forced(self) -> list[int]:
        """Tokens that must come next, as the model's own tokenizer splits them; often none."""
        if self.finished:
            return []
        tokens: list[int] = self._matcher.compute_ff_tokens()
        fitting: int = self._matcher.validate_tokens(tokens)
        self._check()
        return tokens[:fitting]

    def copy(self) -> Self:
        """An independent copy of the state."""
        other = type(self)(self._matcher.deep_copy(), self._vocab_size, self._end_tokens)
        other._ended = self._ended
        return other

    def _check(self) -> None:
        if not self._matcher.is_error():
            return
        message = _short(self._matcher.get_error())
        if message.startswith("NoExtension"):
            raise UnsupportedError(DEAD_END)
        raise UnsupportedError(f"the grammar is too large or too ambiguous to follow: {message}")


class _Vocabulary:
    """The tokenizer interface of llguidance. Control tokens have no bytes here, so that no grammar can produce them."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()

    def __init__(self, model: "Model", end_tokens: frozenset[int]) -> None:
        self._model = model
        self.eos_token_id = min(end_tokens)
        self.tokens = [
            b"" if token in end_tokens or model.is_control(token) else model.piece(token)
            for token in range(model.vocab_size)
        ]
        self.tokenizer: Any = None  # llguidance's, for text that the model's tokenizer does not reproduce

    def __call__(self, text: str) -> list[int]:
        """Tokens whose bytes are exactly the text, or []; a line end before it prevents llama.cpp's extra space."""
        data = text.encode("utf-8")
        tokens = self._model.tokenize(text)
        if self._bytes(tokens) == data:
            return tokens
        tokens = self._model.tokenize("\n" + text)
        for start in range(1, min(4, len(tokens))):
            if self._bytes(tokens[start:]) == data:
                return tokens[start:]
        greedy: list[int] = self.tokenizer.greedy_tokenize(text)
        return greedy if self._bytes(greedy) == data else []  # a byte without a token: nothing is forced

    def _bytes(self, tokens: list[int]) -> bytes:
        return b"".join(self.tokens[token] for token in tokens)


def _definition(grammar: Grammar) -> str:
    from llguidance import LLMatcher

    match grammar.kind:
        case "json_object":
            return str(LLMatcher.grammar_from_json_schema(prepare_schema('{"type": "object"}')))
        case "json_schema":
            return str(LLMatcher.grammar_from_json_schema(prepare_schema(grammar.source)))
        case "gbnf":
            return str(LLMatcher.grammar_from_lark(gbnf_to_lark(grammar.source)))
        case "regex":
            check_regex(grammar.source, "the regular expression")
            return str(LLMatcher.grammar_from_regex(grammar.source))


def _on_large_stack(make: Any) -> Any:
    """Call `make` in a thread with a stack that suffices for every checked grammar. Raises ConfigError for a panic."""
    with _stack_size:
        before = threading.stack_size(COMPILE_STACK_BYTES)
        try:
            with ThreadPoolExecutor(1) as threads:
                future = threads.submit(make)
                error = future.exception()
        finally:
            threading.stack_size(before)
    if error is None:
        return future.result()
    if isinstance(error, Exception):
        raise error
    raise ConfigError(f"the grammar cannot be compiled: {_short(str(error))}") from error


def _short(message: str) -> str:
    """llguidance's message on one line, without the grammar that it quotes."""
    match = re.search(r"error: ([^\n]+)", message)
    line = " ".join((match[1] if match else message).replace("<non-verbose/>", "").split())
    return line if len(line) <= MAX_MESSAGE_LETTERS else f"{line[:MAX_MESSAGE_LETTERS]}…"
