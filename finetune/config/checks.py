"""Settings of a recipe that contradict each other or would silently have no effect, found before anything is loaded."""

import difflib
import importlib.util
from collections.abc import Iterator

from finetune.config.schema import LoraSection, Recipe, TrainingSection

# those of transformers' OptimizerNames that can train an adapter alone and whose state a checkpoint can hold
OPTIMIZERS = (
    "adafactor", "adagrad", "adamw_8bit", "adamw_anyprecision", "adamw_bnb_8bit", "adamw_torch",
    "adamw_torch_fused", "ademamix", "ademamix_8bit", "grokadamw", "lion_32bit", "lion_8bit",
    "paged_adamw_32bit", "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit",
    "paged_lion_8bit", "rmsprop", "rmsprop_bnb", "rmsprop_bnb_32bit", "rmsprop_bnb_8bit", "schedule_free_adamw",
    "schedule_free_radam", "schedule_free_sgd", "sgd", "stable_adamw",
)  # fmt: skip
PACKAGES = {
    "adamw_anyprecision": "torchdistx", "grokadamw": "grokadamw", "stable_adamw": "optimi",
    "schedule_free_adamw": "schedulefree", "schedule_free_radam": "schedulefree", "schedule_free_sgd": "schedulefree",
}  # fmt: skip
# the arguments of transformers' schedules, besides steps and warm-up
SCHEDULE_SETTINGS = {
    "linear": (), "constant": (), "constant_with_warmup": (),
    "cosine": ("num_cycles",), "cosine_with_restarts": ("num_cycles",),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate", "num_cycles"),
    "polynomial": ("lr_end", "power"), "inverse_sqrt": ("timescale",),
    "warmup_stable_decay": ("num_decay_steps", "num_stable_steps", "min_lr_ratio", "num_cycles"),
}  # fmt: skip


def find_conflicts(recipe: Recipe) -> list[str]:
    """Return every conflict between settings, as `field: what is wrong, and what to do`."""
    return [*_optimizer(recipe.training), *_schedule(recipe.training), *_adapter(recipe.lora, recipe), *_judged(recipe)]


def _optimizer(training: TrainingSection) -> Iterator[str]:
    if training.optimizer not in OPTIMIZERS:
        near = difflib.get_close_matches(training.optimizer, OPTIMIZERS, n=3) or OPTIMIZERS
        yield f"training.optimizer: no optimizer {training.optimizer!r} (similar: {', '.join(near)})."
    package = PACKAGES.get(training.optimizer)
    if package and importlib.util.find_spec(package) is None:
        yield f"training.optimizer: {training.optimizer} needs the package {package}, which is not installed."


def _schedule(training: TrainingSection) -> Iterator[str]:
    name, settings = training.schedule, training.schedule_settings
    if name == "constant" and training.warmup_share > 0:
        yield (
            f"training.warmup_share: the schedule 'constant' has no warm-up, found {training.warmup_share:g}. Set "
            "training.schedule=constant_with_warmup or training.warmup_share=0."
        )
    known = SCHEDULE_SETTINGS[name]
    for setting in sorted(settings.keys() - set(known)):
        yield (
            f"training.schedule_settings: the schedule {name!r} does not take {setting!r}"
            + (f"; it takes {', '.join(known)}." if known else ".")
        )
    if name == "cosine_with_min_lr" and ("min_lr" in settings) == ("min_lr_rate" in settings):
        yield "training.schedule_settings: the schedule 'cosine_with_min_lr' needs either min_lr or min_lr_rate."
    if name == "warmup_stable_decay" and "num_decay_steps" not in settings:
        yield "training.schedule_settings: the schedule 'warmup_stable_decay' needs num_decay_steps."
    if name == "polynomial" and settings.get("lr_end", 0) >= training.learning_rate:
        yield "training.schedule_settings: lr_end must be smaller than training.learning_rate."


def _adapter(lora: LoraSection, recipe: Recipe) -> Iterator[str]:
    if lora.init.startswith("pissa") and recipe.base.load_in_4bit:
        yield (
            f"lora.init: {lora.init!r} changes the base's weights, which 4 bit cannot represent. "
            "Set base.load_in_4bit=false or another lora.init."
        )
    if lora.init == "orthogonal" and lora.rank % 2:
        yield f"lora.init: 'orthogonal' needs an even lora.rank, found {lora.rank}."
    if len(set(lora.targets)) < len(lora.targets):
        yield "lora.targets: a layer is named twice."


def _judged(recipe: Recipe) -> Iterator[str]:
    training = recipe.training
    if not recipe.data.has("validation"):
        if training.patience is not None:
            yield (
                f"training.patience: {training.patience} validations without a lower loss cannot occur with "
                "data.validation=0. Set training.patience=null or name validation rows."
            )
        if training.samples:
            yield (
                f"training.samples: {training.samples} validation rows cannot be answered with data.validation=0. "
                "Set training.samples=0 or name validation rows."
            )
    if training.patience is not None and training.patience >= training.evaluations:
        yield (
            f"training.patience: {training.patience} validations without a lower loss cannot occur among "
            f"training.evaluations={training.evaluations}. Lower patience or raise evaluations."
        )
