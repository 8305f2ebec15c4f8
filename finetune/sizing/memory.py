"""The memory model of training, which the estimate, the recipe table and the choice to recompute activations share.

Pure arithmetic, no torch. What a block saves for its backward pass is counted tensor by tensor, as autograd saves it; a
test compares the counts with autograd's own.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from finetune.config.schema import LoraSection, Recipe
from finetune.sizing.model_shape import Linear, Shape

NF4_BYTES = 0.516  # per weight, in blocks of 64 with doubly quantised scales: 4.127 bits
MOMENT_BYTES = {"adamw_8bit": 2, "paged_adamw_8bit": 2, "adamw_bnb_8bit": 2, "paged_adamw": 8, "sgd": 0, "lion": 4,
                "lion_32bit": 4, "lion_8bit": 1, "adafactor": 0.1}  # fmt: skip
ADAM_MOMENT_BYTES = 8  # two moments in float32
CUDA_BYTES = 1 << 30  # the CUDA context, and what the allocator leaves unused
HEAP = 1.33  # heap per byte of saved activations on the CPU, measured: glibc keeps it between steps, with gaps
HEAP_FOUR_BIT = 1.6  # more gaps, because dequantised weights come and go
RECOMPUTED_GAPS = 0.27  # of the activations that recomputing does not save: the gaps they leave, measured
HEAD_ROWS = 512  # positions whose logits exist at the same time, where rows are not padded
USABLE_SHARE = 0.9  # of the free memory; the rest is left to other processes


@dataclass(frozen=True)
class MicroBatchShape:
    """The tokens that are computed for a micro-batch, padding included.

    A decoder has input tokens only; an encoder reads the input tokens, its decoder writes the output tokens.
    """

    input_tokens: int
    output_tokens: int = 0
    rows: int = 1
    scored_tokens: int = 0

    @property
    def total(self) -> int:
        """Input and output tokens."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True)
class ComputeSetting:
    """How a model is trained on a device.

    `dtype_bytes` is the size of an activation, `process_bytes` the memory of the process before it loads the model.
    """

    dtype_bytes: int = 4
    on_gpu: bool = False
    padded: bool = False
    recomputes: bool = False
    process_bytes: int = 0


@dataclass(frozen=True)
class Memory:
    """Bytes by purpose; `loading` is the peak while the weights are read."""

    process: int
    weights: int
    adapter: int
    optimizer: int
    activations: int
    evaluation: int
    loading: int

    @property
    def peak(self) -> int:
        """The most bytes that are in use at the same time."""
        held = self.process + self.weights + self.adapter + self.optimizer
        return max(held + self.activations, held + self.evaluation, self.process + self.loading)

    def as_dict(self) -> dict[str, int]:
        """All bytes by name, with the peak."""
        return asdict(self) | {"peak": self.peak}


def estimate_memory(  # noqa: PLR0913, PLR0917 - what is trained, how, where, on how much
    shape: Shape,
    recipe: Recipe,
    setting: ComputeSetting,
    largest: MicroBatchShape,
    evaluated: MicroBatchShape,
    file_bytes: int = 0,
) -> Memory:
    """The memory of training on micro-batches up to `largest`; `file_bytes` is the size of the largest weights file."""
    trained = adapter_parameters(shape, recipe.lora)
    weights = weight_bytes(shape, four_bit=recipe.base.load_in_4bit, dtype_bytes=setting.dtype_bytes)
    # measured: the 16-bit weights that are quantised while loading are released only at its end
    unquantised = shape.linear_weights * setting.dtype_bytes if recipe.base.load_in_4bit else 0
    return Memory(
        process=CUDA_BYTES if setting.on_gpu else setting.process_bytes,
        weights=weights,
        adapter=trained * 4,
        optimizer=int(trained * (4 + moment_bytes(recipe))),  # 4 for the gradient
        activations=training_activations(shape, recipe, setting, largest),
        evaluation=evaluation_activations(shape, recipe, setting, evaluated),
        loading=weights + (0 if setting.on_gpu else file_bytes + unquantised),
    )


