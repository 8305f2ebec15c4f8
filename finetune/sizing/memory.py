"""The memory model of training, which the estimate, the recipe table and the choice to recompute activations share.

Pure arithmetic, no torch. What a block saves for its backward pass is counted tensor by tensor, as autograd saves it; a
test compares the counts with autograd's own. What a GPU holds follows the sources of Unsloth 2026.10.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from finetune.config.schema import LoraSection, Recipe
from finetune.sizing.fused_loss import Head, fused_loss_bytes
from finetune.sizing.model_shape import Linear, Shape

NF4_BYTES = 0.516  # per weight, in blocks of 64 with doubly quantised scales: 4.127 bits
# 8-bit states have a float32 scale per 256 values; AdEMAMix keeps three averages
MOMENT_BYTES = {"adamw_8bit": 2.04, "paged_adamw_8bit": 2.04, "adamw_bnb_8bit": 2.04, "sgd": 0, "lion_32bit": 4,
                "paged_lion_32bit": 4, "lion_8bit": 1.02, "paged_lion_8bit": 1.02, "adafactor": 0.3, "adagrad": 4,
                "ademamix": 12, "paged_ademamix_32bit": 12, "ademamix_8bit": 3.06, "paged_ademamix_8bit": 3.06,
                "rmsprop": 4, "rmsprop_bnb": 4, "rmsprop_bnb_32bit": 4, "rmsprop_bnb_8bit": 1.02,
                "schedule_free_sgd": 4}  # fmt: skip
ADAM_MOMENT_BYTES = 8  # two moments in float32
CUDA_BYTES = 1 << 30  # assumed: a CUDA context of 0.3 to 0.5 GB, workspaces, and what the allocator leaves unused
OFFLOADED_FROM = (
    2 << 20
)  # bytes of a block's input: smaller ones stay on the GPU (unsloth_zoo gradient_checkpointing.py)
GPU_INPUTS = 3  # inputs of blocks on the GPU while the others are in host memory: two buffers and the last block's
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

    `dtype_bytes` is the size of an activation, `base_bytes` that of a weight that is not in 4 bit (0: the same).
    `process_bytes` is the memory of the process before it loads the model, `limit_bytes` all that it may use (None: not
    known). `capability` is a GPU's compute capability.
    """

    dtype_bytes: int = 4
    on_gpu: bool = False
    padded: bool = False
    recomputes: bool = False
    process_bytes: int = 0
    base_bytes: int = 0
    capability: tuple[int, int] = (7, 5)
    limit_bytes: float | None = None

    @property
    def held_bytes(self) -> int:
        """The size of a weight that is not in 4 bit."""
        return self.base_bytes or self.dtype_bytes


def gpu_setting(shape: Shape, capability: tuple[int, int], limit_bytes: float | None = None) -> ComputeSetting:
    """How a model is trained on a GPU: in bfloat16, before compute capability 8.0 in float16, T5 always in float32.

    What overflows in float16 is held in it, but computed in float32. `limit_bytes` is the free memory of the GPU.
    """
    activation, weight = 2, 2
    if shape.is_encoder_decoder:
        activation = weight = 4
    elif shape.overflows_in_float16 and capability < (8, 0):
        activation = 4
    return ComputeSetting(
        activation, on_gpu=True, padded=True, base_bytes=weight, capability=capability, limit_bytes=limit_bytes
    )


