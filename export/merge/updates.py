"""The updates an adapter makes to one base tensor: low-rank, full, by rows, or to a bias. Names torch."""

from dataclasses import dataclass
from typing import Any, Protocol

from export.tensors.safetensors_io import StoredTensor
from gladstone.errors import UnsupportedError


class Update(Protocol):
    """An update of one base tensor."""

    def apply(self, weight: Any) -> Any:
        """The updated tensor from the base's, both float32. Raises UnsupportedError if the shapes do not fit."""


@dataclass(frozen=True)
class LowRankUpdate:
    """W + scale · B·A; with a DoRA magnitude (out,) each output row is rescaled to that norm."""

    name: str
    down: StoredTensor  # A: (rank, in); for an embedding (rank, tokens)
    up: StoredTensor  # B: (out, rank); for an embedding (width, rank)
    magnitude: StoredTensor | None
    scale: float
    conv1d: bool = False  # the base stores W as (in, out)
    embedding: bool = False

    @property
    def transposed(self) -> bool:
        """True if the base stores W as (in, out)."""
        return self.conv1d or self.embedding

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the changed matrix as the base stores it."""
        shape = (self.up.shape[0], self.down.shape[1])
        return (shape[1], shape[0]) if self.transposed else shape

    @property
    def rows(self) -> int:
        """Rows of the changed matrix if it is an embedding or head: one per token."""
        return (self.down if self.transposed else self.up).shape[1 if self.transposed else 0]

    def apply(self, weight: Any) -> Any:
        """As `Update.apply`."""
        import torch

        update = self.up.read().float() @ self.down.read().float()
        update = (update.T if self.transposed else update).mul_(self.scale)
        if update.shape != weight.shape:
            shapes = f"{tuple(update.shape)}, the base's tensor {tuple(weight.shape)}"
            raise UnsupportedError(f"{self.name}: the adapter's update is {shapes}: it belongs to another base.")
        changed = update.add_(weight)
        if self.magnitude is None:
            return changed
        across = 0 if self.transposed else 1
        length = torch.linalg.vector_norm(changed, dim=across, dtype=torch.float64)
        factor = self.magnitude.read().double().flatten() / length
        return changed.mul_(factor.float().unsqueeze(across))


@dataclass(frozen=True)
class FullTensor:
    """A tensor trained in full (modules_to_save, biases)."""

    name: str
    trained: StoredTensor
    table: bool = False  # an embedding or head, which may have grown

    def apply(self, weight: Any) -> Any:
        """As `Update.apply`."""
        ours, theirs = self.trained.shape, tuple(weight.shape)
        if (ours[1:] != theirs[1:]) if self.table else (ours != theirs):
            raise UnsupportedError(
                f"{self.name}: the adapter's tensor is {ours}, the base's {theirs}: it belongs to another base."
            )
        return self.trained.read().float()


@dataclass(frozen=True)
class TokenRows:
    """Trained rows of an embedding or a head (trainable_token_indices)."""

    name: str
    tokens: tuple[int, ...]
    trained: StoredTensor  # (len(tokens), width)

    def apply(self, weight: Any) -> Any:
        """As `Update.apply`. Rows beyond the table's end extend it."""
        import torch

        longer = max(self.tokens) + 1 - len(weight)
        missing = set(range(len(weight), len(weight) + longer)) - set(self.tokens)
        if self.trained.shape != (len(self.tokens), weight.shape[1]) or missing:
            raise UnsupportedError(f"{self.name}: the adapter's trained tokens do not fit the base's embedding.")
        if longer > 0:
            weight = torch.cat([weight, weight.new_zeros(longer, weight.shape[1])])
        return weight.index_copy(0, torch.tensor(self.tokens), self.trained.read().float())


@dataclass(frozen=True)
class BiasUpdate:
    """An addition to a bias, (out,) (lora_bias)."""

    name: str
    bias: StoredTensor
    scale: float

    def apply(self, weight: Any) -> Any:
        """As `Update.apply`."""
        return weight + self.scale * self.bias.read().float()
