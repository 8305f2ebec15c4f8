"""File size and memory of each type before anything is made, and the best type that fits."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.quantise.quantise import Fallback, predict
from export.quantise.types import Override, Quantisation, needs_imatrix
from gladstone.errors import ConfigError
from gladstone.machine.host import readable_bytes
from gladstone.process.child import run_child

# from the best to the smallest, in the order of llama.cpp's own measurements (tools/quantize/README.md)
LADDER = ("f16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "iq4_xs", "q3_k_l", "iq3_m", "q3_k_m", "iq3_s",
          "iq3_xs", "q3_k_s", "iq3_xxs", "q2_k", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs")  # fmt: skip


@dataclass(frozen=True)
class Size:
    """Predicted size of a file, and the memory to run it with a context."""

    quant: str
    file_bytes: int
    memory_bytes: int
    fallbacks: tuple[Fallback, ...]


def context_bytes(outline: Path, tokens: int) -> int:
    """Memory for KV cache and buffers of a context of `tokens`, as llama.cpp reports it.

    Raises ToolError if this machine has too little memory.
    """
    said: int = run_child(
        "export.quantise.memory_child", {"model": str(outline), "tokens": tokens}, "measuring the context"
    )
    return said


def sizes(outline: Path, quants: Sequence[str], overrides: tuple[Override, ...], context: int) -> list[Size]:
    """The size of each type; an importance matrix does not change it."""
    beside = context_bytes(outline, context)
    return [_size(outline, Quantisation(quant, overrides), beside) for quant in quants]


def best_fit(outline: Path, limit_bytes: int, overrides: tuple[Override, ...], context: int, *, imatrix: bool) -> Size:
    """The best type whose file and context fit in `limit_bytes`. Raises ConfigError if none does."""
    beside = context_bytes(outline, context)
    smallest = None
    for quant in LADDER:
        if needs_imatrix(quant) and not imatrix:
            continue
        size = _size(outline, Quantisation(quant, overrides), beside)
        if size.memory_bytes <= limit_bytes:
            return size
        smallest = min(size, smallest or size, key=lambda each: each.memory_bytes)
    assert smallest is not None  # noqa: S101 - the ladder is not empty
    more = "" if imatrix else " --imatrix train|FILE allows smaller types."
    raise ConfigError(
        f"--fit {readable_bytes(limit_bytes)}: not even {smallest.quant} fits: {readable_bytes(smallest.file_bytes)} "
        f"and {readable_bytes(beside)} for a context of {context:,} tokens.{more} A smaller --context needs less."
    )


def _size(outline: Path, how: Quantisation, beside: int) -> Size:
    made = predict(outline, how)
    return Size(how.quant, made.size_bytes, made.size_bytes + beside, made.fallbacks)


def parse_bytes(text: str, option: str) -> int:
    """An option's '4GB', '3.5g' or '500 MB' (powers of ten), '4GiB' (powers of two). Raises ConfigError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMgGtT]?)([iI]?)[bB]?", text.strip())
    if not found or not float(found[1]):
        raise ConfigError(f"{option} {text!r}: expected a size such as 4GB, 3.5GB or 500MB.")
    power = " kmgt".index(found[2].lower() or " ")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)
