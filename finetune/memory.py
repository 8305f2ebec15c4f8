"""What training a recipe takes of a GPU's memory, roughly, from facts about its base model."""

from finetune.recipe import HubFacts, Recipe, load_recipe, recipe_names

NF4_BYTES = 0.516  # a weight in blocks of 64 with doubly quantised scales: 4.127 bits
ADAM_BYTES = {"paged_adamw_8bit": 10, "adamw_8bit": 10}  # weight and gradient in float32, two moments in 8 bit
ADAM_BYTES_FULL = 16  # moments in float32
BLOCK_UNITS = (
    34  # activations of one block while it is recomputed, in hidden widths (Korthikanti et al. 2022, without scores)
)
CONTEXT_BYTES = 1 << 30  # CUDA's own, and what its allocator leaves unused


def training_bytes(recipe: Recipe, facts: HubFacts) -> int:
    """Weights, adapter with its optimizer, activations recomputed block by block, and logits."""
    training, base = recipe.training, recipe.base
    half = 4 if facts.architecture.startswith("T5") else 2
    embedding = facts.vocabulary * facts.width
    frozen = facts.parameters - embedding
    weights = embedding * half + frozen * (NF4_BYTES if base.load_in_4bit else half)
    adapter = 2 * recipe.lora.rank * facts.width * facts.layers * len(recipe.lora.targets)
    optimizer = ADAM_BYTES.get(training.optimizer, ADAM_BYTES_FULL)
    tokens = training.batch_size * base.max_tokens
    activations = tokens * facts.width * half * (facts.layers + BLOCK_UNITS)
    logits = tokens * facts.vocabulary * 4
    return int(weights + adapter * optimizer + activations + logits + CONTEXT_BYTES)


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
