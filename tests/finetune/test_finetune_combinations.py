import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.config.checks import OPTIMIZERS, SCHEDULE_SETTINGS
from finetune.config.load import load_recipe
from finetune.config.schema import TrainingSection
from gladstone.errors import ConfigError
from tests.tiny_models import tiny_recipe


def told(tmp_path: Path, **sections: dict[str, Any]) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(Path("base"), Path("rows.jsonl"), **sections)))
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path), [])
    return str(caught.value)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": {"optimizer": "adamw_8bits"}}, r"no optimizer 'adamw_8bits' \(.*: adamw_8bit, "),
        ({"training": {"optimizer": "grokadamw"}}, r"grokadamw needs the package grokadamw"),
        ({"training": {"optimizer": "zzz"}}, r"no optimizer 'zzz' \(.*: adafactor, .*stable_adamw\)"),
        ({"training": {"schedule": "constant", "warmup_share": 0.1}}, r"has no warm-up, found 0\.1\. .*training\.schedule=constant_with_warmup"),
        ({"training": {"schedule_settings": {"num_cycles": 2}}}, r"'linear' does not take 'num_cycles'\."),
        ({"training": {"schedule": "cosine", "schedule_settings": {"cycles": 2}}}, r"does not take 'cycles'; it takes num_cycles\."),
        ({"training": {"schedule": "cosine_with_min_lr"}}, "needs either min_lr or min_lr_rate"),
        ({"training": {"schedule": "warmup_stable_decay"}}, "needs num_decay_steps"),
        ({"training": {"schedule": "polynomial", "schedule_settings": {"lr_end": 0.1}}}, "lr_end must be smaller"),
        ({"lora": {"init": "pissa"}, "base": {"load_in_4bit": True}}, "lora.init: 'pissa' .*base.load_in_4bit=false"),
        ({"lora": {"init": "orthogonal", "rank": 7}}, "needs an even lora.rank, found 7"),
        ({"training": {"optimizer": "adamw_torch_4bit"}}, "no optimizer 'adamw_torch_4bit'"),
        ({"lora": {"targets": ["q_proj", "q_proj"]}}, r"lora\.targets: .*twice"),
        ({"training": {"patience": 2, "evaluations": 2}}, r"training\.patience: 2 .*training\.evaluations=2"),
    ],
)  # fmt: skip
def test_conflicting_settings_are_reported(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    assert re.search(message, told(tmp_path, **sections))


def test_all_conflicts_are_listed_at_once(tmp_path: Path) -> None:
    training = {"schedule": "constant", "warmup_share": 0.1, "optimizer": "adam", "patience": 5}
    message = told(tmp_path, training=training, lora={"init": "pissa"}, base={"load_in_4bit": True})
    assert message.startswith("recipe tiny.yaml (4 problems):\n")
    for name in ("training.optimizer", "training.warmup_share", "lora.init", "training.patience"):
        assert f"\n  - {name}: " in message


def test_the_optimizers_are_transformers_own() -> None:
    from transformers.training_args import OptimizerNames

    assert set(OPTIMIZERS) <= {each.value for each in OptimizerNames}


def test_every_schedule_has_its_settings() -> None:
    schedules = TrainingSection.model_fields["schedule"].annotation.__args__  # type: ignore[union-attr]
    assert SCHEDULE_SETTINGS.keys() == set(schedules)


@pytest.mark.parametrize("name", SCHEDULE_SETTINGS)
def test_a_schedule_takes_the_settings_that_are_listed(name: str) -> None:
    from finetune.model.optimizer import learning_rates

    values = {"num_cycles": 2.0, "min_lr": 1e-5, "lr_end": 1e-5, "power": 2.0, "timescale": 5.0, "num_decay_steps": 3.0, "min_lr_ratio": 0.1}  # fmt: skip
    settings = {each: values[each] for each in SCHEDULE_SETTINGS[name] if each in values}
    training = TrainingSection.model_validate(
        {"schedule": name, "schedule_settings": settings, "warmup_share": 0, "learning_rate": 1e-3}
    )
    rates = learning_rates(training, 10)
    shares = [rates(step) for step in range(10)]
    assert all(0 <= share <= 1 for share in shares)
    assert len(set(shares)) > 1 or name.startswith("constant")


def test_the_lowest_learning_rate_of_a_schedule_is_the_one_that_was_asked_for() -> None:
    from finetune.model.optimizer import learning_rates

    training = TrainingSection.model_validate(
        {"schedule": "cosine_with_min_lr", "schedule_settings": {"min_lr": 1e-4}, "learning_rate": 1e-3}
    )
    assert learning_rates(training, 1000)(999) == pytest.approx(0.1, rel=1e-3)


def test_the_nearest_recipe_is_suggested() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'qwen3-0\.6': neither .*\. Did you mean 'qwen3-0\.6b'\?"):
        load_recipe("qwen3-0.6", [])
