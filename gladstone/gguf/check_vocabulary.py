"""Check the vocabulary in a GGUF header: some vocabularies load and then crash llama.cpp."""

import math
import struct
from collections import Counter, defaultdict
from typing import Any

from gladstone.gguf.check_model import DamagedError, Keys, shorten
from gladstone.gguf.types import TokenType, ValueType

PREFIX = "tokenizer.ggml."
CHARSMAP = f"{PREFIX}precompiled_charsmap"
MAX_TOKEN_CHARACTERS = 4096  # llama.cpp recurses along a token's characters; the longest known token has 512
TEXTS = ("model", "pre")
BOOLEANS = ("add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix", "remove_extra_whitespaces")
TEMPLATE = "tokenizer.chat_template"
DEFAULT_UNKNOWN = {"t5": 2}  # the token for unknown text if the file does not name one


def check_vocabulary(keys: Keys) -> None:
    """Raise DamagedError for a vocabulary or chat template that llama.cpp cannot use; a file may have neither."""
    for key, value in keys.values.items():
        if key == TEMPLATE or key.startswith(f"{TEMPLATE}."):
            keys.typed(key, ValueType.STRING)
        elif key.startswith(PREFIX) and key.endswith("_token_id") and not isinstance(value, int):
            raise DamagedError(f"{key} is {shorten(value)}, outside the vocabulary")
    if f"{PREFIX}tokens" not in keys.values:
        return
    for name in TEXTS:
        keys.typed(PREFIX + name, ValueType.STRING)
    for name in BOOLEANS:
        keys.typed(PREFIX + name, ValueType.BOOL)
    tokens = _check_tokens(keys.values[f"{PREFIX}tokens"])
    _check_entries(keys, len(tokens))
    _check_ids(keys, len(tokens))
    _check_merges(keys)
    model = keys.values.get(f"{PREFIX}model")
    if model == "llama":
        _check_bytes(tokens)
    if model == "t5":
        check_charsmap(keys)


def _check_tokens(tokens: Any) -> list[str]:
    """Check the tokens and return them as llama.cpp reads them."""
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
        raise DamagedError("its vocabulary is not a list of texts")
    known: set[str] = set(tokens)
    if any("\0" in token for token in known):  # llama.cpp reads up to the zero byte
        tokens = [token.partition("\0")[0] for token in tokens]
    if "" in tokens:  # llama.cpp gives empty tokens these names
        tokens = [token or f"[EMPTY_{number}]" for number, token in enumerate(tokens)]
    if len(longest := max(tokens, key=len)) > MAX_TOKEN_CHARACTERS:
        raise DamagedError(f"the vocabulary holds a token of {len(longest):,} characters")
    if len(set(tokens)) != len(tokens):
        twice = Counter(tokens).most_common(1)[0][0]
        raise DamagedError(f"the vocabulary holds {shorten(twice)} twice")
    return list(tokens)


def _check_entries(keys: Keys, count: int) -> None:
    for name, kinds in (("token_type", (ValueType.I32,)), ("scores", (ValueType.F32, ValueType.I32))):
        entries = keys.values.get(PREFIX + name)
        if entries is not None and (not isinstance(entries, list) or len(entries) != count):
            raise DamagedError(f"{PREFIX}{name} does not have one entry for each of {count:,} tokens")
        keys.typed(PREFIX + name, ValueType.ARRAY, kinds)
    types = set(keys.values.get(f"{PREFIX}token_type", ()))
    if not all(0 <= kind <= max(TokenType) for kind in types):
        raise DamagedError(f"{PREFIX}token_type holds {max(types, key=abs):,}, which is not a token type")
    if not math.isfinite(sum(keys.values.get(f"{PREFIX}scores", ()))):
        raise DamagedError(f"{PREFIX}scores holds a number that is not finite")


