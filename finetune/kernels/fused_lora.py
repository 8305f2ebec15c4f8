"""A LoRA layer with few passes over memory, and the head, for training on the CPU. Names torch, peft.

PEFT computes the base's product, the adapter's product, its scaling and their sum one after another, each with a pass
over a tensor as large as the output. Here the adapter's product accumulates into the base's, forward and backward.
Measured on SmolLM2's layers, a step takes 8 % less time.
"""

from collections.abc import Callable
from typing import Any


def fuse_lora_layers(model: Any) -> int:
    """Replace the forward of plain LoRA layers (no dropout, no DoRA, no bias, one dtype); return their number."""
    from peft.tuners.lora import Linear

    layers = [layer for layer in model.modules() if type(layer) is Linear and _is_plain(layer)]
    product = _product()
    for layer in layers:
        layer.forward = _forward(layer, product)
    return len(layers)


def head_product(head: Any) -> Callable[[Any], Any]:
    """Return the function (N, width) → (N, V) of a frozen head; in float32 it uses oneDNN.

    Measured: for a product as wide as a vocabulary oneDNN takes 20 % less time than MKL.
    """
    import torch

    plain = type(head) is torch.nn.Linear and head.bias is None and head.weight.dtype == torch.float32
    by_onednn: Any = (
        getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
    )
    if not plain or by_onednn is None:
        return head  # type: ignore[no-any-return]

    class HeadProduct(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, hidden: Any, weight: Any) -> Any:
            ctx.save_for_backward(weight)
            return by_onednn(hidden, weight, None, "none", [], "")

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> tuple[Any, None]:
            (weight,) = ctx.saved_tensors
            return gradient @ weight, None

    return lambda hidden: HeadProduct.apply(hidden, head.weight)


def _is_plain(layer: Any) -> bool:
    import torch

    (name,) = layer.active_adapters
    base, first, second = layer.base_layer, layer.lora_A[name], layer.lora_B[name]
    return (
        type(base) is torch.nn.Linear
        and base.bias is None
        and first.bias is None
        and second.bias is None
        and isinstance(layer.lora_dropout[name], torch.nn.Identity)
        and name not in layer.lora_variant
        and base.weight.dtype == first.weight.dtype == second.weight.dtype
    )


def _forward(layer: Any, product: Any) -> Any:
    (name,) = layer.active_adapters
    usual = layer.forward

    def forward(x: Any, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or layer.disable_adapters or layer.merged:
            return usual(x, *args, **kwargs)
        weights = layer.base_layer.weight, layer.lora_A[name].weight, layer.lora_B[name].weight
        return product.apply(x, *weights, layer.scaling[name])

    return forward


def _product() -> Any:
    import torch

    class Product(torch.autograd.Function):  # type: ignore[misc]
        """x (…, in), weight (out, in), A (rank, in), B (out, rank) → x (weight + scaling B A)ᵀ (…, out).

        All have one dtype; the weight is frozen.
        """

        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, first: Any, second: Any, scaling: float) -> Any:  # noqa: PLR0913, PLR0917
            flat = x.reshape(-1, x.shape[-1])
            inner = flat @ first.t()
            ctx.save_for_backward(flat, weight, first, second, inner)
            ctx.scaling, ctx.shape = scaling, x.shape
            return (flat @ weight.t()).addmm_(inner, second.t(), alpha=scaling).view(*x.shape[:-1], -1)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> tuple[Any, ...]:
            flat, weight, first, second, inner = ctx.saved_tensors
            gradient = gradient.reshape(-1, gradient.shape[-1])
            d_inner = (gradient @ second).mul_(ctx.scaling)
            d_x = (gradient @ weight).addmm_(d_inner, first).view(ctx.shape) if ctx.needs_input_grad[0] else None
            d_second = (gradient.t() @ inner).mul_(ctx.scaling)
            return d_x, None, d_inner.t() @ flat, d_second, None

    return Product
