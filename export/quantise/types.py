"""The types of GGUF files by llama.cpp's names, and how the user selects them."""

import re
from dataclasses import dataclass
from pathlib import Path

from gladstone.errors import ConfigError
from gladstone.gguf.types import FILE_TYPES, TENSOR_TYPES

NOT_WRITTEN = ("nvfp4",)  # llama.cpp reads it, but its quantiser cannot write it
PLAIN = ("f32", "f16", "bf16")  # written by the conversion itself
QUANTS = {name.lower(): number for number, name in FILE_TYPES.items() if name.lower() not in NOT_WRITTEN}
ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
TENSOR_TYPE_IDS = {
    name.lower(): number
    for number, (name, _, _) in TENSOR_TYPES.items()
    if name not in ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64", "NVFP4")  # not stored in files
}  # fmt: skip


@dataclass(frozen=True)
class Override:
    """Tensors whose name matches `pattern` (re.search) get the type `kind`."""

    pattern: str
    kind: str


@dataclass(frozen=True)
class Quantisation:
    """A file type, and how a file of it is made."""

    quant: str
    overrides: tuple[Override, ...] = ()
    imatrix: Path | None = None

    @property
    def is_quantised(self) -> bool:
        """True for types below 16 bit; overrides and importance matrix apply only to these."""
        return self.quant not in PLAIN


def check_quants(
    names: tuple[str, ...], overrides: tuple[Override, ...] = (), *, imatrix: bool = False
) -> tuple[str, ...]:
    """The names in lower case, each once. Raises ConfigError for one that is unknown or needs an importance matrix."""
    wanted = tuple(dict.fromkeys(ALIASES.get(name.lower(), name.lower()) for name in names))
    for name in wanted:
        if name not in QUANTS:
            raise ConfigError(f"--quant {name}: unknown; known: {', '.join(QUANTS)}.")
        if needs_imatrix(name) and not imatrix:
            raise ConfigError(f"--quant {name}: needs an importance matrix: --imatrix train.")
    for each in overrides:
        if needs_imatrix(each.kind) and not imatrix:
            raise ConfigError(f"--tensor-type {each.pattern}={each.kind}: needs an importance matrix: --imatrix train.")
    if overrides and not set(wanted) - {*PLAIN}:
        raise ConfigError(f"--tensor-type needs a quantised type, not {' and '.join(wanted)} alone.")
    return wanted


def needs_imatrix(name: str) -> bool:
    """True for types with too few bits to work without an importance matrix."""
    return name.startswith("iq") or name == "q2_k_s"


def parse_override(text: str) -> Override:
    """Parse `PATTERN=TYPE`, such as `ffn_down=q6_k`. Raises ConfigError."""
    pattern, separator, kind = text.rpartition("=")
    if not separator or not pattern:
        raise ConfigError(f"--tensor-type {text}: expected PATTERN=TYPE, such as ffn_down=q6_k.")
    if kind.lower() not in TENSOR_TYPE_IDS:
        raise ConfigError(f"--tensor-type {text}: unknown type {kind!r}; known: {', '.join(TENSOR_TYPE_IDS)}.")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"--tensor-type {text}: {pattern!r} is not a regular expression: {error}.") from None
    return Override(pattern, kind.lower())