@dataclass(frozen=True)
class Memory:
    """Bytes by purpose; `loading` is the peak while the weights are read.

    `offloaded` lies in host memory while a GPU trains, and is no part of its peak.
    """

    process: int
    weights: int
    adapter: int
    optimizer: int
    activations: int
    evaluation: int
    loading: int
    offloaded: int = 0

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
    weights = weight_bytes(shape, four_bit=recipe.base.load_in_4bit, dtype_bytes=setting.held_bytes)
    # measured: the 16-bit weights that are quantised while loading are released only at its end
    unquantised = shape.linear_weights * setting.dtype_bytes if recipe.base.load_in_4bit else 0
    return Memory(
        process=CUDA_BYTES if setting.on_gpu else setting.process_bytes,
        weights=weights,
        adapter=trained * 4,
        optimizer=int(trained * (4 + moment_bytes(recipe))),  # 4 for the gradient
        activations=training_activations(shape, recipe, setting, largest),
        evaluation=evaluation_activations(shape, recipe, setting, evaluated),
        loading=weights + (_largest_linear(shape) * 2 if setting.on_gpu else file_bytes + unquantised),
        offloaded=shape.layers * largest.input_tokens * shape.width * 2 if _offloads(shape, setting, largest) else 0,
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
    if setting.on_gpu:  # autocast's copies of the adapter
        scores += adapter_parameters(shape, recipe.lora) * 2
    if setting.recomputes:
        tokens = batch.total if shape.is_encoder_decoder else batch.input_tokens
        layers = min(GPU_INPUTS, shape.layers) if _offloads(shape, setting, batch) else shape.layers
        inputs = layers * shape.width * tokens * setting.dtype_bytes
        gaps = 0.0 if setting.on_gpu else RECOMPUTED_GAPS * block
        kept, recomputed = inputs + scores + gaps, block / shape.layers
    else:
        kept, recomputed = block + scores, 0.0
    last_norm = batch.total * shape.width * 4
    backward = recomputed + batch.total * (3 * shape.inner + 2 * shape.width) * setting.dtype_bytes
    dequantised = _dequantised(shape, recipe, setting)
    heap = HEAP_FOUR_BIT if recipe.base.load_in_4bit else HEAP
    share = 1 if setting.on_gpu else heap
    head = head_bytes(shape, setting, batch, free_bytes(shape, recipe, setting))
    if setting.on_gpu:  # there the buffer for dequantised weights is never released
        returned = 2 * batch.total * shape.width * setting.dtype_bytes  # the loss's gradient, and scaled once more
        return int(kept + last_norm + dequantised + max(head + returned, backward))
    return int((kept + last_norm) * share + max(head, backward + dequantised))


def evaluation_activations(shape: Shape, recipe: Recipe, setting: ComputeSetting, batch: MicroBatchShape) -> int:
    """Bytes of one block's temporaries or of the logits; nothing is saved."""
    block = batch.total * (4 * shape.inner + 3 * shape.width) * setting.dtype_bytes
    dequantised = _dequantised(shape, recipe, setting)
    head = head_bytes(shape, setting, batch, free_bytes(shape, recipe, setting))
    if not fuses_loss(shape, setting):
        head = head * 2 // 3  # without the gradient
    return int(batch.total * shape.width * 4 + max(block + dequantised, head) + _scores(shape, batch) * 4)


def free_bytes(shape: Shape, recipe: Recipe, setting: ComputeSetting) -> float | None:
    """What is free on a GPU when the first loss is computed; None if its memory is not known."""
    if setting.limit_bytes is None:
        return None
    held = weight_bytes(shape, four_bit=recipe.base.load_in_4bit, dtype_bytes=setting.held_bytes)
    return setting.limit_bytes - CUDA_BYTES - held - adapter_parameters(shape, recipe.lora) * 4


def fuses_loss(shape: Shape, setting: ComputeSetting) -> bool:
    """True if Unsloth's fused loss computes the logits in chunks."""
    return setting.on_gpu and not shape.is_encoder_decoder


def head_bytes(shape: Shape, setting: ComputeSetting, batch: MicroBatchShape, free: float | None = None) -> int:
    """Bytes of the logits in float32 and of their gradient, and in 16 bit of the head's output before the conversion.

    `free` are the bytes that are free when a GPU computes the first loss.
    """
    written = batch.output_tokens or batch.input_tokens
    if fuses_loss(shape, setting):
        head = Head(shape.width, shape.vocabulary, setting.capability, setting.limit_bytes or 0)
        return fused_loss_bytes(head, batch.scored_tokens, free)
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
    if setting.on_gpu and shape.fast and not (lora.dropout or lora.dora):
        return _fast_token_bytes(shape, lora, setting)
    size = setting.dtype_bytes
    norms = shape.norms * shape.width * (size if shape.kind == "gpt2" else 4)  # RMS norms are computed in float32
    if setting.on_gpu and setting.held_bytes < size:  # what overflows in float16: the norm's output, too
        norms *= 2
    attention = (shape.query + 2 * shape.key) * size
    if setting.padded:  # the attention's output, and the normaliser of each query's weights
        attention += shape.query * size + shape.heads * 4
    if shape.twice:
        attention += (shape.query + shape.key) * (size if "qkv_proj" in {linear.name for linear in linears} else 4)
    # SiLU saves its input, the gate's product both factors; each of the four steps of GPT-2's and T5's GELU saves one
    terms = {"llama": 3, "gpt2": 4, "t5": 6 if any(linear.name == "wi_1" for linear in linears) else 2}[shape.kind]
    return norms + attention + terms * shape.inner * size + _adapter_bytes(linears, lora, setting)


def _fast_token_bytes(shape: Shape, lora: LoraSection, setting: ComputeSetting) -> float:
    """Bytes per token that Unsloth's own layers save; where all of a group are adapted, it saves their input once."""
    size, targets = setting.dtype_bytes, set(lora.targets)

    def inputs(*names: str) -> int:
        adapted = targets & set(names)
        once = len(adapted) == len(names)
        return shape.width * size if once else len(adapted) * (shape.width + lora.rank) * size

    fused_mlp = targets >= {"gate_proj", "up_proj", "down_proj"}
    norms = shape.norms * (shape.width * size + 4)  # with the normaliser
    attention = (shape.query + 2 * shape.key + shape.query) * size + shape.heads * 4
    if shape.twice:
        attention += (shape.query + shape.key) * size
    if "o_proj" in targets:
        attention += shape.query * size
    terms = 2 if fused_mlp else 3 + ("down_proj" in targets)
    return (
        norms
        + inputs("q_proj", "k_proj", "v_proj")
        + attention
        + inputs("gate_proj", "up_proj")
        + (terms * shape.inner * size)
    )


def _offloads(shape: Shape, setting: ComputeSetting, batch: MicroBatchShape) -> bool:
    """True if the inputs of recomputed blocks lie in host memory ("unsloth" checkpointing)."""
    if not (setting.on_gpu and setting.recomputes) or shape.is_encoder_decoder:
        return False
    return batch.input_tokens * shape.width * 2 > OFFLOADED_FROM


def _dequantised(shape: Shape, recipe: Recipe, setting: ComputeSetting) -> int:
    return _largest_linear(shape) * setting.held_bytes if recipe.base.load_in_4bit else 0


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
