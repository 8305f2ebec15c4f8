"""The loss of a micro-batch: packed without padding on the CPU, padded elsewhere. Names torch.

Only scored positions pass through the head, in chunks, so that the logits of a whole batch never exist at once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from finetune.kernels import packed_attention
from finetune.kernels.fused_lora import head_product
from finetune.sizing.memory import HEAD_ROWS
from finetune.tokens.examples import IGNORED, Example, PairExample, common_prefix_length, needed_tokens

PROBE_TOKENS, PROBE_SHARED = 24, 6  # length and shared prefix of the two rows that compare the two forward passes
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}  # relative difference of their losses


@dataclass(frozen=True)
class Batch:
    """A micro-batch as tensors, with the number of its scored tokens, of its rows' tokens and of computed tokens.

    Padding makes the computed tokens more than the rows' tokens, a shared prefix makes them fewer.
    """

    tensors: dict[str, Any]
    target_tokens: int
    tokens: int
    computed_tokens: int


class Forward(Protocol):
    """Computes the loss of rows with one model."""

    padded: bool

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Return the rows as tensors on the model's device."""

    def loss(self, batch: Batch, divisor: int) -> Any:
        """Return the summed cross-entropy of the scored tokens in nats over `divisor`: a scalar with its gradient."""

    def generation_mode(self) -> AbstractContextManager[Any]:
        """Return a context in which the model can be called as usual, to generate text."""


class PackedForward:
    """Packs the rows of a micro-batch end to end: no padding is computed, and rows may have any lengths.

    A prefix that all rows share, such as a system prompt, is computed once: with causal attention equal tokens at equal
    positions have equal activations. What follows the last prediction of a row is not computed.
    """

    padded = False

    def __init__(self, model: Any) -> None:
        """Prepare a decoder with an adapter. Raises AttributeError or TypeError if its structure is not the usual."""
        base = model.get_base_model()
        self._base, self._body, self._head = base, base.base_model, base.get_output_embeddings()
        self._product = head_product(self._head)
        self._config, self._usual = base.config, base.config._attn_implementation
        if self._body is base:
            raise TypeError("the model has no body apart from its head")
        if any(parameter.requires_grad for parameter in self._head.parameters()):
            raise TypeError("the head is trained")
        # dropout differs from row to row, so that no activation can be shared
        self._shares = not any(type(module).__name__ == "Dropout" and module.p > 0 for module in model.modules())
        base.set_attn_implementation(packed_attention.register())

    @property
    def body(self) -> Any:
        """The decoder without its head."""
        return self._body

    def batch(self, examples: Sequence[Example]) -> Batch:
        """As `Forward.batch`, for B rows of T packed tokens with N scored positions.

        input_ids and position_ids are (1, T) int64, borders (B + 1) int32: where the tokens of each row begin, and T;
        scored (N) int64 are positions in the pack, targets (N) int64 the tokens that they predict.
        """
        import torch

        shared = common_prefix_length(examples) if self._shares else 0
        tokens = list(examples[0].input_ids[:shared])
        positions = list(range(shared))
        scored: list[int] = []
        targets: list[int] = []
        borders = [shared]
        for example in examples:
            offset = len(tokens) - shared  # from a position in the row to the one in the pack
            for position, label in enumerate(example.labels[1:]):
                if label != IGNORED:
                    scored.append(position if position < shared else offset + position)
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
            self._base.set_attn_implementation(packed_attention.register())

    def _logits(self, hidden: Any) -> Any:
        """Return the logits (N, V) float32 of hidden states (N, width)."""
        logits = self._product(hidden).float()
        scale = getattr(self._config, "logit_scale", 1) / getattr(self._config, "logits_scaling", 1)
        if scale != 1:  # avoids a copy of the largest tensor
            logits = logits * scale
        cap = getattr(self._config, "final_logit_softcapping", None)
        return logits if cap is None else (logits / cap).tanh() * cap


class PaddedForward:
    """Pads the rows to the longest of the micro-batch; the model computes its own loss."""

    padded = True

    def __init__(self, model: Any, pad_id: int, *, encoder_decoder: bool) -> None:
        self._model, self._pad_id, self._encoder_decoder = model, pad_id, encoder_decoder

    def batch(self, examples: Sequence[Example]) -> Batch:
        """As `Forward.batch`: input_ids and attention_mask (B, T), labels (B, L), all int64; of a decoder L is T."""
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
        if self._encoder_decoder:
            tokens += sum(len(example.labels) for example in examples)
            computed_tokens += len(examples) * max(len(example.labels) for example in examples)
        targets = sum(example.target_tokens for example in examples)
        return Batch({name: value.to(device) for name, value in tensors.items()}, targets, tokens, computed_tokens)

    def loss(self, batch: Batch, divisor: int) -> Any:
        """As `Forward.loss`."""
        import torch

        if not self._encoder_decoder:
            return self._model(**batch.tensors, num_items_in_batch=divisor, use_cache=False).loss
        logits = self._model(**batch.tensors, use_cache=False).logits.float()
        labels = batch.tensors["labels"].flatten()
        summed = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels, ignore_index=IGNORED, reduction="sum")
        return summed / divisor

    def generation_mode(self) -> AbstractContextManager[Any]:
        """As `Forward.generation_mode`."""
        return nullcontext()


