"""Attention for packed rows: each row attends to itself and to a shared prefix alone. Names torch, transformers.

The prefix that all rows share, such as a system prompt, comes first in the pack, once. Each row attends to it as if it
were its own. Rows of nearly the same length are padded to a group and computed together.

It is a custom operator, which the compiler treats as one node whatever the number of rows: the layer around it is
compiled once. It is for decoders on the CPU; a GPU has kernels of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

from finetune.kernels.matmul_attention import QUERIES, attention, attention_gradient

NAME = "gladstone_rows"
MAX_PADDING, MAX_SCORES = 1.3, 400_000  # scores of a group per score of its rows, and in all


@cache
def register() -> str:
    """Register the attention with transformers; return its name for `set_attn_implementation`."""
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
            raise NotImplementedError(f"attention over packed rows: {unknown or 'dropout or an encoder'}")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return attend(query, key, value, cu_seq_lens_q, float(scale), sliding_window or 0), None

    AttentionInterface.register(NAME, rows_attention)
    return NAME


def _operator() -> Any:
    """Return `attend(query, key, value, borders, scale, window) → output`.

    query is (1, heads, T, W), key and value have as many heads or fewer, the output is (1, T, heads, W), all of one
    dtype. borders (rows + 1) int32 are where each row begins among the T tokens, and T; before the first one lies the
    shared prefix.
    """
    import torch

    @torch.library.custom_op("gladstone::rows_attention", mutates_args=())  # type: ignore[untyped-decorator]
    def attend(  # noqa: PLR0913, PLR0917 - an operator takes tensors, not objects
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, borders: torch.Tensor, scale: float, window: int
    ) -> torch.Tensor:
        output = _by_token(query)
        heads = key.shape[1]
        for group in groups(tuple(borders.tolist()), query.shape[1]):
            queries, keys, values = (group.gather(tensor, heads) for tensor in (query, key, value))
            group.scatter(attention(queries, keys[:, 0], values[:, 0], scale, window), output[0])
        return output

    @attend.register_fake  # type: ignore[untyped-decorator]
    def _(query: torch.Tensor, *_others: Any) -> torch.Tensor:
        return _by_token(query)

    @torch.library.custom_op("gladstone::rows_attention_backward", mutates_args=())  # type: ignore[untyped-decorator]
    def attend_backward(  # noqa: PLR0913, PLR0917 - as above
        gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, borders: torch.Tensor,
        scale: float, window: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
        totals = _by_token(query), _by_token(key), _by_token(value)
        for total in totals:
            total[:, : borders[0]] = 0
        heads = key.shape[1]
        for group in groups(tuple(borders.tolist()), query.shape[1]):
            queries, keys, values = (group.gather(tensor, heads) for tensor in (query, key, value))
            output_gradient = group.gather(gradient.transpose(1, 2), heads, silence=True)
            gradients = attention_gradient(output_gradient, queries, keys[:, 0], values[:, 0], scale, window)
            for part, total in zip(gradients, totals, strict=True):
                group.scatter_add(part, total[0])
        return totals

    @attend_backward.register_fake  # type: ignore[untyped-decorator]
    def _(
        _gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_others: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return _by_token(query), _by_token(key), _by_token(value)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
        *tensors, ctx.scale, ctx.window = inputs
        ctx.save_for_backward(*tensors)

    def backward(ctx: Any, gradient: Any) -> tuple[Any, ...]:
        gradients = attend_backward(gradient, *ctx.saved_tensors, ctx.scale, ctx.window)
        return (*(by_token.transpose(1, 2) for by_token in gradients), None, None, None)

    attend.register_autograd(backward, setup_context=save)
    return attend


def _by_token(heads_first: Any) -> Any:
    """(1, heads, T, W) → an empty (1, T, heads, W), the layout that projections read and write."""
    one, heads, tokens, width = heads_first.shape
    return heads_first.new_empty((one, tokens, heads, width))


@dataclass(frozen=True)
class Group:
    """Rows that are computed together, each behind its copy of the shared prefix and padded to `length`.

    The rows' own tokens are `begin` to `end` of the pack. The other tensors are int64 indices: `tokens` (rows × length)
    has the pack's token at each position of the group, `own` the positions of the rows' own tokens. No output may leave
    the `silent` positions: padding, and the prefix of all rows but the first, whose copy stands for all.
    """

    rows: int
    length: int
    shared: int
    begin: int
    end: int
    tokens: Any
    own: Any
    silent: Any

    def gather(self, tensor: Any, heads: int, *, silence: bool = False) -> Any:
        """(1, all heads, T, W) → (rows × key heads, query heads per key head, length, W).

        With `silence` the silent positions are zero, for a gradient of the output.
        """
        gathered = tensor[0].transpose(0, 1).index_select(0, self.tokens)
        if silence:
            gathered.index_fill_(0, self.silent, 0)
        by_row = gathered.view(self.rows, self.length, heads, -1, gathered.shape[-1])
        return by_row.permute(0, 2, 3, 1, 4).flatten(0, 1)

    def scatter(self, result: Any, by_token: Any) -> None:
        """Scatter a tensor shaped like `gather`'s result back to its rows in (T, heads, W)."""
        positions = self._scatter_own(result, by_token)
        if self.begin == self.shared:
            by_token[: self.shared] = positions[: self.shared]

    def scatter_add(self, result: Any, by_token: Any) -> None:
        """As `scatter`, but the values of the shared prefix are summed over the rows and added."""
        positions = self._scatter_own(result, by_token)
        if self.shared:
            by_token[: self.shared] += positions.unflatten(0, (self.rows, -1))[:, : self.shared].sum(0)

    def _scatter_own(self, result: Any, by_token: Any) -> Any:
        """Scatter the rows' own tokens; return the result by position, (rows × length, heads, W)."""
        import torch

        by_row = result.to(by_token.dtype).view(self.rows, -1, *result.shape[-2:])  # (rows, heads, length, W)
        positions = by_row.transpose(1, 2).flatten(0, 1)
        torch.index_select(positions, 0, self.own, out=by_token[self.begin : self.end])
        return positions