def _check_ids(keys: Keys, count: int) -> None:
    decoder_start = f"{keys.values['general.architecture']}.decoder_start_token_id"
    for key, value in keys.values.items():
        ours = key.startswith(PREFIX)
        if (ours and key.endswith("_token_id")) or key == decoder_start:
            if not isinstance(value, int) or not 0 <= value < count:
                raise DamagedError(f"{key} is {shorten(value)}, outside the vocabulary of {count:,}")
            keys.typed(key, ValueType.U32)
        elif ours and key.endswith(("_token_ids", "suppress_tokens")) and not _all_within(value, count):
            raise DamagedError(f"{key} names tokens outside the vocabulary of {count:,}")
    default = DEFAULT_UNKNOWN.get(keys.values.get(f"{PREFIX}model", ""), 0)
    if f"{PREFIX}unknown_token_id" not in keys.values and default >= count:
        raise DamagedError(f"the vocabulary of {count:,} has no token for unknown text")


def _all_within(ids: Any, count: int) -> bool:
    return isinstance(ids, list) and all(isinstance(number, int) and 0 <= number < count for number in ids)


def _check_merges(keys: Keys) -> None:
    merges = keys.typed(f"{PREFIX}merges", ValueType.ARRAY, (ValueType.STRING,)) or ()
    wrong = next((number for number, merge in enumerate(merges) if " " not in merge[1:-1]), None)
    if wrong is not None:
        raise DamagedError(f"merge {wrong + 1:,} of {len(merges):,} is {shorten(merges[wrong])}, expected two parts")


def _check_bytes(tokens: list[str]) -> None:
    known = set(tokens)
    for byte in range(256):  # SentencePiece spells unknown characters byte by byte
        if f"<0x{byte:02X}>" not in known and not (byte < 128 and chr(byte) in known):
            raise DamagedError(f"the vocabulary has no token for the byte 0x{byte:02X}")


def check_charsmap(keys: Keys) -> None:
    """Raise DamagedError if the automaton that rewrites characters leads out of its bounds: llama.cpp would crash.

    The format: a 32-bit length, a compact double array of that many bytes (units as in llama.cpp's `xcda_array_view`),
    then the replacements, each ended by a NUL. The whole automaton is walked.
    """
    values = keys.typed(CHARSMAP, ValueType.ARRAY, (ValueType.U8, ValueType.I8))
    if values is None:
        return
    raw = bytes(value & 0xFF for value in values)
    length = struct.unpack_from("<I", raw)[0] if len(raw) >= 4 else 0
    if not 4 <= length < len(raw) - 4:
        raise DamagedError(f"{CHARSMAP} of {len(raw):,} bytes claims {length:,} of them for its rules")
    units = struct.unpack_from(f"<{length // 4}I", raw, 4)
    replacements_end = raw.rfind(b"\0", 4 + length) - 4 - length  # a replacement that begins after this has no NUL
    by_state: defaultdict[int, list[int]] = defaultdict(list)
    for index, unit in enumerate(units):
        if 0 < unit & 0x800000FF < 256:
            by_state[index ^ unit & 0xFF].append(index)
    states = [_base(units[0])]
    seen = set(states)
    while states:
        state = states.pop()
        if state | 0xFF >= len(units) and _leads_out(state, len(units)):
            raise DamagedError(f"{CHARSMAP} leads out of its own rules")
        for index in by_state[state]:
            follower = index ^ _base(units[index])
            is_leaf = units[index] >> 8 & 1
            if is_leaf and not (follower < len(units) and units[follower] & 0x7FFFFFFF <= replacements_end):
                raise DamagedError(f"{CHARSMAP} leads out of its replacements")
            if follower not in seen:
                seen.add(follower)
                states.append(follower)


def _base(unit: int) -> int:
    """The state that a unit leads to, XORed with the unit's index."""
    return unit >> 10 << ((unit & 1 << 9) >> 6)


def _leads_out(state: int, units: int) -> bool:
    """Whether some byte of a text would be looked up past the last unit; a byte changes only the low 8 bits."""
    return any(state ^ character >= units for character in range(1, 256))
