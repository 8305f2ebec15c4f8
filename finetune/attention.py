"""Attention for rows laid end to end without padding: each row sees itself alone. Names torch, transformers.

A custom operator, so that the compiler takes it as one node whatever the number of rows: the layer around it is
compiled once. Of a decoder on the CPU only; a GPU has kernels of its own.
"""

from functools import cache, partial
from itertools import pairwise
from typing import Any

NAME = "gladstone_rows"


@cache
def register() -> str:
    """Make the attention known to transformers; returns its name for `set_attn_implementation`."""
    from transformers import AttentionInterface

    attend = _operator()

    def rows_attention(  # noqa: PLR0913 - the signature is transformers'
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        _mask: Any,
        *,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        cu_seq_lens_q: Any = None,
        **others: Any,
    ) -> tuple[Any, None]:
        unknown = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
        if cu_seq_lens_q is None or unknown or dropout or not getattr(module, "is_causal", True):
            raise NotImplementedError(f"attention over rows laid end to end: {unknown or 'dropout or an encoder'}")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        attended, _ = attend(query, key, value, cu_seq_lens_q, float(scale), sliding_window or 0)
        return attended.transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, rows_attention)
    return NAME


def _operator() -> Any:
    """`(query, key, value, ends, scale, window) → (attended, log of the sums)`, all of (1, heads, tokens, width)."""
    import torch

    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    def mask_of(tokens: int, window: int, like: torch.Tensor) -> torch.Tensor | None:
        """None where the plain causal mask is right; else what a window leaves, as an addend."""
        if not 0 < window < tokens:
            return None
        place = torch.arange(tokens)
        seen = (place[:, None] >= place) & (place[:, None] - place < window)
        return torch.zeros(tokens, tokens, dtype=like.dtype).masked_fill_(~seen, float("-inf"))

    @torch.library.custom_op("gladstone::rows_attention", mutates_args=())  # type: ignore[untyped-decorator]
    def attend(  # noqa: PLR0913, PLR0917 - an operator takes tensors, not objects
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, scale: float, window: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        attended = torch.empty_like(query, memory_format=torch.contiguous_format)
        sums = query.new_empty(query.shape[:3], dtype=torch.float32)
        shared = query.shape[1] // key.shape[1]
        for begin, end in pairwise(ends.tolist()):
            row = (slice(None), slice(None), slice(begin, end))
            keys, values = (each[row].repeat_interleave(shared, 1) for each in (key, value))
            mask = mask_of(end - begin, window, query)
            attended[row], sums[row] = flash(query[row], keys, values, 0.0, mask is None, attn_mask=mask, scale=scale)
        return attended, sums

    @attend.register_fake  # type: ignore[untyped-decorator]
    def _(query: torch.Tensor, *_others: Any) -> tuple[torch.Tensor, torch.Tensor]:
        attended = torch.empty_like(query, memory_format=torch.contiguous_format)
        return attended, query.new_empty(query.shape[:3], dtype=torch.float32)

    @torch.library.custom_op("gladstone::rows_attention_backward", mutates_args=())  # type: ignore[untyped-decorator]
    def attend_backward(  # noqa: PLR0913, PLR0917 - as above
        gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attended: torch.Tensor,
        sums: torch.Tensor, ends: torch.Tensor, scale: float, window: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
        of_query, of_key, of_value = (
            torch.empty_like(each, memory_format=torch.contiguous_format) for each in (query, key, value)
        )
        heads = key.shape[1]
        shared = query.shape[1] // heads
        for begin, end in pairwise(ends.tolist()):
            row = (slice(None), slice(None), slice(begin, end))
            keys, values = (each[row].repeat_interleave(shared, 1) for each in (key, value))
            mask = mask_of(end - begin, window, query)
            of_query[row], wide_key, wide_value = flash_backward(
                gradient[row], query[row], keys, values, attended[row], sums[row], 0.0, mask is None,
                attn_mask=mask, scale=scale,
            )  # fmt: skip
            for whole, wide in ((of_key, wide_key), (of_value, wide_value)):
                whole[row] = wide.unflatten(1, (heads, shared)).sum(2)
        return of_query, of_key, of_value

    @attend_backward.register_fake  # type: ignore[untyped-decorator]
    def _(
        _gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_others: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        like = partial(torch.empty_like, memory_format=torch.contiguous_format)
        return like(query), like(key), like(value)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        query, key, value, ends, ctx.scale, ctx.window = inputs
        ctx.save_for_backward(query, key, value, *output, ends)

    def backward(ctx: Any, gradient: Any, _of_sums: Any) -> tuple[Any, ...]:
        grads = attend_backward(gradient, *ctx.saved_tensors, ctx.scale, ctx.window)
        return (*grads, None, None, None)

    attend.register_autograd(backward, setup_context=keep)
    return attend
