"""Attention over packed rows, against the definition in float64, row by row."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from finetune.kernels import packed_attention as attention
from finetune.kernels.matmul_attention import QUERIES

WIDTH, HEADS, KEY_HEADS = 16, 6, 2
# the lengths of rows, what they share included, and how many tokens that is
ROWS = [
    ((7,), 0),
    ((9, 8, 8, 3), 0),
    ((30, 29, 12, 11, 5), 4),
    ((5, 40, 6), 3),
    ((QUERIES + 1, QUERIES), 0),
    ((2 * QUERIES + 7, 33, 20), 9),
]


def operator() -> Any:
    import torch

    attention.register()
    return torch.ops.gladstone.rows_attention


def borders_of(lengths: Sequence[int], shared: int) -> list[int]:
    borders = [shared]
    for length in lengths:
        borders.append(borders[-1] + length - shared)
    return borders


def by_definition(parts: Sequence[Any], borders: Sequence[int], window: int) -> Any:
    """Query, key and value are (tokens, heads, width); every row has what is shared before it."""
    import torch

    query, key, value = parts
    shared, read = borders[0], torch.zeros_like(query)
    for begin, end in pairwise(borders):
        places = [*range(shared), *range(begin, end)]
        queries, keys, values = (each[places] for each in (query, key, value))
        keys, values = (each.repeat_interleave(HEADS // KEY_HEADS, dim=1) for each in (keys, values))
        scores = torch.einsum("qhw,khw->hqk", queries, keys) / WIDTH**0.5
        apart = torch.arange(len(places))[:, None] - torch.arange(len(places))
        scores = scores.masked_fill((apart < 0) | ((apart >= window) if window else (apart < 0)), float("-inf"))
        found = torch.einsum("hqk,khw->qhw", scores.softmax(-1), values)
        own = found if begin == shared else found[shared:]
        read = read.index_copy(0, torch.tensor(places if begin == shared else places[shared:]), own)
    return read


@pytest.mark.parametrize(("lengths", "shared"), ROWS)
@pytest.mark.parametrize("window", [0, 6])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_rows_attend_and_learn_as_by_the_definition(
    lengths: Sequence[int], shared: int, window: int, dtype: str, tolerance: float
) -> None:
    import torch

    torch.manual_seed(0)
    borders = borders_of(lengths, shared)
    heads = (HEADS, KEY_HEADS, KEY_HEADS)
    parts = [torch.randn(borders[-1], count, WIDTH).to(getattr(torch, dtype)) for count in heads]
    gradient = torch.randn(borders[-1], HEADS, WIDTH).to(getattr(torch, dtype))

    ours = [part.detach().requires_grad_() for part in parts]
    found = operator()(*(part.transpose(0, 1)[None] for part in ours), torch.tensor(borders), WIDTH**-0.5, window)[0]
    exact = [part.detach().double().requires_grad_() for part in parts]
    expected = by_definition(exact, borders, window)
    pairs = [(found, expected)]
    pairs += zip(
        torch.autograd.grad(found, ours, gradient),
        torch.autograd.grad(expected, exact, gradient.double()),
        strict=True,
    )
    for one, other in pairs:
        assert one.dtype == parts[0].dtype
        assert (one - other).detach().norm() <= tolerance * other.detach().norm()


def test_rows_of_nearly_the_same_length_are_computed_together_and_others_apart() -> None:
    groups = attention.groups(tuple(borders_of((50, 48, 47, 12, 11, 200), 5)), HEADS)
    assert [(group.rows, group.length) for group in groups] == [(3, 50), (2, 12), (1, 200)]
    assert [group.begin for group in groups] == [5, 135, 148]


def test_a_group_never_holds_more_scores_than_its_limit() -> None:
    groups = attention.groups(tuple(borders_of((100,) * 40, 0)), HEADS)
    assert max(group.rows * group.length**2 * HEADS for group in groups) <= attention.MAX_SCORES
    assert sum(group.rows for group in groups) == 40
