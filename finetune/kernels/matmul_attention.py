"""Causal attention and its gradient as batched matrix products, for training on the CPU. Names torch.

torch's flash attention for the CPU computes its gradient in bfloat16 no faster than in float32, although the processor
multiplies several times as fast. Scores are computed and normalised in float32 and are not saved: the backward pass
recomputes them for one chunk of queries at a time, which stays in the cache.

Shapes: B is the rows times the key heads, H the query heads per key head, T the tokens, W the width of a head.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

QUERIES = 160  # in a chunk


def attention(query: Any, key: Any, value: Any, scale: float, window: int) -> Any:
    """Return the attention's output (B, H, T, W) for query (B, H, T, W), key and value (B, T, W), all of one dtype.

    A query sees at most the last `window` tokens, itself included; 0 means all tokens up to itself.
    """
    import torch

    scaled = key.float() * scale
    outputs = []
    for begin, end, first in _chunks(key.shape[1], window):
        weights = _weights(_rows(query, begin, end), scaled[:, first:end], query.shape[1], (begin, first, window))
        output = torch.bmm(weights, value[:, first:end])
        outputs.append(output.view(len(key), -1, end - begin, key.shape[2]))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def attention_gradient(  # noqa: PLR0913, PLR0917 - an attention has so many parts
    gradient: Any, query: Any, key: Any, value: Any, scale: float, window: int
) -> tuple[Any, Any, Any]:
    """Return the gradients of query (B, H, T, W), key and value (B, T, W), for that of the output (B, H, T, W).

    The gradients of key and value are float32.
    """
    import torch

    scaled = key.float() * scale
    d_queries, d_key, d_value = [], torch.zeros_like(scaled), torch.zeros_like(scaled)
    for begin, end, first in _chunks(key.shape[1], window):
        rows, d_rows, seen = _rows(query, begin, end), _rows(gradient, begin, end), slice(first, end)
        weights = _weights(rows, scaled[:, seen], query.shape[1], (begin, first, window))
        d_weights = torch.bmm(d_rows, value[:, seen].transpose(1, 2))
        d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, query.dtype)
        d_query = torch.bmm(d_scores, key[:, seen]).mul_(scale)
        d_queries.append(d_query.view(len(key), -1, end - begin, key.shape[2]))
        d_key[:, seen] += torch.bmm(d_scores.transpose(1, 2), rows)
        d_value[:, seen] += torch.bmm(weights.transpose(1, 2), d_rows)
    return d_queries[0] if len(d_queries) == 1 else torch.cat(d_queries, dim=2), d_key.mul_(scale), d_value


def _chunks(tokens: int, window: int) -> Iterator[tuple[int, int, int]]:
    """Yield the first and the last query (exclusive) of each chunk, and the first key that one of them sees."""
    for begin in range(0, tokens, QUERIES):
        yield begin, min(tokens, begin + QUERIES), max(0, begin + 1 - window) if window else 0


def _rows(query: Any, begin: int, end: int) -> Any:
    """(B, H, T, W) → (B, H × chunk, W)."""
    return query[:, :, begin:end].reshape(len(query), -1, query.shape[3])


def _weights(rows: Any, scaled: Any, heads: int, where: tuple[int, int, int]) -> Any:
    """Return the weights (B, H × chunk, keys) in the dtype of `rows`, for scaled keys (B, keys, W) float32."""
    import torch

    mask = _mask((rows.shape[1] // heads, scaled.shape[1]), heads, *where)
    return torch.baddbmm(mask, rows.float(), scaled.transpose(1, 2)).softmax(-1).to(rows.dtype)


@lru_cache(maxsize=16)
def _mask(shape: tuple[int, int], heads: int, begin: int, first: int, window: int) -> Any:
    """Return (H × chunk, keys) float32: 0 where a query sees a key, else -∞.

    `shape` is the number of queries and keys, which begin at the tokens `begin` and `first`.
    """
    import torch

    distance = torch.arange(begin, begin + shape[0])[:, None] - torch.arange(first, first + shape[1])
    seen = (distance >= 0) & (distance < window) if window else distance >= 0
    return torch.zeros(seen.shape).masked_fill_(~seen, float("-inf")).repeat(heads, 1)
