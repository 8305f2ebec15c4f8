"""From rows to the loss of a micro-batch: without padding on the CPU, padded elsewhere. Names torch.

Only scored positions go through the head, in pieces, so that logits never fill the memory.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from finetune.kernels import packed_attention as attention
from finetune.kernels.fused_lora import head_product
from finetune.sizing.memory import HEAD_ROWS
from finetune.tokens.examples import IGNORED, Example, PairExample, common_prefix_length, needed_tokens

PROBE_TOKENS, PROBE_SHARED = 24, 6  # of each of the two rows on which the two ways are compared
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}  # relative difference of their losses


@dataclass(frozen=True)
class Batch:
    """A micro-batch as tensors, with its counts: scored tokens, the rows' tokens, and tokens that are computed.

    Padding makes the computed tokens more than the rows' tokens, a shared prefix makes them fewer.
    """

    tensors: dict[str, Any]
    target_tokens: int
    tokens: int
    computed_tokens: int


class Forward(Protocol):
    """A way to compute the loss of rows."""

    padded: bool

    def batch(self, examples: Sequence[Example]) -> Batch:
        """The rows as tensors on the model's device."""

    def loss(self, batch: Batch, divisor: int) -> Any:
        """Sum of the scored tokens' nats divided by `divisor`, with its gradient."""

    def generation_mode(self) -> AbstractContextManager[Any]:
        """While it is entered the model can be called as usual, to generate text with it."""


