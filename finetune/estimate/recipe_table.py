"""`finetune recipes`: the recipes that come with Gladstone, with the GPU memory that each takes."""

from finetune.config.load import load_recipe, recipe_names
from finetune.config.schema import HubFacts, Recipe
from finetune.sizing.memory import ComputeSetting, MicroBatchShape, estimate_memory
from finetune.sizing.model_shape import shape_of_facts


def recipe_table() -> str:
    """List the recipes with their base, rows and memory, two indented lines each."""
    blocks = []
    for name in recipe_names():
        recipe = load_recipe(name, [])
        facts = recipe.hub
        details = [f"base {recipe.base.model}"]
        if facts:
            details.append(f"about {training_bytes(recipe, facts) / 1e9:.1f} GB of GPU memory")
            details += [f"{facts.rows:,} rows"] if facts.rows else []
        blocks.append(f"{name}\n    {recipe.description}\n    {', '.join(details)}")
    return "\n".join(blocks)


def training_bytes(recipe: Recipe, facts: HubFacts) -> int:
    """GPU memory that a recipe takes with full micro-batches of the longest rows and recomputed activations."""
    shape = shape_of_facts(facts)
    setting = ComputeSetting(
        dtype_bytes=4 if shape.is_encoder_decoder else 2, on_gpu=True, padded=True, recomputes=True
    )
    output = recipe.base.max_target_tokens or recipe.base.max_tokens if shape.is_encoder_decoder else 0
    rows = recipe.training.batch_size
    largest = MicroBatchShape(rows * recipe.base.max_tokens, rows * output, rows)
    return estimate_memory(shape, recipe, setting, largest, MicroBatchShape(0)).peak
