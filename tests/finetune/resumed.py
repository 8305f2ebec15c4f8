"""A training that stops at a step and resumes from its checkpoint, compared with an unbroken one."""

import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.config.schema import Recipe
from finetune.model.load import load_trainable
from finetune.model.trainable import Trainable
from finetune.monitor.callbacks import Callback
from finetune.monitor.metrics_log import History, StepStats
from finetune.tokens.examples import Example
from finetune.tokens.labeller import tokenize_all
from finetune.train import checkpoint as checkpoints
from finetune.train.stop_conditions import CallLimits, Interruption
from gladstone.commands.progress import Silent
from gladstone.formats import read_conversations
from gladstone.models.base_model import resolve_base
from gladstone.models.tokenizer import load_tokenizer
from tests.families import FAMILIES
from tests.finetune.looped import loop_over
from tests.tiny_models import medical_rows, tiny_recipe, write_rows_file

ROWS, STEPS = 10, 9  # with 4 rows in a step: three steps an epoch, the third with two rows
# validations after step 3, 5, 7 and 9
BREAKS = {
    "step 1": 1, "in mid-epoch": 2, "an epoch's border": 6, "before a validation": 4, "in a validation": 5,
    "after a validation": 7,
}  # fmt: skip
QUESTION_ANSWER = (
    "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}\nA:{% else %} {{ m.content }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Case:
    """A base's family and the settings that differ from the plain recipe."""

    family: str = "llama3"
    base: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


T5 = {"targets": ["q", "v"]}
CASES = {
    "LoRA, packed rows": Case(),
    "LoRA dropout 0.1": Case(lora={"dropout": 0.1}),
    "layers compiled, dropout 0.1": Case(lora={"dropout": 0.1}, training={"compile": "on"}),
    "answers at each validation": Case(lora={"dropout": 0.1}, training={"samples": 1, "sample_tokens": 8}),
    "QLoRA (NF4), dropout 0.1": Case(base={"load_in_4bit": True}, lora={"dropout": 0.1}),
    "gradient checkpointing, dropout 0.1": Case(lora={"dropout": 0.1}, training={"gradient_checkpointing": "on"}),
    "micro-batches of 64 tokens, dropout 0.1": Case(lora={"dropout": 0.1}, training={"batch_tokens": 64}),
    "T5 (padded, grouped by length), dropout 0.1": Case("flan-t5", lora={"dropout": 0.1, **T5}),
    "GPT-2, dropout 0.1": Case("distilgpt2", lora={"dropout": 0.1, "targets": ["c_attn"]}),
    "DoRA, rsLoRA": Case(lora={"dora": True, "rslora": True}),
    "PiSSA": Case(lora={"init": "pissa"}),
    "schedule cosine, warm-up": Case(training={"schedule": "cosine", "warmup_share": 0.3}),
    "schedule constant_with_warmup": Case(training={"schedule": "constant_with_warmup", "warmup_share": 0.3}),
    "optimizer adafactor": Case(training={"optimizer": "adafactor"}),
    "optimizer sgd": Case(training={"optimizer": "sgd", "learning_rate": 0.5}),
    "optimizer adamw_8bit": Case(training={"optimizer": "adamw_8bit"}),
    "LoRA+": Case(training={"loraplus_ratio": 16.0}),
}


@dataclass
class Subject:
    """A loaded case, whose adapter can be reset to its initial values."""

    trainable: Trainable
    examples: Sequence[Example]
    recipe: Recipe
    start: dict[str, Any]

    def set_back(self, *, spoilt: bool = False) -> None:
        """Reset the adapter, or spoil it, so that a value missing in a checkpoint is not restored by chance."""
        import torch

        with torch.no_grad():
            for name, parameter in self.trainable.model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.full_like(parameter, 0.5) if spoilt else self.start[name])


def load_case(case: Case, base: Path, work: Path) -> Subject:
    """A tiny model of the case's family with its rows."""
    rows = write_rows_file(work / "rows.jsonl", medical_rows()[:ROWS])
    training = {"max_steps": STEPS, "batch_size": 2, "accumulation": 2, "evaluations": 4, **case.training}
    lora = {"targets": ["q_proj", "v_proj", "down_proj"], **case.lora}
    recipe = Recipe.model_validate(tiny_recipe(base, rows, base=case.base, lora=lora, training=training))
    found = resolve_base(str(base), Silent())
    tokenizer = load_tokenizer(found.folder)
    template = tokenizer.template(QUESTION_ANSWER if FAMILIES[case.family].template is None else None)
    conversations = read_conversations(rows, "qa")
    examples = tokenize_all(conversations, template, tokenizer, recipe.limits, pairs=found.is_encoder_decoder).examples
    trainable = load_trainable(found, recipe, tokenizer.padding_id, examples)
    parameters = trainable.model.named_parameters()
    start = {name: each.detach().clone() for name, each in parameters if each.requires_grad}
    return Subject(trainable, examples, recipe, start)


def whole(subject: Subject, work: Path) -> History:
    """The unbroken training."""
    subject.set_back()
    loop = loop_over(subject.trainable, subject.examples, subject.recipe, work / "whole")
    loop.run()
    loop.close()
    return loop.history


class Interrupting(Callback):
    """Interrupts the run after a step, as Ctrl-C does."""

    def __init__(self, step: int, interruption: Interruption) -> None:
        self._step, self._interruption = step, interruption

    def on_step_end(self, stats: StepStats, total: int) -> None:
        if stats.step == self._step:
            self._interruption.caught = signal.SIGINT


def broken(subject: Subject, work: Path, where: str) -> History:
    """The training, stopped and resumed by another loop."""
    folder, step = work / "broken", BREAKS[where]
    shutil.rmtree(folder, ignore_errors=True)
    subject.set_back()
    interruption, limits = Interruption(), CallLimits(max_steps=step)
    callbacks = [Interrupting(step, interruption)] if where == "in a validation" else []
    loop = loop_over(
        subject.trainable, subject.examples, subject.recipe, folder,
        limits=CallLimits() if callbacks else limits, callbacks=callbacks,
    )  # fmt: skip
    reason = loop.run(interruption).reason
    loop.close()
    assert reason == ("Ctrl-C" if callbacks else f"--max-steps {step}")
    return _taken_up(subject, folder, step)


def _taken_up(subject: Subject, folder: Path, step: int) -> History:
    import torch

    subject.set_back(spoilt=True)
    torch.manual_seed(4711)
    found = checkpoints.newest_whole(folder, lambda told: None)
    assert found is not None
    assert found[0].step == step
    loop = loop_over(subject.trainable, subject.examples, subject.recipe, folder, checkpoint=found[0])
    loop.run()
    loop.close()
    return loop.history


def trained(subject: Subject) -> dict[str, Any]:
    """A copy of the adapter's tensors."""
    return {
        name: each.detach().clone()
        for name, each in subject.trainable.model.named_parameters()
        if each.requires_grad
    }  # fmt: skip


def largest_difference(first: History, second: History) -> float:
    """Of two histories' step losses, gradient norms and validation losses; they must be of the same steps."""
    pairs = list(_values(first)), list(_values(second))
    assert [name for name, _ in pairs[0]] == [name for name, _ in pairs[1]]
    return max(abs(one[1] - two[1]) for one, two in zip(*pairs, strict=True))


def _values(history: History) -> Iterator[tuple[str, float]]:
    for stats in history.steps:
        yield f"loss {stats.step}", stats.loss_nats_per_token
        yield f"norm {stats.step}", stats.grad_norm
        yield f"rate {stats.step}", stats.learning_rate
    for step, loss in history.validation:
        yield f"validation {step}", loss
