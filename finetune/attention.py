"""Attention for rows laid end to end without padding: each row sees itself alone. Names torch, transformers.

A custom operator, so that the compiler takes it as one node whatever the number of rows: the layer around it is
compiled once. Of a decoder on the CPU only; a GPU has kernels of its own.
"""

from dataclasses import dataclass
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
    """`(query, key, value, borders, scale, window) → (attended, sums)`, all but borders (1, heads, tokens, width).

    Rows of similar length are attended beside one another. What pads them lies behind them, where a causal mask never
    looks, so that no other mask is needed.
    """
    import torch

    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    @torch.library.custom_op("gladstone::rows_attention", mutates_args=())  # type: ignore[untyped-decorator]
    def attend(  # noqa: PLR0913, PLR0917 - an operator takes tensors, not objects
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, borders: torch.Tensor, scale: float, window: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        attended = torch.empty_like(query, memory_format=torch.contiguous_format)
        sums = query.new_empty((*query.shape[:3], 1), dtype=torch.float32)
        shared = query.shape[1] // key.shape[1]
        for rows in _groups(borders.tolist()):
            queries, keys, values = rows.apart(query), rows.apart(key, shared), rows.apart(value, shared)
            mask = rows.mask(window, query)
            found, logs = flash(queries, keys, values, 0.0, mask is None, attn_mask=mask, scale=scale)
            rows.put(found, attended)
            rows.put(logs[..., None], sums)
        return attended, sums

    @attend.register_fake  # type: ignore[untyped-decorator]
    def _(query: torch.Tensor, *_others: Any) -> tuple[torch.Tensor, torch.Tensor]:
        attended = torch.empty_like(query, memory_format=torch.contiguous_format)
        return attended, query.new_empty((*query.shape[:3], 1), dtype=torch.float32)

    @torch.library.custom_op("gladstone::rows_attention_backward", mutates_args=())  # type: ignore[untyped-decorator]
    def attend_backward(  # noqa: PLR0913, PLR0917 - as above
        gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attended: torch.Tensor,
        sums: torch.Tensor, borders: torch.Tensor, scale: float, window: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
        of_query, of_key, of_value = (
            torch.empty_like(each, memory_format=torch.contiguous_format) for each in (query, key, value)
        )
        heads = key.shape[1]
        shared = query.shape[1] // heads
        for rows in _groups(borders.tolist()):
            mask = rows.mask(window, query)
            found = flash_backward(
                rows.apart(gradient), rows.apart(query), rows.apart(key, shared), rows.apart(value, shared),
                rows.apart(attended), rows.apart(sums)[..., 0], 0.0, mask is None, attn_mask=mask, scale=scale,
            )  # fmt: skip
            rows.put(found[0], of_query)
            rows.put(found[1].unflatten(1, (heads, shared)).sum(2), of_key)
            rows.put(found[2].unflatten(1, (heads, shared)).sum(2), of_value)
        return of_query, of_key, of_value

    @attend_backward.register_fake  # type: ignore[untyped-decorator]
    def _(
        _gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_others: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        like = partial(torch.empty_like, memory_format=torch.contiguous_format)
        return like(query), like(key), like(value)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        query, key, value, borders, ctx.scale, ctx.window = inputs
        ctx.save_for_backward(query, key, value, *output, borders)

    def backward(ctx: Any, gradient: Any, _of_sums: Any) -> tuple[Any, ...]:
        grads = attend_backward(gradient, *ctx.saved_tensors, ctx.scale, ctx.window)
        return (*grads, None, None, None)

    attend.register_autograd(backward, setup_context=keep)
    return attend


@dataclass(frozen=True)
class _Rows:
    """Neighbouring rows: where each begins and ends among the tokens."""

    borders: tuple[tuple[int, int], ...]

    @property
    def longest(self) -> int:
        return max(end - begin for begin, end in self.borders)

    def apart(self, tokens: Any, shared: int = 1) -> Any:
        """(1, heads, tokens, width) → (rows, heads × shared, longest, width), zeros behind each row."""
        _, heads, _, width = tokens.shape
        if len(self.borders) == 1:
            begin, end = self.borders[0]
            out = tokens[:, :, begin:end]
        else:
            out = tokens.new_zeros(len(self.borders), heads, self.longest, width)
            for row, (begin, end) in enumerate(self.borders):
                out[row, :, : end - begin] = tokens[0, :, begin:end]
        return out.repeat_interleave(shared, 1) if shared > 1 else out.contiguous()

    def put(self, apart: Any, tokens: Any) -> None:
        """Copy what `apart` made back to its place among the tokens."""
        for row, (begin, end) in enumerate(self.borders):
            tokens[0, :, begin:end] = apart[row, :, : end - begin]

    def mask(self, window: int, like: Any) -> Any:
        """What a sliding window leaves, as an addend; None where the causal mask alone is right."""
        import torch

        if not 0 < window < self.longest:
            return None
        place = torch.arange(self.longest)
        seen = (place[:, None] >= place) & (place[:, None] - place < window)
        return torch.zeros(seen.shape, dtype=like.dtype).masked_fill_(~seen, float("-inf"))[None, None]


def _groups(borders: list[int]) -> list[_Rows]:
    """Neighbouring rows, each at most as long as its group's first and at least half as long."""
    groups: list[list[tuple[int, int]]] = []
    for begin, end in pairwise(borders):
        first = groups[-1][0] if groups else (0, 0)
        if groups and (first[1] - first[0]) / 2 <= end - begin <= first[1] - first[0]:
            groups[-1].append((begin, end))
        else:
            groups.append([(begin, end)])
    return [_Rows(tuple(group)) for group in groups]
