"""Attention for rows laid end to end without padding: each row sees itself alone. Names torch, transformers.

What all rows begin with (a system prompt) lies before them once. Each row attends to it as if it were its own. Rows of
nearly the same length are computed beside one another.

A custom operator, so that the compiler takes it as one node whatever the number of rows: the layer around it is
compiled once. Of a decoder on the CPU only; a GPU has kernels of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

from finetune.kernels.matmul_attention import QUERIES, attention, attention_gradient

NAME = "gladstone_rows"
# of the scores of rows beside one another: more than the rows' own by this factor, and in all
PADDED, SCORES = 1.3, 400_000


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
        return attend(query, key, value, cu_seq_lens_q, float(scale), sliding_window or 0), None

    AttentionInterface.register(NAME, rows_attention)
    return NAME


def _operator() -> Any:
    """`(query, key, value, borders, scale, window) → attended`.

    query (1, heads, tokens, width), key and value with as many heads or fewer, attended (1, tokens, heads, width).
    `borders` (rows + 1) are where each row begins among the tokens, and the end; before the first lies what they share.
    """
    import torch

    @torch.library.custom_op("gladstone::rows_attention", mutates_args=())  # type: ignore[untyped-decorator]
    def attend(  # noqa: PLR0913, PLR0917 - an operator takes tensors, not objects
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, borders: torch.Tensor, scale: float, window: int
    ) -> torch.Tensor:
        attended = _by_token(query)
        heads = key.shape[1]
        for group in groups(tuple(borders.tolist()), query.shape[1]):
            queries, keys, values = (group.read(each, heads) for each in (query, key, value))
            group.put(attention(queries, keys[:, 0], values[:, 0], scale, window), attended[0])
        return attended

    @attend.register_fake  # type: ignore[untyped-decorator]
    def _(query: torch.Tensor, *_others: Any) -> torch.Tensor:
        return _by_token(query)

    @torch.library.custom_op("gladstone::rows_attention_backward", mutates_args=())  # type: ignore[untyped-decorator]
    def attend_backward(  # noqa: PLR0913, PLR0917 - as above
        gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, borders: torch.Tensor,
        scale: float, window: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
        found = _by_token(query), _by_token(key), _by_token(value)
        for each in found:
            each[:, : borders[0]] = 0
        heads = key.shape[1]
        for group in groups(tuple(borders.tolist()), query.shape[1]):
            queries, keys, values = (group.read(each, heads) for each in (query, key, value))
            outgoing = group.read(gradient.transpose(1, 2), heads, outgoing=True)
            grads = attention_gradient(outgoing, queries, keys[:, 0], values[:, 0], scale, window)
            for each, whole in zip(grads, found, strict=True):
                group.add(each, whole[0])
        return found

    @attend_backward.register_fake  # type: ignore[untyped-decorator]
    def _(
        _gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_others: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return _by_token(query), _by_token(key), _by_token(value)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
        *tensors, ctx.scale, ctx.window = inputs
        ctx.save_for_backward(*tensors)

    def backward(ctx: Any, gradient: Any) -> tuple[Any, ...]:
        grads = attend_backward(gradient, *ctx.saved_tensors, ctx.scale, ctx.window)
        return (*(each.transpose(1, 2) for each in grads), None, None, None)

    attend.register_autograd(backward, setup_context=keep)
    return attend


def _by_token(heads_first: Any) -> Any:
    """(1, heads, tokens, width) → an empty (1, tokens, heads, width): as projections write and read it."""
    one, heads, tokens, width = heads_first.shape
    return heads_first.new_empty((one, tokens, heads, width))


@dataclass(frozen=True)
class Group:
    """Rows beside one another, each with what all share before it and padded behind it to the longest.

    `begin` and `end` are where their own tokens lie among the tokens. Places in the group are counted through all of
    its rows: `taken` is the token at each, `own` are the places of their own tokens, and nothing is to come out of the
    places `silent`: padding, and what is shared in all rows but the first, which speaks for the others.
    """

    rows: int
    length: int
    shared: int
    begin: int
    end: int
    taken: Any
    own: Any
    silent: Any

    def read(self, tensor: Any, heads: int, *, outgoing: bool = False) -> Any:
        """(1, all heads, tokens, width) → (rows × heads of keys, heads of queries for each, length, width).

        Of what is `outgoing`, as a gradient, nothing comes out of the silent places.
        """
        taken = tensor[0].transpose(0, 1).index_select(0, self.taken)
        if outgoing:
            taken.index_fill_(0, self.silent, 0)
        beside = taken.view(self.rows, self.length, heads, -1, taken.shape[-1])
        return beside.permute(0, 2, 3, 1, 4).flatten(0, 1)

    def put(self, found: Any, by_token: Any) -> None:
        """Copy what has the shape of what `read` returns to its place in (tokens, heads, width)."""
        places = self._put_own(found, by_token)
        if self.begin == self.shared:
            by_token[: self.shared] = places[: self.shared]

    def add(self, found: Any, by_token: Any) -> None:
        """As `put`; what reached the shared tokens through each row is added up."""
        places = self._put_own(found, by_token)
        if self.shared:
            by_token[: self.shared] += places.unflatten(0, (self.rows, -1))[:, : self.shared].sum(0)

    def _put_own(self, found: Any, by_token: Any) -> Any:
        """Returns what was found by place: (rows × length, heads, width)."""
        import torch

        beside = found.to(by_token.dtype).view(self.rows, -1, *found.shape[-2:])  # (rows, heads, length, width)
        places = beside.transpose(1, 2).flatten(0, 1)
        torch.index_select(places, 0, self.own, out=by_token[self.begin : self.end])
        return places


@lru_cache(maxsize=8)
def groups(borders: tuple[int, ...], heads: int) -> tuple[Group, ...]:
    """The rows with these borders, in groups of which each is worth its padding."""
    return tuple(_group(each, borders[0]) for each in _consecutive(list(pairwise(borders)), borders[0], heads))


def _consecutive(rows: list[tuple[int, int]], shared: int, heads: int) -> Iterator[list[tuple[int, int]]]:
    chosen: list[tuple[int, int]] = []
    for row in rows:
        lengths = [shared + end - begin for begin, end in (*chosen, row)]
        most = max(lengths)
        padded, exact = len(lengths) * most**2, sum(length**2 for length in lengths)
        if chosen and (padded > PADDED * exact or padded * heads > SCORES or most > QUERIES):
            yield chosen
            chosen = []
        chosen.append(row)
    yield chosen


def _group(rows: list[tuple[int, int]], shared: int) -> Group:
    import torch

    length = shared + max(end - begin for begin, end in rows)
    taken: list[int] = []
    own: list[int] = []
    for begin, end in rows:
        own += range(len(taken) + shared, len(taken) + shared + end - begin)
        row = [*range(shared), *range(begin, end)]
        taken += row + row[-1:] * (length - len(row))
    first = set(range(shared)) if rows[0][0] == shared else set()
    silent = sorted({*range(len(taken))} - {*own} - first)
    places = (torch.tensor(each, dtype=torch.long) for each in (taken, own, silent))
    return Group(len(rows), length, shared, rows[0][0], rows[-1][1], *places)