class PackedForward:
    """Rows laid end to end: nothing is computed for padding, and the order of rows is free of their lengths.

    What all rows of a micro-batch begin with, as a system prompt, is computed once: with causal attention the same
    tokens at the same places give the same values in every row. What follows a row's last prediction is not computed.
    """

    padded = False

    def __init__(self, model: Any) -> None:
        """`model` is a decoder with an adapter. Raises AttributeError or TypeError if it is not built as most are."""
        base = model.get_base_model()
        self._base, self._body, self._head = base, base.base_model, base.get_output_embeddings()
        self._product = head_product(self._head)
        self._config, self._usual = base.config, base.config._attn_implementation
        if self._body is base:
            raise TypeError("the model has no body apart from its head")
        if any(each.requires_grad for each in self._head.parameters()):
            raise TypeError("the head is trained")
        # each row drops other features, so that nothing of it is shared
        self._shares = not any(type(each).__name__ == "Dropout" and each.p > 0 for each in model.modules())
        base.set_attn_implementation(attention.register())

    @property
    def body(self) -> Any:
        """The decoder without its head."""
        return self._body

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Tokens and positions (1, T), the borders of the rows (B + 1), and where and what is scored (N)."""
        import torch

        shared = common_prefix_length(examples) if self._shares else 0
        tokens = list(examples[0].input_ids[:shared])
        positions = list(range(shared))
        scored: list[int] = []
        targets: list[int] = []
        borders = [shared]
        for example in examples:
            moved = len(tokens) - shared  # by how much the row's own part lies behind its place in the row
            for at, label in enumerate(example.labels[1:]):
                if label != IGNORED:
                    scored.append(at if at < shared else moved + at)
                    targets.append(label)
            needed = needed_tokens(example)
            tokens += example.input_ids[shared:needed]
            positions += range(shared, needed)
            borders.append(len(tokens))
        tensors = {
            "input_ids": torch.tensor([tokens]),
            "position_ids": torch.tensor([positions]),
            "borders": torch.tensor(borders, dtype=torch.int32),
            "scored": torch.tensor(scored, dtype=torch.long),
            "targets": torch.tensor(targets, dtype=torch.long),
        }
        return Batch(tensors, len(targets), sum(len(example.input_ids) for example in examples), len(tokens))

    def loss(self, batch: Batch, divisor: int) -> Any:
        """As `Forward.loss`."""
        tensors = batch.tensors
        hidden = self._body(
            input_ids=tensors["input_ids"],
            position_ids=tensors["position_ids"],
            attention_mask=None,
            cu_seq_lens_q=tensors["borders"],
            use_cache=False,
        ).last_hidden_state
        return chunked_cross_entropy(hidden[0, tensors["scored"]], tensors["targets"], self._logits, divisor)

    @contextmanager
    def generation_mode(self) -> Iterator[None]:
        """As `Forward.generation_mode`."""
        self._base.set_attn_implementation(self._usual)
        try:
            yield
        finally:
            self._base.set_attn_implementation(attention.register())

    def _logits(self, hidden: Any) -> Any:
        logits = self._product(hidden).float()
        scale = getattr(self._config, "logit_scale", 1) / getattr(self._config, "logits_scaling", 1)
        if scale != 1:  # a pass over the largest tensor of all, and a copy of it
            logits = logits * scale
        cap = getattr(self._config, "final_logit_softcapping", None)
        return logits if cap is None else (logits / cap).tanh() * cap


class PaddedForward:
    """Rows beside one another, padded to the longest; the model computes its loss by itself."""

    padded = True

    def __init__(self, model: Any, pad_id: int, *, seq2seq: bool) -> None:
        self._model, self._pad_id, self._seq2seq = model, pad_id, seq2seq

    def batch(self, examples: Sequence[Example]) -> Batch:
        """input_ids and attention_mask (B, T), labels (B, L); of a decoder L is T."""
        import torch

        def padded(rows: Sequence[Sequence[int]], filler: int) -> Any:
            width = max(map(len, rows))
            return torch.tensor([[*row, *([filler] * (width - len(row)))] for row in rows])

        device = self._model.device
        lengths = [len(example.input_ids) for example in examples]
        tensors = {
            "input_ids": padded([example.input_ids for example in examples], self._pad_id),
            "labels": padded([example.labels for example in examples], IGNORED),
            "attention_mask": padded([[1] * length for length in lengths], 0),
        }
        tokens, computed_tokens = sum(lengths), len(examples) * max(lengths)
        if self._seq2seq:
            tokens += sum(len(example.labels) for example in examples)
            computed_tokens += len(examples) * max(len(example.labels) for example in examples)
        targets = sum(example.target_tokens for example in examples)
        return Batch({name: value.to(device) for name, value in tensors.items()}, targets, tokens, computed_tokens)

    def loss(self, batch: Batch, divisor: int) -> Any:
        """As `Forward.loss`."""
        import torch

        if not self._seq2seq:
            return self._model(**batch.tensors, num_items_in_batch=divisor).loss
        logits = self._model(**batch.tensors).logits.float()
        labels = batch.tensors["labels"].flatten()
        summed = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels, ignore_index=IGNORED, reduction="sum")
        return summed / divisor

    def generation_mode(self) -> AbstractContextManager[Any]:
        """As `Forward.generation_mode`."""
        return nullcontext()


def choose_forward(model: Any, pad_id: int, examples: Sequence[Example]) -> Forward:
    """Rows without padding where that gives the loss of padded ones on two rows, padded ones otherwise."""
    seq2seq = isinstance(examples[0], PairExample)
    padded = PaddedForward(model, pad_id, seq2seq=seq2seq)
    if seq2seq or model.device.type != "cpu":
        return padded
    was = model.get_base_model().config._attn_implementation
    probe = _probe(examples)
    wanted = _probed(model, padded, probe)
    try:
        flat = PackedForward(model)
        found = _probed(model, flat, probe)
        _probed(model, flat, probe, training=True)  # what only training has, as dropout of attention, may be refused
        if abs(found - wanted) <= TOLERANCE[str(model.dtype).removeprefix("torch.")] * abs(wanted):
            return flat
    except (NotImplementedError, AttributeError, TypeError, ValueError) as refused:
        print(f"rows are padded: {refused}")
    model.get_base_model().set_attn_implementation(was)
    return padded


def _probe(examples: Sequence[Example]) -> list[Example]:
    """Two rows of unequal length that begin alike; all behind that is scored."""
    opening = examples[0].input_ids[: min(PROBE_SHARED, len(examples[0].input_ids) // 2)]
    rows = [(*opening, *example.input_ids[len(opening) :]) for example in examples[:2]]
    rows = [row[: PROBE_TOKENS - 7 * place] for place, row in enumerate(rows)]
    unscored = (IGNORED,) * len(opening)
    return [type(examples[0])(row, (*unscored, *row[len(opening) :])) for row in rows]


def _probed(model: Any, forward: Forward, probe: Sequence[Example], *, training: bool = False) -> float:
    import torch

    batch = forward.batch(probe)
    model.train(training)
    with torch.no_grad():
        loss = float(forward.loss(batch, batch.target_tokens))
    model.train()
    return loss


def chunked_cross_entropy(hidden: Any, targets: Any, logits_of: Callable[[Any], Any], divisor: int) -> Any:
    """Cross entropy of `hidden` (N, width) against `targets` (N), summed and divided, a piece of the logits at a time.

    The gradient of each piece is taken while its logits exist, so that they are computed once and never all at a time;
    what `logits_of` holds must be frozen.
    """
    import torch

    class ChunkedCrossEntropy(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, hidden: Any) -> Any:
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            ctx.gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
            for begin in range(0, len(hidden), HEAD_ROWS):
                piece = slice(begin, begin + HEAD_ROWS)
                if ctx.gradient is None:
                    loss = torch.nn.functional.cross_entropy(logits_of(hidden[piece]), targets[piece], reduction="sum")
                else:
                    with torch.enable_grad():
                        part = hidden[piece].detach().requires_grad_()
                        logits = logits_of(part)
                    loss, of_logits = _cross_entropy_and_gradient(logits.detach(), targets[piece])
                    (of_part,) = torch.autograd.grad(logits, part, of_logits)
                    ctx.gradient[piece] = of_part / divisor
                total += loss
            return total / divisor

        @staticmethod
        def backward(ctx: Any, of_loss: Any) -> Any:
            return ctx.gradient * of_loss

    return ChunkedCrossEntropy.apply(hidden)


def _cross_entropy_and_gradient(logits: Any, targets: Any) -> tuple[Any, Any]:
    """The summed cross entropy of logits (N, V), and its gradient for them: probabilities less one at the target.

    In three passes over the logits where autograd takes seven. The greatest probability tells the sum that all were
    divided by, and is never too small for its logarithm.
    """
    greatest, where = logits.max(dim=1, keepdim=True)
    wanted = logits.gather(1, targets[:, None])
    gradient = logits.softmax(dim=1)
    summed = (greatest - wanted - gradient.gather(1, where).log()).sum()
    gradient[range(len(targets)), targets] -= 1
    return summed, gradient