def choose_forward(model: Any, pad_id: int, examples: Sequence[Example]) -> Forward:
    """Return the packed forward if two rows have the same loss with it as padded, otherwise the padded one.

    A reason against packing goes to the log.
    """
    encoder_decoder = isinstance(examples[0], PairExample)
    padded = PaddedForward(model, pad_id, encoder_decoder=encoder_decoder)
    if encoder_decoder or model.device.type != "cpu":
        return padded
    implementation = model.get_base_model().config._attn_implementation
    probe = _probe(examples)
    expected = _probe_loss(model, padded, probe)
    try:
        packed = PackedForward(model)
        loss = _probe_loss(model, packed, probe)
        _probe_loss(model, packed, probe, training=True)  # dropout of attention, which only training has, is refused
        if abs(loss - expected) <= TOLERANCE[str(model.dtype).removeprefix("torch.")] * abs(expected):
            return packed
        print(f"rows are padded: packed they have the loss {loss:.4f}, padded {expected:.4f}")
    except (NotImplementedError, AttributeError, TypeError, ValueError) as refused:
        print(f"rows are padded: {refused}")
    model.get_base_model().set_attn_implementation(implementation)
    return padded


def _probe(examples: Sequence[Example]) -> list[Example]:
    """Return two rows of different lengths with a shared prefix; all tokens after it are scored."""
    prefix = examples[0].input_ids[: min(PROBE_SHARED, len(examples[0].input_ids) // 2)]
    rows = [(*prefix, *example.input_ids[len(prefix) :]) for example in examples[:2]]
    rows = [row[: PROBE_TOKENS - 7 * index] for index, row in enumerate(rows)]
    unscored = (IGNORED,) * len(prefix)
    return [type(examples[0])(row, (*unscored, *row[len(prefix) :])) for row in rows]


def _probe_loss(model: Any, forward: Forward, probe: Sequence[Example], *, training: bool = False) -> float:
    import torch

    batch = forward.batch(probe)
    model.train(training)
    with torch.no_grad():
        loss = float(forward.loss(batch, batch.target_tokens))
    model.train()
    return loss


def chunked_cross_entropy(hidden: Any, targets: Any, logits_of: Callable[[Any], Any], divisor: int) -> Any:
    """Return the summed cross-entropy of `hidden` (N, width) and `targets` (N) int64, over `divisor`: float32 ().

    `logits_of` maps (n, width) to (n, V) float32, and its parameters must be frozen. The forward pass takes the
    gradient of each chunk while its logits exist: they are computed once, and never all at the same time.
    """
    import torch

    class ChunkedCrossEntropy(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, hidden: Any) -> Any:
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            ctx.gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
            for begin in range(0, len(hidden), HEAD_ROWS):
                chunk = slice(begin, begin + HEAD_ROWS)
                if ctx.gradient is None:
                    loss = torch.nn.functional.cross_entropy(logits_of(hidden[chunk]), targets[chunk], reduction="sum")
                else:
                    with torch.enable_grad():
                        part = hidden[chunk].detach().requires_grad_()
                        logits = logits_of(part)
                    loss, logits_gradient = _cross_entropy_and_gradient(logits.detach(), targets[chunk])
                    (part_gradient,) = torch.autograd.grad(logits, part, logits_gradient)
                    ctx.gradient[chunk] = part_gradient / divisor
                total += loss
            return total / divisor

        @staticmethod
        def backward(ctx: Any, loss_gradient: Any) -> Any:
            return ctx.gradient * loss_gradient

    return ChunkedCrossEntropy.apply(hidden)


def _cross_entropy_and_gradient(logits: Any, targets: Any) -> tuple[Any, Any]:
    """Return the summed cross-entropy of logits (n, V) float32, and its gradient (n, V): softmax minus one-hot targets.

    It takes three passes over the logits where autograd takes seven: the softmax's normaliser follows from the greatest
    probability, which is never too small for a logarithm.
    """
    greatest, where = logits.max(dim=1, keepdim=True)
    wanted = logits.gather(1, targets[:, None])
    gradient = logits.softmax(dim=1)
    summed = (greatest - wanted - gradient.gather(1, where).log()).sum()
    gradient[range(len(targets)), targets] -= 1
    return summed, gradient
