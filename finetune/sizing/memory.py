"""How much memory a training takes: the one model that estimates, recipe tables and the choice to recompute share.

Pure arithmetic. What a block keeps for its backward pass is counted tensor by tensor, as autograd keeps it; a test
holds the counts against autograd's own.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from finetune.config.schema import HubFacts, LoraSection, Recipe, load_recipe, recipe_names
from finetune.sizing.model_shape import Linear, Shape, shape_of_facts

NF4_BYTES = 0.516  # a weight in blocks of 64 with doubly quantised scales: 4.127 bits
MOMENT_BYTES = {"adamw_8bit": 2, "paged_adamw_8bit": 2, "adamw_bnb_8bit": 2, "paged_adamw": 8, "sgd": 0, "lion": 4,
                "lion_32bit": 4, "lion_8bit": 1, "adafactor": 0.1}  # fmt: skip
ADAM_MOMENT_BYTES = 8  # two in float32
CUDA_BYTES = 1 << 30  # CUDA's own, and what its allocator leaves unused
HEAP = 1.33  # of what blocks keep on the CPU, measured: glibc's heap is kept between steps, and has gaps
HEAP_FOUR_BIT = 1.6  # more of them where weights come and go
RECOMPUTED_GAPS = 0.27  # of what blocks would keep: gaps that recomputing leaves there, measured
HEAD_ROWS = 512  # positions whose logits exist at the same time, where rows are not padded


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
class Setting:
    """Where and how a model is trained: bytes of a number in a product, padded rows, recomputed activations."""

    dtype_bytes: int = 4
    on_gpu: bool = False
    padded: bool = False
    recomputes: bool = False
    process_bytes: int = 0  # what the process holds before the model: interpreter and libraries


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak, by what they are for; `loading` is the peak while the weights are read."""

    process: int
    weights: int
    adapter: int
    optimizer: int
    activations: int
    evaluation: int
    loading: int

    @property
    def peak(self) -> int:
        """The most that exists at once."""
        held = self.process + self.weights + self.adapter + self.optimizer
        return max(held + self.activations, held + self.evaluation, self.process + self.loading)

    def told(self) -> dict[str, int]:
        """For JSON."""
        return asdict(self) | {"peak": self.peak}


def estimate_memory(  # noqa: PLR0913, PLR0917 - what is trained, how, where, on how much
    shape: Shape,
    recipe: Recipe,
    setting: Setting,
    largest: MicroBatchShape,
    evaluated: MicroBatchShape,
    file_bytes: int = 0,
) -> Memory:
    """Memory of training on micro-batches up to `largest`; `file_bytes` of the largest file of weights."""
    trained = adapter_parameters(shape, recipe.lora)
    weights = weight_bytes(shape, four_bit=recipe.base.load_in_4bit, dtype_bytes=setting.dtype_bytes)
    moments = MOMENT_BYTES.get(recipe.training.optimizer, ADAM_MOMENT_BYTES)
    # what is quantised while it is read is let go of at the end, measured
    whole = shape.linear_weights * setting.dtype_bytes if recipe.base.load_in_4bit else 0
    return Memory(
        process=CUDA_BYTES if setting.on_gpu else setting.process_bytes,
        weights=weights,
        adapter=trained * 4,
        optimizer=int(trained * (4 + moments)),  # with the gradient
        activations=training_activations(shape, recipe, setting, largest),
        evaluation=evaluation_activations(shape, recipe, setting, evaluated),
        loading=weights + (0 if setting.on_gpu else file_bytes + whole),
    )


def adapter_parameters(shape: Shape, lora: LoraSection) -> int:
    """Weights that are trained: two factors a layer, with DoRA a length for each output."""
    wanted = [each for each in shape.linears if each.name in lora.targets]
    extra = sum(each.count * each.outputs for each in wanted) if lora.dora else 0
    return sum(each.count * lora.rank * (each.inputs + each.outputs) for each in wanted) + extra


def weight_bytes(shape: Shape, *, four_bit: bool, dtype_bytes: int) -> int:
    """The frozen base in memory; embedding and head are never quantised."""
    linear = shape.linear_weights * (NF4_BYTES if four_bit else dtype_bytes)
    return int(linear + (shape.parameters - shape.linear_weights) * dtype_bytes)


