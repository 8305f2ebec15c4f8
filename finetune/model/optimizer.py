"""The optimizer, by its transformers name, and the learning rate of every step. Names torch, transformers, peft."""

import math
from collections.abc import Callable
from typing import Any

from finetune.config.schema import TrainingSection
from gladstone.errors import UnsupportedError


def make_optimizer(model: Any, training: TrainingSection) -> Any:
    """Return the optimizer of the trained parameters; with LoRA+ the factors B have their own learning rate.

    Raises UnsupportedError if the optimizer's package does not work on this machine.
    """
    from transformers import Trainer, TrainingArguments
    from transformers.training_args import OptimizerNames

    try:
        arguments = TrainingArguments(
            output_dir=".",  # nothing is written: only the optimizer's class and arguments are needed
            optim=training.optimizer if training.optimizer.startswith("adamw_torch") else "adamw_torch",
            learning_rate=training.learning_rate,
            weight_decay=training.weight_decay,
            use_cpu=model.device.type == "cpu",
            report_to="none",
        )
        if not training.optimizer.startswith(
            "adamw_torch"
        ):  # there Unsloth chooses the faster of two equivalent implementations
            # set afterwards: Unsloth would silently replace other optimizers on a CPU, where bitsandbytes works
            arguments.optim = OptimizerNames(training.optimizer)
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        settings["weight_decay"] = training.weight_decay
        if training.loraplus_ratio is not None:
            from peft.optimizers import create_loraplus_optimizer

            return create_loraplus_optimizer(model, kind, loraplus_lr_ratio=training.loraplus_ratio, **settings)
        return kind([parameter for parameter in model.parameters() if parameter.requires_grad], **settings)
    except (ImportError, ValueError, NotImplementedError, RuntimeError) as error:
        raise UnsupportedError(f"training.optimizer: {training.optimizer} does not work here: {error}") from error


def learning_rates(training: TrainingSection, steps: int) -> Callable[[int], float]:
    """Return the function from a step, counted from 0, to the share of the peak learning rate.

    It is transformers' schedule, shifted by one step: neither the first step of a warm-up nor the last step of a decay
    has a learning rate of 0.
    """
    import torch
    from transformers import get_scheduler

    unused = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=training.learning_rate)
    schedule = get_scheduler(
        training.schedule,
        unused,
        num_warmup_steps=math.ceil(steps * training.warmup_share),
        num_training_steps=steps + 1,
        scheduler_specific_kwargs=dict(training.schedule_settings),
    )
    share = schedule.lr_lambdas[0]
    return lambda number: float(share(number + 1))
