"""Attention for rows laid end to end without padding: each row sees itself alone. Names torch, transformers.

What all rows begin with (a system prompt) lies before them once. Each row attends to it as if it were its own.

A custom operator, so that the compiler takes it as one node whatever the number of rows: the layer around it is
compiled once. Of a decoder on the CPU only; a GPU has kernels of its own.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
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
        return attended, None

    AttentionInterface.register(NAME, rows_attention)
    return NAME


def _operator() -> Any:
    """`(query, key, value, borders, scale, window) → (attended, sums)`.

    query (1, heads, tokens, width), key and value with as many heads or fewer, attended (1, tokens, heads, width), sums
    (tokens, heads). `borders` (rows + 1) are where each row begins among the tokens, and the end; before the first lies
    what they share.
    """
    import torch

    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    @torch.library.custom_op("gladstone::rows_attention", mutates_args=())  # type: ignore[untyped-decorator]
    def attend(  # noqa: PLR0913, PLR0917 - an operator takes tensors, not objects
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, borders: torch.Tensor, scale: float, window: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        attended = _by_token(query)
        sums = query.new_empty((query.shape[2], query.shape[1]), dtype=torch.float32)
        rows, heads = layout(tuple(borders.tolist())), key.shape[1]
        read = rows.apart(query), rows.apart(key), rows.apart(value)
        for row in rows.rows:
            mask = _window_mask(window, row.length, query)
            inputs = (row.of(each, heads) for each in read)
            found, logs = flash(*_alike(inputs), 0.0, mask is None, attn_mask=mask, scale=scale)
            row.put(found, attended[0])
            row.put(logs[..., None], sums[..., None])
        return attended, sums

    @attend.register_fake  # type: ignore[untyped-decorator]
    def _(query: torch.Tensor, *_others: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return _by_token(query), query.new_empty((query.shape[2], query.shape[1]), dtype=torch.float32)

    @torch.library.custom_op("gladstone::rows_attention_backward", mutates_args=())  # type: ignore[untyped-decorator]
    def attend_backward(  # noqa: PLR0913, PLR0917 - as above
        gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attended: torch.Tensor,
        sums: torch.Tensor, borders: torch.Tensor, scale: float, window: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
        rows, heads = layout(tuple(borders.tolist())), key.shape[1]
        found = _by_token(query), _by_token(key), _by_token(value)
        read = (
            rows.apart(gradient.transpose(1, 2), outgoing=True), rows.apart(query), rows.apart(key), rows.apart(value),
            rows.apart(attended.transpose(1, 2)), rows.apart(sums.t()[None, ..., None]),
        )  # fmt: skip
        for each in found:
            each[:, : rows.shared] = 0
        for row in rows.rows:
            mask = _window_mask(window, row.length, query)
            *inputs, logs = _alike(row.of(each, heads) for each in read)
            of_query, *of_others = flash_backward(*inputs, logs[..., 0], 0.0, mask is None, attn_mask=mask, scale=scale)
            row.add(of_query, found[0][0])
            for each, whole in zip(of_others, found[1:], strict=True):
                row.add(each.sum(0, keepdim=True), whole[0])  # what reached it through each head that reads it
        return found

    @attend_backward.register_fake  # type: ignore[untyped-decorator]
    def _(
        _gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_others: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return _by_token(query), _by_token(key), _by_token(value)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        query, key, value, borders, ctx.scale, ctx.window = inputs
        ctx.save_for_backward(query, key, value, *output, borders)

    def backward(ctx: Any, gradient: Any, _of_sums: Any) -> tuple[Any, ...]:
        grads = attend_backward(gradient, *ctx.saved_tensors, ctx.scale, ctx.window)
        return (*(each.transpose(1, 2) for each in grads), None, None, None)

    attend.register_autograd(backward, setup_context=keep)
    return attend


def _by_token(heads_first: Any) -> Any:
    """(1, heads, tokens, width) → an empty (1, tokens, heads, width): as projections write and read it."""
    one, heads, tokens, width = heads_first.shape
    return heads_first.new_empty((one, tokens, heads, width))


def _alike(groups: Iterable[Any]) -> list[Any]:
    """Heads of keys and values as often as heads of queries read them, without a copy."""
    found = list(groups)
    most = max(len(each) for each in found)
    return [each.expand(most, -1, -1, -1) for each in found]


@dataclass(frozen=True)
class Row:
    """A row: where it begins with what it shares written out, its length so, and where its own tokens lie."""

    place: int
    length: int
    shared: int
    begin: int
    end: int

    def of(self, apart: Any, heads: int) -> Any:
        """Its part of what `Layout.apart` made: (heads of queries for one of keys, `heads` of keys, length, width)."""
        return apart[0, :, self.place : self.place + self.length].unflatten(0, (heads, -1)).transpose(0, 1)

    def put(self, found: Any, by_token: Any) -> None:
        """Copy what has the shape of `of` to its place in (tokens, heads, width)."""
        own = _flat(found)
        by_token[self.begin : self.end] = own[self.shared :]
        if not self.place:  # the first row speaks for what all of them compute alike
            by_token[: self.shared] = own[: self.shared]

    def add(self, found: Any, by_token: Any) -> None:
        """As `put`; what reached the shared part through each row is added up."""
        own = _flat(found)
        by_token[self.begin : self.end] = own[self.shared :]
        if self.shared:
            by_token[: self.shared] += own[: self.shared]


def _flat(found: Any) -> Any:
    """(per head of keys, heads of keys, length, width) → (length, heads, width)."""
    return found.permute(2, 1, 0, 3).flatten(1, 2)


@dataclass(frozen=True)
class Layout:
    """Rows laid end to end, behind what they share."""

    shared: int
    rows: tuple[Row, ...]

    def apart(self, tokens: Any, *, outgoing: bool = False) -> Any:
        """(1, heads, tokens, width) → (1, heads, tokens with what is shared in each row, width).

        Of what is `outgoing`, as a gradient, the shared part leaves through the first row alone.
        """
        by_token = tokens[0].transpose(0, 1)
        if self.shared:
            by_token = by_token.index_select(0, self._written_out)
            if outgoing:
                by_token.index_fill_(0, self._repeats, 0)
        return by_token.transpose(0, 1)[None]

    @cached_property
    def _written_out(self) -> Any:
        import torch

        ranges = [(range(self.shared), range(row.begin, row.end)) for row in self.rows]
        return torch.tensor([token for pair in ranges for each in pair for token in each])

    @cached_property
    def _repeats(self) -> Any:
        import torch

        return torch.tensor([row.place + at for row in self.rows[1:] for at in range(self.shared)], dtype=torch.long)


@lru_cache(maxsize=8)
def layout(borders: tuple[int, ...]) -> Layout:
    """The layout of rows with these borders; what they share lies before the first."""
    shared, place = borders[0], 0
    rows = []
    for begin, end in pairwise(borders):
        rows.append(Row(place, shared + end - begin, shared, begin, end))
        place += rows[-1].length
    return Layout(shared, tuple(rows))


def _window_mask(window: int, length: int, like: Any) -> Any:
    """What a sliding window leaves, as an addend; None where the causal mask alone is right."""
    import torch

    if not 0 < window < length:
        return None
    place = torch.arange(length)
    seen = (place[:, None] >= place) & (place[:, None] - place < window)
    return torch.zeros(seen.shape, dtype=like.dtype).masked_fill_(~seen, float("-inf"))[None, None]
