"""Compiled decoder layers for training on the CPU: 6 % less time a step, for half a minute once. Names torch."""

import shutil
import warnings
from functools import cache
from typing import Any, Literal

from gladstone.errors import UnsupportedError

# of a whole run; at 100 GFLOP/s, which two laptop cores do, that is a run of ten minutes
WORTH_FLOP = 6e13
COMPILERS = ("g++", "c++", "clang++", "cl")


def should_compile(wish: Literal["auto", "on", "off"], parameters: int, tokens: float) -> bool:
    """Whether to compile for a run that trains on `tokens` tokens.

    A run takes 4 floating-point operations for each parameter and token: 2 in the forward pass, 2 in the backward pass.
    It depends on nothing that varies between two calls of a run on one machine, since compiled and uncompiled layers
    differ in their last bits. Raises UnsupportedError if it is asked for and there is no C++ compiler.
    """
    flop = 4 * parameters * tokens
    if wish == "off" or (wish == "auto" and flop < WORTH_FLOP):
        return False
    reason = _broken()
    if reason and wish == "on":
        raise UnsupportedError(f"training.compile=on: {reason}")
    return not reason


def compile_layers(body: Any) -> int:
    """Compile each decoder layer of a model's body for any number of tokens; returns how many there are.

    What the first layer reads is given a gradient, though nobody needs it: so all layers are one and the same function,
    which is compiled once.
    """
    import torch

    def needs_gradient(_module: Any, _inputs: Any, output: Any) -> Any:
        return output.requires_grad_() if torch.is_grad_enabled() else output

    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
    lists = [each for each in body.children() if isinstance(each, torch.nn.ModuleList)]
    layers = max(lists, key=len, default=())
    body.get_input_embeddings().register_forward_hook(needs_gradient)
    for layer in layers:
        layer.compile(dynamic=True)
    return len(layers)


@cache
def _broken() -> str:
    """Why nothing can be compiled here, '' if a small function could."""
    import torch

    if not any(shutil.which(name) for name in COMPILERS):
        return f"no C++ compiler here (none of {', '.join(COMPILERS)})."
    x = torch.linspace(-4, 4, 64)
    try:
        with warnings.catch_warnings(action="ignore"):  # the compiler's own parts
            found = torch.compile(lambda t: torch.nn.functional.silu(t) * 2)(x)
    except Exception as error:  # noqa: BLE001 - whatever the compiler tool chain raises, the answer is the same
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
    finally:
        torch._dynamo.reset()
    return "" if torch.allclose(found, torch.nn.functional.silu(x) * 2) else "a compiled function computes wrongly."
