"""The memory of Unsloth's fused loss on a GPU: how many rows of logits exist at the same time. No torch.

As unsloth_zoo 2026.10 chooses them (fused_losses/fused_linear.py): only scored tokens reach the head, in chunks of a
power of two of rows. A chunk's gradient takes the place of its logits. GPUs from compute capability 8.0 on compute a
tile of the vocabulary at a time where the head is large.
"""

from dataclasses import dataclass

LEAST_ROWS, MOST_ROWS = 512, 4096
LEAST_LOGITS = 512 * 151_936  # of a chunk: small vocabularies have more rows
CHUNK_BYTES = 2 << 30  # of a chunk at most, and no more than half of the memory that was free at the first one
TILE_BYTES, TILE_COLUMNS = 256 << 20, 16_384
SMALL_CARD_BYTES = 24.5 * (1 << 30)  # larger cards compute tiles from so many rows on as a chunk has at most
LOGIT_BYTES = 4  # float32, from products of 16-bit factors


@dataclass(frozen=True)
class Head:
    """A frozen head: its width and its vocabulary, and the GPU that computes it."""

    width: int
    vocabulary: int
    capability: tuple[int, int]
    device_bytes: float


def fused_loss_bytes(head: Head, scored_tokens: int, free_bytes: float | None = None) -> int:
    """The most bytes of logits, or of their gradient, and of the gradient that a chunk returns.

    `free_bytes` is what was free when the process computed its first loss; None: more than a chunk takes.
    """
    budget = CHUNK_BYTES if free_bytes is None else min(CHUNK_BYTES, max(free_bytes, 0) / 2)
    if _has_tiles(head, scored_tokens):
        return _tile_bytes(head, scored_tokens, budget)
    rows = chunk_rows(head, scored_tokens, budget)
    return int(rows * (head.vocabulary + head.width) * LOGIT_BYTES)


def chunk_rows(head: Head, scored_tokens: int, budget_bytes: float = CHUNK_BYTES) -> int:
    """The rows of a chunk.

    >>> chunk_rows(Head(1152, 262_144, (7, 5), 16e9), 4096)
    512
    >>> chunk_rows(Head(4096, 32_000, (7, 5), 16e9), 100_000)
    4096
    """
    wished = _power_of_two(scored_tokens * head.width // head.vocabulary)
    least = min(max(_power_of_two(LEAST_LOGITS // head.vocabulary), LEAST_ROWS), MOST_ROWS)
    fitting = max(int(budget_bytes / (head.vocabulary * LOGIT_BYTES)), 2)
    return max(1, min(max(wished, least), MOST_ROWS, fitting, scored_tokens))


def _has_tiles(head: Head, scored_tokens: int) -> bool:
    least = 0 if head.device_bytes <= SMALL_CARD_BYTES else MOST_ROWS
    return head.capability >= (8, 0) and head.vocabulary > 2 * TILE_COLUMNS and scored_tokens >= least


def _tile_bytes(head: Head, scored_tokens: int, budget_bytes: float) -> int:
    budget = min(TILE_BYTES, budget_bytes)
    rows = max(1, int(min(MOST_ROWS, scored_tokens, budget / (TILE_COLUMNS * LOGIT_BYTES))))
    small = head.device_bytes <= SMALL_CARD_BYTES
    columns = TILE_COLUMNS if small else max(TILE_COLUMNS, int(budget / (rows * LOGIT_BYTES)))
    statistics = 8 * -(-head.vocabulary // TILE_COLUMNS)
    return int(rows * (min(columns, head.vocabulary) + head.width + statistics) * LOGIT_BYTES)


def _power_of_two(number: int) -> int:
    """The greatest power of two that is not above `number`; 0 for 0."""
    return 1 << (number.bit_length() - 1) if number > 0 else 0
