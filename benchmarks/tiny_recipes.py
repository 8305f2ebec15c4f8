"""Every recipe on a tiny random model of its base's architecture: twenty steps, loss before and after.

    python -m benchmarks.tiny_recipes

Shows that rows, labels, adapter and trainer fit together for each family; says nothing of what the real base learns.
"""

import tempfile
from pathlib import Path

from finetune.config.load import load_recipe
from finetune.model.load import load_trainable
from finetune.model.trainable import prepare_environment
from finetune.tokens.labeller import tokenize_all
from finetune.train.evaluation import measure_loss
from gladstone.commands.progress import Silent
from gladstone.models.base_model import resolve_base
from gladstone.models.tokenizer import load_tokenizer
from gladstone.process.redirect_output import redirect_output
from tests.families import recipe_families, write_family
from tests.finetune.looped import train
from tests.finetune.test_finetune_families import faster, rows


def main() -> None:
    prepare_environment()
    with tempfile.TemporaryDirectory() as folder:
        for name, family in recipe_families().items():
            with redirect_output(Path(folder) / "log"):
                line = measure(name, family, Path(folder))
            print(line, flush=True)


def measure(name: str, family: str, root: Path) -> str:
    """One recipe's line for a Markdown table."""
    if not (root / family).exists():
        write_family(family, root / family)
    base = resolve_base(str(root / family), Silent())
    recipe, tokenizer = faster(load_recipe(name, [])), load_tokenizer(base.folder)
    template = tokenizer.template(recipe.own_template())
    examples = tokenize_all(rows(), template, tokenizer, recipe.limits, pairs=base.is_encoder_decoder).examples
    trainable = load_trainable(base, recipe, tokenizer.padding_id, examples)
    before = measure_loss(trainable, examples)
    train(trainable, examples, recipe, root / "work")
    after = measure_loss(trainable, examples)
    kind = type(trainable.model.get_base_model()).__name__
    return f"| {name} | {kind} | {'NF4' if recipe.base.load_in_4bit else 'float32'} | {before:.2f} → {after:.2f} |"


if __name__ == "__main__":
    main()
