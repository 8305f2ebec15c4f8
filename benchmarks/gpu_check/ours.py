"""Our side: the measurements of a family in one precision, each by our own functions. Names torch, safetensors."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import device
from benchmarks.gpu_check.limit import limited_memory, refused_tokens
from benchmarks.gpu_check.results import CannotRunError
from benchmarks.gpu_check.runs import Runs
from benchmarks.gpu_check.side import serve
from benchmarks.gpu_check.subject import WAYS, Subject, compared
from finetune.estimate.estimate import estimate_tokenized
from finetune.model.trainable import Trainable
from finetune.monitor.metrics_log import History
from finetune.tokens.examples import Example
from finetune.train.job import OUT_OF_MEMORY
from finetune.train.sample_answers import Prompt, answer

FLAGS = ("training", "gradient_checkpointing", "_flag_for_generation")
STEPS, SPEED_STEPS = 10, 6
PROMPT_TOKENS, ANSWER_TOKENS = 12, 8


class Ours:
    """The orders of our side."""

    def __init__(self, settings: dict[str, Any]) -> None:
        folder = Path(settings["folder"])
        self._subject = Subject(settings["family"], settings["precision"], folder, tiny=settings["tiny"])
        self._runs = Runs(self._subject)
        self._timed: Trainable | None = None

    def answer(self, order: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Carry out an order: a measurement of this class or of its runs."""
        made: Callable[..., dict[str, Any]] = getattr(self if hasattr(self, order) else self._runs, order)
        if order == "turn":
            return made(**arguments)
        self.forget()
        try:
            return made(**arguments)
        finally:
            self._subject.forget()  # the other side needs the memory

    def forget(self) -> dict[str, Any]:
        """Release the model."""
        self._timed = None
        self._subject.forget()
        return {}

    def nf4(self) -> dict[str, Any]:
        """How many layers are 4-bit, before and after a step, and the bytes of their weights."""
        subject = self._subject
        if not subject.four_bit:
            raise CannotRunError("needs a GPU: on the processor Unsloth's CUDA classes hold 16 bit")
        examples = subject.rows(4, 128)
        trainable = subject.load(examples)
        before = four_bit_layers(trainable.model)
        subject.train(trainable, examples, subject.recipe(max_steps=1))
        return {"before": before, "after": four_bit_layers(trainable.model)}

    def save(self) -> dict[str, Any]:
        """The folder of the adapter that both sides begin with."""
        subject = self._subject
        if not (subject.folder / "adapter").exists():
            subject.save_adapter(subject.load(subject.rows(4, 128)))
        return {"adapter": str(subject.folder / "adapter")}

    def gradient(self) -> dict[str, Any]:
        """Loss and gradient of rows of different lengths; the gradient goes to a file, as does the adapter."""
        from safetensors.torch import save_file

        subject, examples = self._subject, self._subject.rows(4, 128, even=False)
        trainable = subject.load(examples)
        folder = subject.save_adapter(trainable)
        history, gradient = subject.gradient(trainable, examples)
        path = subject.folder / f"gradient-{subject.precision}.safetensors"
        save_file(gradient, path)
        loss = history.steps[-1].loss_nats_per_token
        return {"loss": loss, "gradient": str(path), "adapter": str(folder), "dtype": trainable.dtype}

    def steps(self) -> dict[str, Any]:
        """The losses of ten steps on the same rows, and how many updates were made before each."""
        subject, examples = self._subject, self._subject.rows(8, 128, even=False)
        trainable = subject.load(examples)
        folder = subject.save_adapter(trainable)
        history = subject.train(trainable, examples, subject.recipe(batch_size=8, max_steps=STEPS))
        skipped = [stats.step for stats in history.steps if stats.skipped]
        updates = [step - 1 - sum(other < step for other in skipped) for step in range(1, STEPS + 1)]
        losses = [stats.loss_nats_per_token for stats in history.steps]
        return {"losses": losses, "updates": updates, "skipped": len(skipped), "adapter": str(folder)}

    def checkpointing(self) -> dict[str, Any]:
        """Peak memory and gradient of each way of checkpointing, the gradient compared with that of none."""
        subject, examples = self._subject, self._subject.rows(4, 1024)
        ways = [way for way in WAYS if way != "unsloth" or not subject.family.encodes]
        peaks, gradients = {}, {}
        for way in ways:
            trainable = subject.load(examples, way)
            _, gradients[way] = subject.gradient(trainable, examples)
            _, peaks[way] = self._peak(trainable, examples)  # the first step made buffers that stay
        differences = {way: compared(gradients[way], gradients["off"]) for way in ways[1:]}
        return {"peaks": peaks, "differences": differences}

    def _peak(self, trainable: Trainable, examples: Sequence[Example], held: int | None = None) -> tuple[int, int]:
        """Bytes held before a step (or `held`), and what the step takes beyond; on the processor, what it saves."""
        import torch

        if not self._subject.on_gpu:
            batch = trainable.forward.batch(examples)

            def forward() -> None:
                with trainable.autocast():
                    trainable.forward.loss(batch, 1)

            return 0, device.saved_bytes(forward)
        for parameter in trainable.model.parameters():
            parameter.grad = None
        held = int(torch.cuda.memory_allocated()) if held is None else held
        return held, device.peak_bytes(lambda: self._subject.gradient(trainable, examples)) - held

    def sampling(self) -> dict[str, Any]:
        """What a sampled answer changes: flags of modules, loss, gradient and memory of the next step."""
        subject, examples = self._subject, self._subject.rows(4, 512)
        trainable = subject.load(examples, "standard" if subject.family.encodes else "unsloth")
        history, gradient = subject.gradient(trainable, examples)
        flags, (held, peak) = flags_of(trainable.model), self._peak(trainable, examples)
        ids = examples[0].input_ids
        text = answer(trainable, Prompt(ids[:PROMPT_TOKENS], "", "", ids[-1]), ANSWER_TOKENS, str)
        left = sorted(name for name, value in flags_of(trainable.model).items() if flags.get(name) != value)
        _, peak_after = self._peak(trainable, examples, held)
        after, gradient_after = subject.gradient(trainable, examples)
        losses = [each.steps[-1].loss_nats_per_token for each in (history, after)]
        said = {"flags": left, "peaks": [peak, peak_after], "losses": losses, "answer": text}
        return said | compared(gradient_after, gradient)

    def out_of_memory(self) -> dict[str, Any]:
        """A step that does not fit is redone in smaller micro-batches: how often, and how far its gradient is off."""
        subject, examples = self._subject, self._subject.rows(8, 512)
        trainable = subject.load(examples)
        _, whole = subject.gradient(trainable, examples)
        half = len(examples) // 2
        limited = refused_tokens(trainable.model, half * len(examples[0].input_ids))
        if subject.on_gpu:
            limited = limited_memory(
                lambda: subject.gradient(trainable, examples), lambda: subject.gradient(trainable, examples[:half])
            )
        with limited as limit:
            history, redone = subject.gradient(trainable, examples)
        events = [event for event in history.events if event["kind"] == OUT_OF_MEMORY]
        return {"redone": len(events), "limit": limit} | compared(redone, whole)

    def estimate(self) -> dict[str, Any]:
        """Estimated and measured bytes of a step, activations kept and recomputed."""
        import torch

        subject, examples = self._subject, self._subject.rows(4, 1024)
        if not subject.on_gpu:
            raise CannotRunError("needs a GPU: there is no count of what is allocated on the processor")
        found = {}
        for way in ("off", "standard" if subject.family.encodes else "unsloth"):
            subject.forget()
            torch.cuda.reset_peak_memory_stats()
            recipe = subject.recipe(gradient_checkpointing="off" if way == "off" else "on", max_steps=2)
            memory = estimate_tokenized(recipe, subject.base, {"train": examples, "validation": (), "test": ()}).memory
            subject.train(subject.load(examples, way), examples, recipe)
            torch.cuda.synchronize()
            # the CUDA context, which the estimate counts as the process, is not allocated by torch
            found[way] = [memory.peak - memory.process, int(torch.cuda.max_memory_allocated())]
        return {"bytes": found}

    def turn(self) -> dict[str, Any]:
        """A turn of a race: seconds of each step but the first, the tokens of one, and the peak memory."""
        subject = self._subject
        examples = subject.rows(4, 512)
        if self._timed is None:
            self._timed = subject.load(examples)
        trainable, histories = self._timed, list[History]()
        recipe = subject.recipe(max_steps=SPEED_STEPS)
        peak = device.peak_bytes(lambda: histories.append(subject.train(trainable, examples, recipe)))
        steps = histories[0].steps
        return {"seconds": [stats.step_s for stats in steps[1:]], "tokens": steps[0].tokens, "peak": peak}


def four_bit_layers(model: Any) -> dict[str, Any]:
    """The number and bytes of NF4 layers, and how many linear layers of the base beside the head are none."""
    import torch
    from bitsandbytes.nn import Linear4bit

    counts = {"nf4": 0, "bytes": 0, "other": 0}
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):  # PEFT's layer of the same name is none
            kind = getattr(getattr(module.weight, "quant_state", None), "quant_type", None)
            counts["nf4" if kind == "nf4" and module.weight.element_size() == 1 else "other"] += 1
            counts["bytes"] += module.weight.nbytes
        elif type(module) is torch.nn.Linear and "lora_" not in name and not name.endswith("lm_head"):
            counts["other"] += 1
    return counts


def flags_of(model: Any) -> dict[str, Any]:
    """What sampling may leave behind, by the names of the modules."""
    flags = {
        f"{name}.{flag}": getattr(module, flag)
        for name, module in model.named_modules()
        for flag in FLAGS
        if flag in vars(module)
    }
    flags |= {f"{name}.requires_grad": each.requires_grad for name, each in model.named_parameters()}
    return flags | {"config.use_cache": getattr(model.config, "use_cache", None)}


if __name__ == "__main__":
    serve(Ours)
