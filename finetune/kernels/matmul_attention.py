"""Causal attention and its gradient as batched matrix products, for training on the CPU. Names torch.

torch's flash attention for the CPU computes its gradient in bfloat16 no faster than in float32, though the processor
multiplies several times as fast. Scores are computed and normalised in float32 and never kept: the gradient computes
them anew, some queries at a time, so that they stay in the cache.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

QUERIES = 160  # at a time


def attention(query: Any, key: Any, value: Any, scale: float, window: int) -> Any:
    """What each query reads, of its shape.

    query (B, heads that read the same keys, tokens, width), key and value (B, tokens, width). `window` is how many
    tokens a query sees at most, itself included; 0 is all up to itself.
    """
    import torch

    scaled = key.float() * scale
    parts = []
    for begin, end, first in _pieces(key.shape[1], window):
        weights = _weights(_rows(query, begin, end), scaled[:, first:end], query.shape[1], (begin, first, window))
        read = torch.bmm(weights, value[:, first:end])
        parts.append(read.view(len(key), -1, end - begin, key.shape[2]))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def attention_gradient(  # noqa: PLR0913, PLR0917 - an attention has so many parts
    gradient: Any, query: Any, key: Any, value: Any, scale: float, window: int
) -> tuple[Any, Any, Any]:
    """Gradients of query, key and value, of their shapes, where `gradient` is that of what `attention` returns."""
    import torch

    scaled = key.float() * scale
    of_query, of_key, of_value = [], torch.zeros_like(scaled), torch.zeros_like(scaled)
    for begin, end, first in _pieces(key.shape[1], window):
        rows, grads, seen = _rows(query, begin, end), _rows(gradient, begin, end), slice(first, end)
        weights = _weights(rows, scaled[:, seen], query.shape[1], (begin, first, window))
        of_weights = torch.bmm(grads, value[:, seen].transpose(1, 2))
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, query.dtype)
        read = torch.bmm(of_scores, key[:, seen]).mul_(scale)
        of_query.append(read.view(len(key), -1, end - begin, key.shape[2]))
        of_key[:, seen] += torch.bmm(of_scores.transpose(1, 2), rows)
        of_value[:, seen] += torch.bmm(weights.transpose(1, 2), grads)
    return of_query[0] if len(of_query) == 1 else torch.cat(of_query, dim=2), of_key.mul_(scale), of_value


def _pieces(tokens: int, window: int) -> Iterator[tuple[int, int, int]]:
    """Queries from one place to another, and the first key that any of them sees."""
    for begin in range(0, tokens, QUERIES):
        yield begin, min(tokens, begin + QUERIES), max(0, begin + 1 - window) if window else 0


def _rows(query: Any, begin: int, end: int) -> Any:
    """(B, heads, tokens, width) → (B, heads × some of the tokens, width)."""
    return query[:, :, begin:end].reshape(len(query), -1, query.shape[3])


def _weights(rows: Any, scaled: Any, heads: int, where: tuple[int, int, int]) -> Any:
    """How much of each key each query reads: (B, heads × queries, keys), in the type of `rows`."""
    import torch

    mask = _mask((rows.shape[1] // heads, scaled.shape[1]), heads, *where)
    return torch.baddbmm(mask, rows.float(), scaled.transpose(1, 2)).softmax(-1).to(rows.dtype)


@lru_cache(maxsize=16)
def _mask(shape: tuple[int, int], heads: int, begin: int, first: int, window: int) -> Any:
    """(heads × queries, keys): 0 where a query sees a key, else -∞.

    `shape` is how many queries and keys there are; they begin at the places `begin` and `first`.
    """
    import torch

    apart = torch.arange(begin, begin + shape[0])[:, None] - torch.arange(first, first + shape[1])
    seen = (apart >= 0) & (apart < window) if window else apart >= 0
    return torch.zeros(seen.shape).masked_fill_(~seen, float("-inf")).repeat(heads, 1)