def training_activations(shape: Shape, recipe: Recipe, setting: Setting, batch: MicroBatchShape) -> int:
    """What is kept for the backward pass, and what exists besides at its largest moment."""
    block = block_bytes(shape, recipe.lora, setting, batch)
    scores = _scores(shape, batch) * 4
    if setting.recomputes:
        inputs = (
            shape.layers * shape.width * (batch.total if shape.seq2seq else batch.input_tokens) * setting.dtype_bytes
        )
        gaps = 0.0 if setting.on_gpu else RECOMPUTED_GAPS * block
        kept, moment = inputs + scores + gaps, block / shape.layers
    else:
        kept, moment = block + scores, 0.0
    last_norm = batch.total * shape.width * 4
    backward = moment + batch.total * (3 * shape.inner + 2 * shape.width) * setting.dtype_bytes
    dequantised = _largest_linear(shape) * setting.dtype_bytes if recipe.base.load_in_4bit else 0
    heap = HEAP_FOUR_BIT if recipe.base.load_in_4bit else HEAP
    share = 1 if setting.on_gpu else heap
    return int((kept + last_norm) * share + max(head_bytes(shape, setting, batch), backward + dequantised))


def evaluation_activations(shape: Shape, recipe: Recipe, setting: Setting, batch: MicroBatchShape) -> int:
    """Nothing is kept: one block's own tensors, or the logits."""
    block = batch.total * (4 * shape.inner + 3 * shape.width) * setting.dtype_bytes
    dequantised = _largest_linear(shape) * setting.dtype_bytes if recipe.base.load_in_4bit else 0
    head = head_bytes(shape, setting, batch) * 2 / 3  # no gradient
    return int(batch.total * shape.width * 4 + max(block + dequantised, head) + _scores(shape, batch) * 4)


def head_bytes(shape: Shape, setting: Setting, batch: MicroBatchShape) -> int:
    """Logits in float32 and their gradient, which are their probabilities at first; in 16 bit also the product itself.

    On a GPU Unsloth's fused loss takes them piece by piece: one copy is an upper bound.
    """
    if setting.on_gpu:
        return (batch.output_tokens or batch.input_tokens) * shape.vocabulary * 4
    rows = (batch.output_tokens or batch.input_tokens) if setting.padded else min(batch.scored_tokens, HEAD_ROWS)
    kept = 12 if setting.padded else 10  # the last ones are given back only when the next are there
    return rows * shape.vocabulary * (kept if setting.dtype_bytes == 4 else kept + 4)


def block_bytes(shape: Shape, lora: LoraSection, setting: Setting, batch: MicroBatchShape) -> float:
    """What all blocks keep for the backward pass of a micro-batch."""
    if not shape.seq2seq:
        return batch.input_tokens * shape.layers * _token_bytes(shape, lora, setting, shape.linears)
    # a decoder's block attends twice; keys and values of the second time are of what was read
    encoder = _token_bytes(shape, lora, setting, shape.linears)
    attention = [each for each in shape.linears if each.reads in ("attention", "attended")]
    once = (3 * shape.query + shape.width) * 4 + _adapter_bytes(attention[:1] + attention[3:], lora, setting)
    crossed = 2 * shape.query * 4 + _adapter_bytes(attention[1:3], lora, setting, shared=True)
    return shape.layers * (
        batch.input_tokens * (encoder + crossed) + batch.output_tokens * (encoder + once - shape.query * 4)
    )


def _token_bytes(shape: Shape, lora: LoraSection, setting: Setting, linears: tuple[Linear, ...]) -> float:
    size = setting.dtype_bytes
    norms = shape.norms * shape.width * (size if shape.kind == "gpt2" else 4)  # the others' are computed in float32
    attention = (shape.query + 2 * shape.key) * size
    if setting.padded:  # what was attended, and what each query's weights were divided by
        attention += shape.query * size + shape.heads * 4
    if shape.twice:
        attention += (shape.query + shape.key) * (size if "qkv_proj" in {each.name for each in linears} else 4)
    # silu keeps its input, the product both factors; the four steps of GPT-2's and T5's gelu keep one each
    terms = {"llama": 3, "gpt2": 4, "t5": 6 if any(each.name == "wi_1" for each in linears) else 2}[shape.kind]
    return norms + attention + terms * shape.inner * size + _adapter_bytes(linears, lora, setting)


def _adapter_bytes(linears: Any, lora: LoraSection, setting: Setting, *, shared: bool = False) -> float:
    """Inputs of the adapted layers of a block: in float32 one for all that read it, else a copy in 16 bit for each."""
    size = setting.dtype_bytes
    wanted = [each for each in linears if each.name in lora.targets]
    inputs = {(each.reads if size == 4 else place): each.inputs for place, each in enumerate(wanted)}
    kept = 0 if shared and size == 4 else sum(inputs.values()) * size
    dropped = sum(each.inputs for each in wanted) * 2 * size if lora.dropout else 0
    lengths = sum(each.outputs for each in wanted) * 2 * size if lora.dora else 0
    return kept + dropped + lengths + len(wanted) * lora.rank * size


