"""Trainings on the way of a GPU, each beside plain transformers and PEFT on the same weights.

A program of its own, because its CPU passes for a GPU: `python -m tests.finetune.cuda_cases CAPABILITY FOLDER CASE…`
with cases such as `gemma3:on` writes one line of JSON for each case to stdout. `PLAIN` in place of the capability comes
first, in a process without Unsloth, whose patches of transformers would change what is compared.
"""

import json
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cuda_on_cpu import AMPERE, TURING, Card, install

TARGETS = {
    "flan-t5": ["q", "v"], "distilgpt2": ["c_attn", "c_proj"], "phi4": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
}  # fmt: skip
USUAL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ROWS = [("Is rest good?", "Yes, it is."), ("Tea?", "No.")]


@dataclass
class Case:
    """A family with a way of recomputing activations, its rows and its recipe."""

    family: str
    folder: Path
    checkpointing: str

    def __post_init__(self) -> None:
        from finetune.config.schema import Recipe
        from finetune.tokens.labeller import tokenize_all
        from gladstone.chat.messages import Conversation, Message
        from gladstone.commands.progress import Silent
        from gladstone.models.base_model import resolve_base
        from gladstone.models.tokenizer import load_tokenizer
        from tests.families import write_family
        from tests.finetune.resumed import QUESTION_ANSWER

        base = self.folder / self.family
        if not base.exists():
            write_family(self.family, base)
        self.base, self.tokenizer = resolve_base(str(base), Silent()), load_tokenizer(base)
        template = self.tokenizer.template(None if self.tokenizer.template_source else QUESTION_ANSWER)
        training = {
            "max_steps": 2, "batch_size": 2, "accumulation": 1, "optimizer": "adamw_torch", "learning_rate": 1e-3,
            "warmup_share": 0.0, "gradient_checkpointing": self.checkpointing, "checkpoint_steps": 1, "evaluations": 1,
        }  # fmt: skip
        self.recipe = Recipe.model_validate({
            "name": "on-a-gpu", "base": {"model": str(base), "max_tokens": 96, "load_in_4bit": False},
            "data": {"sources": [{"path": "rows.jsonl", "format": "qa"}]},
            "lora": {"rank": 4, "alpha": 8, "targets": TARGETS.get(self.family, USUAL)}, "training": training,
        })  # fmt: skip
        rows = [
            Conversation((Message("user", question), Message("assistant", answer)), f"rows.jsonl:{line}")
            for line, (question, answer) in enumerate(ROWS, 1)
        ]
        pairs = self.base.is_encoder_decoder
        self.examples = tokenize_all(rows, template, self.tokenizer, self.recipe.limits, pairs=pairs).examples

    def load(self) -> Any:
        """The model as a run loads it, with an adapter that does something."""

        from finetune.model.load import load_trainable

        trainable = load_trainable(self.base, self.recipe, self.tokenizer.padding_id, self.examples)
        give_adapter(trainable.model)
        return trainable

    def plain(self, half: str) -> tuple[float, dict[str, Any]]:
        """Loss and gradient of plain transformers and PEFT in float32, with the base's weights rounded to `half`."""
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

        from finetune.model.loss import PaddedForward

        pairs = self.base.is_encoder_decoder
        kind = AutoModelForSeq2SeqLM if pairs else AutoModelForCausalLM
        base = kind.from_pretrained(self.base.folder, local_files_only=True, dtype=torch.float32)
        for parameter in base.parameters():
            parameter.data = parameter.data.to(getattr(torch, half)).float()
        settings = self.recipe.lora.peft_settings
        model = get_peft_model(base, LoraConfig(fan_in_fan_out=self.family == "distilgpt2", **settings))
        give_adapter(model)
        tensors = PaddedForward(model, self.tokenizer.padding_id, encoder_decoder=pairs).batch(self.examples).tensors
        labels = tensors["labels"]
        if pairs:
            logits = model(**tensors).logits
        else:
            inputs = {name: tensor for name, tensor in tensors.items() if name != "labels"}
            logits, labels = model(**inputs).logits[:, :-1], labels[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        loss.backward()
        return float(loss.detach()), gradients(model, 1)


def give_adapter(model: Any) -> None:
    """An adapter that does something, the same wherever the model was loaded."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                width = 0.05 if ".lora_B." in name else 0.2
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * width)


def gradients(model: Any, scale: float) -> dict[str, Any]:
    """The gradients by name, float32, over the scale of the loss."""
    named = model.named_parameters()
    return {name: each.grad.float() / scale for name, each in named if each.grad is not None}


def loss_and_gradient(trainable: Any, examples: Sequence[Any], tokens: int = 0) -> tuple[float, dict[str, Any]]:
    """The loss of all rows and the gradient, as the training loop takes them.

    With `tokens` the gradient is taken as in a step of so many scored tokens, each of which counts the less.
    """
    scaler = trainable.make_scaler()
    trainable.model.zero_grad(set_to_none=True)
    batch = trainable.forward.batch(examples)
    with trainable.autocast():
        loss = trainable.forward.loss(batch, tokens or batch.target_tokens)
    scaler.scale(loss).backward()
    return float(loss.detach()), gradients(
        trainable.model, scaler.get_scale() * batch.target_tokens / (tokens or batch.target_tokens)
    )


def compared(found: dict[str, Any], expected: dict[str, Any]) -> tuple[float, float]:
    """The cosine of two gradients, and the relative difference."""
    import torch

    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    one, other = (torch.cat([grads[name].flatten().double() for name in sorted(grads)]) for grads in (found, expected))
    return float(one @ other / (one.norm() * other.norm())), float((one - other).norm() / other.norm())


def flags(model: Any) -> dict[str, Any]:
    """What generating changes: whether layers recompute, and marks on modules."""
    recomputing = {
        name: bool(each.gradient_checkpointing)
        for name, each in model.named_modules()
        if hasattr(each, "gradient_checkpointing")
    }
    marked = [name for name, each in model.named_modules() if "_flag_for_generation" in vars(each)]
    return {"recomputing": recomputing, "marked": marked, "training": all(each.training for each in model.modules())}


def half_of(case: Case, card: Card) -> str:
    """The dtype of the base's weights: T5 is trained in float32 everywhere."""
    if case.family == "flan-t5":
        return "float32"
    return "bfloat16" if card.capability >= AMPERE else "float16"


def run(case: Case, card: Card, work: Path) -> dict[str, Any]:
    """Everything that a run does, with the facts that the tests assert."""
    import torch

    from finetune.model.trainable import save_adapter
    from finetune.train import checkpoint as checkpoints
    from finetune.train.sample_answers import answer, prompts_of
    from finetune.train.stop_conditions import CallLimits
    from tests.finetune.looped import loop_over

    trainable = case.load()
    loss, gradient = loss_and_gradient(trainable, case.examples)
    plain = torch.load(work.parent / f"plain-{case.family}-{half_of(case, card)}.pt")
    cosine, difference = compared(gradient, plain[1])
    many = loss_and_gradient(trainable, case.examples, 16_384)
    before = flags(trainable.model)
    decode = case.tokenizer.decode
    answer(trainable, prompts_of(case.examples, 1, decode)[0], 3, decode)
    after = flags(trainable.model)
    again = loss_and_gradient(trainable, case.examples)
    trainable.model.zero_grad(set_to_none=True)

    def trained(name: str, *, checkpoint: Any = None, limits: Any = None, model: Any = None) -> Any:
        model = model or case.load()
        options = {"checkpoint": checkpoint, "limits": limits, "held_out": case.examples[1:]}
        loop = loop_over(model, case.examples, case.recipe, work / name, **options)
        try:
            return loop.run(), {
                key: each.detach().clone() for key, each in model.model.named_parameters() if each.requires_grad
            }
        finally:
            loop.close()

    whole, weights = trained("whole", model=trainable)
    trained("broken", limits=CallLimits(max_steps=1))
    saved = checkpoints.newest_whole(work / "broken", print)
    assert saved is not None
    resumed, same = trained("broken", checkpoint=saved[0])
    save_adapter(trainable, "base", work / "adapter")
    config = json.loads((work / "adapter" / "adapter_config.json").read_text())
    losses = [[stats.loss_nats_per_token for stats in ended.history.steps] for ended in (whole, resumed)]
    return {
        "device": trainable.device_kind, "dtype": str(trainable.model.dtype), "class": type(trainable.model.get_base_model()).__name__,
        "forced_float32": trainable.forced_float32, "scaled": trainable.make_scaler().is_enabled(),
        "loss": loss, "plain_loss": plain[0], "cosine": cosine, "difference": difference,
        "before": before, "after": after, "loss_again": again[0], "difference_again": compared(again[1], gradient)[1],
        "difference_many": compared(many[1], gradient)[1], "losses": losses[0], "resumed": losses[1],
        "weights_differ": max(float((weights[name] - same[name]).abs().max()) for name in weights),
        "targets": config["target_modules"], "wanted": case.recipe.lora.targets, "tensors": len(weights),
        "rows_of_embedding": trainable.model.get_input_embeddings().weight.shape[0], "vocabulary": len(case.tokenizer.hf),
        "finite": all(bool(torch.isfinite(each).all()) for each in weights.values()),
    }  # fmt: skip


def main() -> None:
    """Run the cases one after another; with PLAIN in place of a capability compute what they are compared with."""
    capability, folder, *names = sys.argv[1:]
    cards = {"7.5": Card(TURING), "8.0": Card(AMPERE)}
    if capability == "PLAIN":
        import torch

        for family in dict.fromkeys(name.partition(":")[0] for name in names):
            case = Case(family, Path(folder), "off")
            for half in {half_of(case, card) for card in cards.values()}:
                torch.save(case.plain(half), Path(folder) / f"plain-{family}-{half}.pt")
        return
    install(cards[capability])
    for name in names:
        family, _, checkpointing = name.partition(":")
        begin_s = time.process_time()
        work = Path(folder) / f"{family}-{checkpointing}-{capability}"
        try:
            facts = run(Case(family, Path(folder), checkpointing), cards[capability], work)
        except Exception as error:  # noqa: BLE001 - the test shows it
            facts = {"error": "".join(traceback.format_exception(error)[-12:])}
        print("\nCASE " + json.dumps({"case": name, "s": time.process_time() - begin_s, **facts}), flush=True)


if __name__ == "__main__":
    main()