def moment_bytes(recipe: Recipe) -> float:
    """Bytes of optimizer state per trained parameter."""
    return MOMENT_BYTES.get(recipe.training.optimizer, ADAM_MOMENT_BYTES)


def adapter_parameters(shape: Shape, lora: LoraSection) -> int:
    """Trained parameters: two factors per layer, with DoRA a magnitude per output."""
    wanted = [linear for linear in shape.linears if linear.name in lora.targets]
    extra = sum(linear.count * linear.outputs for linear in wanted) if lora.dora else 0
    return sum(linear.count * lora.rank * (linear.inputs + linear.outputs) for linear in wanted) + extra


def weight_bytes(shape: Shape, *, four_bit: bool, dtype_bytes: int) -> int:
    """Memory of the frozen base; its embedding and head are never quantised."""
    linear = shape.linear_weights * (NF4_BYTES if four_bit else dtype_bytes)
    return int(linear + (shape.parameters - shape.linear_weights) * dtype_bytes)


def training_activations(shape: Shape, recipe: Recipe, setting: ComputeSetting, batch: MicroBatchShape) -> int:
    """Bytes saved for the backward pass, and of the temporaries at their largest."""
    block = block_bytes(shape, recipe.lora, setting, batch)
    scores = _scores(shape, batch) * 4
    if setting.recomputes:
        tokens = batch.total if shape.is_encoder_decoder else batch.input_tokens
        inputs = shape.layers * shape.width * tokens * setting.dtype_bytes
        gaps = 0.0 if setting.on_gpu else RECOMPUTED_GAPS * block
        kept, recomputed = inputs + scores + gaps, block / shape.layers
    else:
        kept, recomputed = block + scores, 0.0
    last_norm = batch.total * shape.width * 4
    backward = recomputed + batch.total * (3 * shape.inner + 2 * shape.width) * setting.dtype_bytes
    dequantised = _largest_linear(shape) * setting.dtype_bytes if recipe.base.load_in_4bit else 0
    heap = HEAP_FOUR_BIT if recipe.base.load_in_4bit else HEAP
    share = 1 if setting.on_gpu else heap
    return int((kept + last_norm) * share + max(head_bytes(shape, setting, batch), backward + dequantised))


def evaluation_activations(shape: Shape, recipe: Recipe, setting: ComputeSetting, batch: MicroBatchShape) -> int:
    """Bytes of one block's temporaries or of the logits; nothing is saved."""
    block = batch.total * (4 * shape.inner + 3 * shape.width) * setting.dtype_bytes
    dequantised = _largest_linear(shape) * setting.dtype_bytes if recipe.base.load_in_4bit else 0
    head = head_bytes(shape, setting, batch) * 2 / 3  # without the gradient
    return int(batch.total * shape.width * 4 + max(block + dequantised, head) + _scores(shape, batch) * 4)


def head_bytes(shape: Shape, setting: ComputeSetting, batch: MicroBatchShape) -> int:
    """Bytes of the logits in float32 and of their gradient, and in 16 bit of the head's output before the conversion.

    On a GPU Unsloth's fused loss computes them in chunks: one copy is an upper bound.
    """
    written = batch.output_tokens or batch.input_tokens
    if setting.on_gpu:
        return written * shape.vocabulary * 4
    rows = written if setting.padded else min(batch.scored_tokens, HEAD_ROWS)
    kept = 12 if setting.padded else 10  # a chunk's logits are released only when the next chunk's exist
    return rows * shape.vocabulary * (kept if setting.dtype_bytes == 4 else kept + 4)