def _scores(shape: Shape, batch: MicroBatchShape) -> float:
    """T5 adds a bias to the scores of each head, kept once for all blocks: of what is read, written and crossed."""
    if not shape.seq2seq:
        return 0
    read, written = batch.input_tokens / batch.rows, batch.output_tokens / batch.rows
    return 2 * shape.heads * (read**2 + written**2 + read * written)


def _largest_linear(shape: Shape) -> int:
    return max(each.inputs * each.outputs for each in shape.linears)


def fullest_micro_batch(shape: Shape, recipe: Recipe, longest_tokens: int) -> MicroBatchShape:
    """The largest micro-batch that rows of up to `longest_tokens` can make."""
    training = recipe.training
    read = max(longest_tokens, training.batch_tokens or training.batch_size * longest_tokens)
    rows = max(1, read // longest_tokens)
    written = rows * (recipe.base.max_target_tokens or recipe.base.max_tokens) if shape.seq2seq else 0
    return MicroBatchShape(read, written, rows, read)


def needs_recomputing(shape: Shape, recipe: Recipe, setting: Setting, batch: MicroBatchShape, free_bytes: int) -> bool:
    """True where keeping the activations of the largest micro-batch would take more than the free memory allows.

    `free_bytes` is what is free beside the weights; a tenth of it is left to others.
    """
    wish = recipe.training.gradient_checkpointing
    if wish != "auto":
        return wish == "on"
    moments = MOMENT_BYTES.get(recipe.training.optimizer, ADAM_MOMENT_BYTES)
    states = adapter_parameters(shape, recipe.lora) * (8 + moments)
    needed = training_activations(shape, recipe, replace(setting, recomputes=False), batch) + states
    return bool(needed > 0.9 * free_bytes)


def training_bytes(recipe: Recipe, facts: HubFacts) -> int:
    """GPU memory of a recipe by the facts about its base: full micro-batches of the longest rows, recomputed blocks."""
    shape = shape_of_facts(facts)
    setting = Setting(dtype_bytes=4 if shape.seq2seq else 2, on_gpu=True, padded=True, recomputes=True)
    written = recipe.base.max_target_tokens or recipe.base.max_tokens if shape.seq2seq else 0
    rows = recipe.training.batch_size
    largest = MicroBatchShape(rows * recipe.base.max_tokens, rows * written, rows)
    return estimate_memory(shape, recipe, setting, largest, MicroBatchShape(0)).peak


def recipe_table() -> str:
    """The recipes with their base, rows and memory, two lines each."""
    blocks = []
    for name in recipe_names():
        recipe = load_recipe(name, [])
        facts = recipe.hub
        told = [f"base {recipe.base.model}"]
        if facts:
            told.append(f"about {training_bytes(recipe, facts) / 1e9:.1f} GB of GPU memory")
            told += [f"{facts.rows:,} rows"] if facts.rows else []
        blocks.append(f"{name}\n    {recipe.description}\n    {', '.join(told)}")
    return "\n".join(blocks)


# bits of a weight, all tensors together, as llama.cpp's quantise tool measures them on Llama 3 8B
GGUF_BITS: Mapping[str, float] = {"f16": 16, "q8_0": 8.5, "q6_k": 6.56, "q5_k_m": 5.7, "q4_k_m": 4.89}
TOKEN_BYTES = 30  # a vocabulary's entry in a GGUF: text, score, type, merges


def disk_bytes(shape: Shape, recipe: Recipe) -> dict[str, int]:
    """What a run and its export write, by file."""
    trained = adapter_parameters(shape, recipe.lora)
    moments = math.ceil(MOMENT_BYTES.get(recipe.training.optimizer, ADAM_MOMENT_BYTES))
    kept = recipe.training.keep_checkpoints + 2  # the best one, and the one that is being written
    files = {
        "adapter": trained * 4,
        "checkpoints": kept * trained * (4 + moments),
        "merged, 16 bit": shape.parameters * 2,
    }
    words = shape.vocabulary * TOKEN_BYTES
    return files | {f"GGUF {name}": int(shape.parameters * bits / 8) + words for name, bits in GGUF_BITS.items()}
