"""Compiled decoder layers for training on the CPU. Names torch."""

import shutil
import warnings
from functools import cache
from typing import Any, Literal

from gladstone.errors import UnsupportedError

TIME_SHARE, COMPILING_S = 0.94, 25.0  # of a step's time with compiled layers, and what compiling takes once, measured
WORTH_FLOP = 6e13  # of a whole run: ten minutes at 100 GFLOP/s, the rate of two laptop cores
COMPILERS = ("g++", "c++", "clang++", "cl")


def should_compile(wish: Literal["auto", "on", "off"], parameters: int, tokens: float) -> bool:
    """True if the layers are compiled in a run that trains on `tokens` tokens.

    The answer is the same for all calls of a run on one machine, because compiled and uncompiled layers differ in their
    last bits. Raises UnsupportedError for 'on' without a working C++ compiler.
    """
    flop = 4 * parameters * tokens  # per parameter and token 2 in the forward pass, 2 in the backward pass
    if wish == "off" or (wish == "auto" and flop < WORTH_FLOP):
        return False
    reason = _broken()
    if reason and wish == "on":
        raise UnsupportedError(f"training.compile=on: {reason}")
    return not reason


def compile_layers(body: Any) -> int:
    """Compile each decoder layer of a model's body for any number of tokens; return the number of layers.

    The input of the first layer gets a gradient, which nothing uses: so all layers are the same function, which is
    compiled once.
    """
    import torch

    def needs_gradient(_module: Any, _inputs: Any, output: Any) -> Any:
        return output.requires_grad_() if torch.is_grad_enabled() else output

    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
    lists = [module for module in body.children() if isinstance(module, torch.nn.ModuleList)]
    layers = max(lists, key=len, default=())
    body.get_input_embeddings().register_forward_hook(needs_gradient)
    for layer in layers:
        layer.compile(dynamic=True)
    return len(layers)


@cache
def _broken() -> str:
    """Return why compiling a small function fails here, '' if it works."""
    import torch

    if not any(shutil.which(name) for name in COMPILERS):
        return f"no C++ compiler here (none of {', '.join(COMPILERS)})."
    x = torch.linspace(-4, 4, 64)
    try:
        with warnings.catch_warnings(action="ignore"):  # from the compiler's own code
            compiled = torch.compile(lambda t: torch.nn.functional.silu(t) * 2)(x)
    except Exception as error:  # noqa: BLE001 - whatever the compiler tool chain raises, the answer is the same
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
    finally:
        torch._dynamo.reset()
    expected = torch.nn.functional.silu(x) * 2
    return "" if torch.allclose(compiled, expected) else "a compiled function returns wrong values."
