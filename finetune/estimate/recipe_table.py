"""`finetune recipes`: the recipes that come with Gladstone, with the GPU memory that each takes."""

from dataclasses import replace

from finetune.config.load import load_recipe, recipe_names
from finetune.config.schema import HubFacts, Recipe
from finetune.sizing.memory import MicroBatchShape, estimate_memory, gpu_setting
from finetune.sizing.model_shape import shape_of_facts

NEWER_CAPABILITY = (8, 0)  # of a GPU with bfloat16


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
    setting = replace(gpu_setting(shape, NEWER_CAPABILITY), recomputes=True)
    output = recipe.base.max_target_tokens or recipe.base.max_tokens if shape.is_encoder_decoder else 0
    rows = recipe.training.batch_size
    tokens = rows * recipe.base.max_tokens
    largest = MicroBatchShape(tokens, rows * output, rows, tokens)
    return estimate_memory(shape, recipe, setting, largest, MicroBatchShape(0)).peak