def block_bytes(shape: Shape, lora: LoraSection, setting: ComputeSetting, batch: MicroBatchShape) -> float:
    """Bytes that all blocks save for the backward pass of a micro-batch."""
    if not shape.is_encoder_decoder:
        return batch.input_tokens * shape.layers * _token_bytes(shape, lora, setting, shape.linears)
    # a decoder block also has cross-attention, whose keys and values are computed from the encoder's output
    encoder = _token_bytes(shape, lora, setting, shape.linears)
    attention = [linear for linear in shape.linears if linear.reads in ("attention", "attended")]
    queries = (3 * shape.query + shape.width) * 4 + _adapter_bytes(attention[:1] + attention[3:], lora, setting)
    keys = 2 * shape.query * 4 + _adapter_bytes(attention[1:3], lora, setting, shared=True)
    output = encoder + queries - shape.query * 4
    return shape.layers * (batch.input_tokens * (encoder + keys) + batch.output_tokens * output)


def _token_bytes(shape: Shape, lora: LoraSection, setting: ComputeSetting, linears: tuple[Linear, ...]) -> float:
    size = setting.dtype_bytes
    norms = shape.norms * shape.width * (size if shape.kind == "gpt2" else 4)  # RMS norms are computed in float32
    attention = (shape.query + 2 * shape.key) * size
    if setting.padded:  # the attention's output, and the normaliser of each query's weights
        attention += shape.query * size + shape.heads * 4
    if shape.twice:
        attention += (shape.query + shape.key) * (size if "qkv_proj" in {linear.name for linear in linears} else 4)
    # SiLU saves its input, the gate's product both factors; each of the four steps of GPT-2's and T5's GELU saves one
    terms = {"llama": 3, "gpt2": 4, "t5": 6 if any(linear.name == "wi_1" for linear in linears) else 2}[shape.kind]
    return norms + attention + terms * shape.inner * size + _adapter_bytes(linears, lora, setting)


def _adapter_bytes(
    linears: Iterable[Linear], lora: LoraSection, setting: ComputeSetting, *, shared: bool = False
) -> float:
    """Inputs of a block's adapted layers: in float32 one tensor for all layers that read it, in 16 bit a copy each."""
    size = setting.dtype_bytes
    wanted = [linear for linear in linears if linear.name in lora.targets]
    inputs = {(linear.reads if size == 4 else index): linear.inputs for index, linear in enumerate(wanted)}
    kept = 0 if shared and size == 4 else sum(inputs.values()) * size
    dropped = sum(linear.inputs for linear in wanted) * 2 * size if lora.dropout else 0
    magnitudes = sum(linear.outputs for linear in wanted) * 2 * size if lora.dora else 0
    return kept + dropped + magnitudes + len(wanted) * lora.rank * size


def _scores(shape: Shape, batch: MicroBatchShape) -> float:
    """T5's position bias, saved once for all blocks: for the encoder's, the decoder's and the cross-attention."""
    if not shape.is_encoder_decoder:
        return 0
    encoder, decoder = batch.input_tokens / batch.rows, batch.output_tokens / batch.rows
    return 2 * shape.heads * (encoder**2 + decoder**2 + encoder * decoder)


def _largest_linear(shape: Shape) -> int:
    return max(linear.inputs * linear.outputs for linear in shape.linears)


def fullest_micro_batch(shape: Shape, recipe: Recipe, longest_tokens: int) -> MicroBatchShape:
    """The largest micro-batch that rows of up to `longest_tokens` can fill."""
    training = recipe.training
    tokens = max(longest_tokens, training.batch_tokens or training.batch_size * longest_tokens)
    rows = max(1, tokens // longest_tokens)
    output = rows * (recipe.base.max_target_tokens or recipe.base.max_tokens) if shape.is_encoder_decoder else 0
    return MicroBatchShape(tokens, output, rows, tokens)


def needs_recomputing(
    shape: Shape, recipe: Recipe, setting: ComputeSetting, batch: MicroBatchShape, free_bytes: int
) -> bool:
    """True if the activations of the largest micro-batch do not fit into the free memory and must be recomputed.

    `free_bytes` is what is free once the weights are loaded.
    """
    wish = recipe.training.gradient_checkpointing
    if wish != "auto":
        return wish == "on"
    states = adapter_parameters(shape, recipe.lora) * (8 + moment_bytes(recipe))
    needed = training_activations(shape, recipe, replace(setting, recomputes=False), batch) + states
    return bool(needed > USABLE_SHARE * free_bytes)
