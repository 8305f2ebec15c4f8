"""Each variant of LoRA, optimizer and schedule changes what is trained, and what is saved is what was trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from finetune.config.row_limits import RowLimits
from finetune.config.schema import Recipe, TrainingSection
from finetune.model.load import load_trainable
from finetune.model.optimizer import learning_rates
from finetune.model.trainable import save_adapter
from finetune.tokens.examples import Example
from finetune.tokens.labeller import tokenize_all
from finetune.train.evaluation import measure_loss
from gladstone.chat.template import ChatTemplate
from gladstone.commands.progress import Silent
from gladstone.formats import read_conversations
from gladstone.models.base_model import Base, resolve_base
from gladstone.models.tokenizer import FolderTokenizer
from tests.finetune.looped import train
from tests.tiny_models import tiny_recipe, write_rows_file

PAD = 2
PLAIN: dict[str, Any] = {"lora": {}, "training": {}}
VARIANTS: dict[str, dict[str, Any]] = {
    "rank": {"lora": {"rank": 4}},
    "alpha": {"lora": {"alpha": 64}},
    "dropout": {"lora": {"dropout": 0.3}},
    "targets": {"lora": {"targets": ["q_proj"]}},
    "rslora": {"lora": {"rslora": True}},
    "dora": {"lora": {"dora": True}},
    "gaussian": {"lora": {"init": "gaussian"}},
    "orthogonal": {"lora": {"init": "orthogonal"}},
    "pissa": {"lora": {"init": "pissa"}},
    "pissa with rslora": {"lora": {"init": "pissa", "rslora": True, "alpha": 3}},
    "pissa_niter_4": {"lora": {"init": "pissa_niter_4"}},
    "olora": {"lora": {"init": "olora"}},
    "loraplus": {"training": {"loraplus_ratio": 2}},
    "adafactor": {"training": {"optimizer": "adafactor"}},
    "sgd": {"training": {"optimizer": "sgd"}},
    "weight decay": {"training": {"weight_decay": 0.5}},
    "cosine": {"training": {"schedule": "cosine"}},
    "warm-up": {"training": {"warmup_share": 0.5}},
    "clipping": {"training": {"max_grad_norm": 0.01}},
    "seed": {"training": {"seed": 1}},
}


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return resolve_base(str(tiny_base), Silent())


@pytest.fixture(scope="module")
def examples(
    tmp_path_factory: pytest.TempPathFactory, template: ChatTemplate, tokenizer: FolderTokenizer
) -> tuple[Example, ...]:
    path = write_rows_file(tmp_path_factory.mktemp("rows") / "rows.jsonl")
    return tokenize_all(read_conversations(path, "qa"), template, tokenizer, RowLimits(256)).examples[:12]


def recipe_of(base: Path, sections: dict[str, Any]) -> Recipe:
    training = {"max_steps": 4, "evaluations": 1, **sections.get("training", {})}
    return Recipe.model_validate(
        tiny_recipe(base, Path("rows.jsonl"), lora=sections.get("lora", {}), training=training)
    )


@pytest.fixture(scope="module")
def plain(base: Base, examples: tuple[Example, ...], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    recipe = recipe_of(base.folder, PLAIN)
    return losses(base, recipe, examples, tmp_path_factory.mktemp("plain"))[1]


def losses(base: Base, recipe: Recipe, examples: tuple[Example, ...], folder: Path) -> tuple[Any, list[float]]:
    trainable = load_trainable(base, recipe, PAD, examples)
    steps = train(trainable, examples, recipe, folder / "checkpoints").history.steps
    return trainable, [stats.loss_nats_per_token for stats in steps]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:(PiSSA|OLoRA) changes the base weights")  # and we take the change out again
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_trains_otherwise_and_what_is_saved_answers_as_what_was_trained(
    name: str, base: Base, examples: tuple[Example, ...], plain: list[float], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    recipe = recipe_of(base.folder, VARIANTS[name])
    trainable, found = losses(base, recipe, examples, tmp_path)
    assert found != plain
    trained = measure_loss(trainable, examples)
    assert trained < found[0]
    save_adapter(trainable, base.name, tmp_path / "adapter")
    untouched = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(untouched, tmp_path / "adapter").eval()
    with torch.no_grad(), trainable.forward.generation_mode():
        ids = torch.tensor([examples[0].input_ids])
        trainable.model.eval()
        assert torch.allclose(loaded(ids).logits, trainable.model(ids).logits, atol=2e-3)


@pytest.mark.parametrize(
    ("schedule", "settings"),
    [
        ("linear", {}), ("cosine", {}), ("cosine_with_restarts", {"num_cycles": 2}), ("inverse_sqrt", {}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}), ("polynomial", {"power": 2.0}), ("constant", {}),
        ("constant_with_warmup", {}), ("warmup_stable_decay", {"num_decay_steps": 5}),
    ],
)  # fmt: skip
def test_no_step_of_a_schedule_has_a_learning_rate_of_0(schedule: str, settings: dict[str, float]) -> None:
    warmup = 0.0 if schedule == "constant" else 0.2
    training = TrainingSection(schedule=schedule, schedule_settings=settings, warmup_share=warmup)
    rate = learning_rates(training, 20)
    shares = [rate(step) for step in range(20)]
    assert all(0 < share <= 1 for share in shares)
    if warmup:
        assert shares[0] < shares[3]
    if schedule not in ("constant", "constant_with_warmup"):
        assert shares[-1] < 1


def test_a_recipe_with_every_variant_comes_back_from_yaml(base: Base) -> None:
    for sections in VARIANTS.values():
        recipe = recipe_of(base.folder, sections)
        assert Recipe.model_validate(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json")))) == recipe