@lru_cache(maxsize=8)
def groups(borders: tuple[int, ...], heads: int) -> tuple[Group, ...]:
    """Return the rows with these borders as groups, in which padding costs less than separate computation."""
    rows = list(pairwise(borders))
    return tuple(_group(together, borders[0]) for together in _consecutive(rows, borders[0], heads))


def _consecutive(rows: list[tuple[int, int]], shared: int, heads: int) -> Iterator[list[tuple[int, int]]]:
    together: list[tuple[int, int]] = []
    for row in rows:
        lengths = [shared + end - begin for begin, end in (*together, row)]
        longest = max(lengths)
        padded, exact = len(lengths) * longest**2, sum(length**2 for length in lengths)
        if together and (padded > MAX_PADDING * exact or padded * heads > MAX_SCORES or longest > QUERIES):
            yield together
            together = []
        together.append(row)
    yield together


def _group(rows: list[tuple[int, int]], shared: int) -> Group:
    import torch

    length = shared + max(end - begin for begin, end in rows)
    tokens: list[int] = []
    own: list[int] = []
    for begin, end in rows:
        own += range(len(tokens) + shared, len(tokens) + shared + end - begin)
        row = [*range(shared), *range(begin, end)]
        tokens += row + row[-1:] * (length - len(row))
    first_prefix = set(range(shared)) if rows[0][0] == shared else set()
    silent = sorted({*range(len(tokens))} - {*own} - first_prefix)
    indices = (torch.tensor(positions, dtype=torch.long) for positions in (tokens, own, silent))
    return Group(len(rows), length, shared, rows[0][0], rows[-1][1], *indices)
