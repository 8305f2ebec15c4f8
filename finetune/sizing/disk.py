"""How much disk a run and its export take."""

import math
from collections.abc import Mapping

from finetune.config.schema import Recipe
from finetune.sizing.memory import ADAM_MOMENT_BYTES, MOMENT_BYTES, adapter_parameters
from finetune.sizing.model_shape import Shape

# bits per weight, averaged over all tensors, as llama.cpp's quantise tool reports them for Llama 3 8B
GGUF_BITS: Mapping[str, float] = {"f16": 16, "q8_0": 8.5, "q6_k": 6.56, "q5_k_m": 5.7, "q4_k_m": 4.89}
TOKEN_BYTES = 30  # of a token in a GGUF's vocabulary: text, score, type, merges


def disk_bytes(shape: Shape, recipe: Recipe) -> dict[str, int]:
    """The bytes of each file that a run or its export writes."""
    trained = adapter_parameters(shape, recipe.lora)
    moments = math.ceil(MOMENT_BYTES.get(recipe.training.optimizer, ADAM_MOMENT_BYTES))
    kept = recipe.training.keep_checkpoints + 2  # the best one, and the one being written
    files = {
        "adapter": trained * 4,
        "checkpoints": kept * trained * (4 + moments),
        "merged, 16 bit": shape.parameters * 2,
    }
    vocabulary = shape.vocabulary * TOKEN_BYTES
    return files | {f"GGUF {name}": int(shape.parameters * bits / 8) + vocabulary for name, bits in GGUF_BITS.items()}
