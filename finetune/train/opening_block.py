"""The block that opens a run: what happened to the rows, what is trained on what, how long it takes, and where."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune.data.summary import DROPPED, Line, describe, format_columns
from finetune.estimate.estimate import Estimate
from finetune.model.backend import chosen_backend
from finetune.sizing.step_plan import epochs_text
from finetune.train.inputs import Inputs, limits_hit
from finetune.train.stop_conditions import CallLimits
from finetune.train.time_left import FIRST_STEPS
from gladstone import run_folder
from gladstone.machine.gpu import Device
from gladstone.machine.host import readable_bytes
from gladstone.report.durations import rough_duration

if TYPE_CHECKING:
    from finetune.model.trainable import Trainable
    from finetune.train.loop import Loop

FEW_ROWS = 50  # to train on
FEW_HELD_OUT = 30  # with fewer, noise moves their mean loss by more than most settings do
MANY_LEFT_OUT = 0.2  # of the rows that were read
NOT_DRAWN = "not drawn"  # the reason of rows that the recipe's settings leave out


@dataclass(frozen=True)
class OpeningBlock:
    """The content of the block, besides the loaded model and its loop; `notes` are sentences about the recipe.

    `device` is what the run computes on, with the driver and the build of torch.
    """

    inputs: Inputs
    estimate: Estimate | None
    limits: CallLimits
    notes: tuple[str, ...] = ()
    device: Device | None = None

    def text(self, trainable: "Trainable", loop: "Loop") -> str:
        """Render the block as aligned lines, without a final newline."""
        lines = [*self._training(loop), *self._machine(trainable, loop), *self._remarks(loop)]
        own = format_columns(lines)
        rows = (
            f"{describe(self.inputs.summary, self.inputs.out / run_folder.DATA)}\n" if self.inputs.summary.read else ""
        )
        return f"Run of {self.inputs.recipe.name}\n{rows}{own}"

    def _training(self, loop: "Loop") -> Iterator[Line]:
        sets, training = self.inputs.sets, self.inputs.recipe.training
        for count, what in limits_hit(sets, self.inputs.recipe.base.max_tokens):
            yield "tokens", count, what
        train = sets["train"]
        made_of = len(set(train.rows) or train.examples)
        parts = f" as {len(train.examples):,} examples" if made_of != len(train.examples) else ""
        yield "to train", made_of, f"rows{parts}; scored are {train.scored}"
        unit, epochs = "examples" if parts else "rows", epochs_text(loop.schedule.epochs)
        trained = f"{loop.schedule.rows_trained:,} {unit}"
        yield "steps", loop.total, f"of {training.rows_per_step} {unit}: {trained}, {epochs}"
        made = len(loop.history.steps)
        if made:
            left = max(0, loop.total - made)
            steps = "step" if made == 1 else "steps"
            yield "resumed", made, f"{steps} done, {left:,} remaining"
        held_out = {name: len(sets[name].examples) for name in ("validation", "test") if name in sets}
        if held_out.get("validation"):
            times = loop.schedule.validations
            before = "" if held_out.get("test") else "before and "
            often = "once" if times == 1 else f"{times:,} times"
            yield "validation", held_out["validation"], f"rows, measured {before}{often} while training"
        else:
            yield "validation", 0, "rows: the last step's adapter is kept, because the best one is unknown"
        if held_out.get("test"):
            yield "test", held_out["test"], "rows, measured before and after"
        else:
            by = "the validation loss" if held_out.get("validation") else "the training loss alone"
            yield "test", 0, f"rows: no held-out loss is measured; warnings rely on {by}"

    def _machine(self, trainable: "Trainable", loop: "Loop") -> Iterator[Line]:
        recipe, estimate = self.inputs.recipe, self.estimate
        weights = "in 4 bit (NF4)" if recipe.base.load_in_4bit else f"in {trainable.dtype}"
        kind = f"LoRA of rank {recipe.lora.rank} on {len(recipe.lora.targets)} kinds of layers"
        yield "base", None, f"{self.inputs.base.name} {weights}; {kind}"
        again = ", activations recomputed" if trainable.checkpointing else ""
        where = estimate.machine if estimate else trainable.device_kind
        if self.device is not None and self.device.gpu is not None:
            where = self.device.name
        yield "device", None, f"{where}: {trainable.device_kind} in {trainable.dtype}{again}"
        build = f"{self.device.facts.build}; " if self.device else ""
        yield "backend", None, f"{build}{chosen_backend(trainable)}"
        if estimate:
            fits = "" if estimate.fits else ": IT MAY NOT FIT (see finetune estimate, or --fit)"
            disk = sum(size for name, size in estimate.disk.items() if name in ("adapter", "checkpoints"))
            yield (
                "memory",
                None,
                (
                    f"about {readable_bytes(estimate.memory.peak)} at the peak, {readable_bytes(estimate.limit_bytes)} "
                    f"available{fits}; {readable_bytes(disk)} on disk"
                ),
            )
            yield "time", None, self._time(estimate, loop)
        yield "folder", None, str(self.inputs.out)

    def _time(self, estimate: Estimate, loop: "Loop") -> str:
        steps = loop.history.steps
        left = loop.total - len(steps)
        if steps:
            mean_s = sum(stats.step_s for stats in steps) / len(steps)
            return f"about {rough_duration(left * mean_s)} for the remaining steps, by the time of those done"
        made = min(left, left if self.limits.max_steps is None else self.limits.max_steps)
        later = f"; the first {FIRST_STEPS} steps measure it" if made > FIRST_STEPS else ""
        if estimate.times is None:
            return f"unknown{later}"
        share = left / loop.total if loop.total else 0.0
        if estimate.range_s is not None:
            least, most = (rough_duration(limit * share) for limit in estimate.range_s)
            return f"roughly {least} to {most} (by the GPU's data sheet{later})"
        total_s = estimate.times.step_s * left + estimate.times.evaluation_s
        return f"about {rough_duration(total_s)} (computed{later})"

    def _remarks(self, loop: "Loop") -> Iterator[Line]:
        if self.limits.max_steps is not None and self.limits.max_steps < loop.total - len(loop.history.steps):
            yield "limit", None, f"this call stops after {_steps(self.limits.max_steps)}; --resume continues"
        for note in self.notes:
            yield "note", None, note
        if self.device is not None and self.device.unused:
            yield "note", None, f"GPU not used: {self.device.unused}"
        for warning in self._warnings(loop):
            yield "WARNING", None, warning

    def _warnings(self, loop: "Loop") -> Iterator[str]:
        sets, training, summary = self.inputs.sets, self.inputs.recipe.training, self.inputs.summary
        rows = len(sets["train"].examples)
        if loop.schedule.rows_trained < rows:
            name = "epochs" if training.max_steps is None else "max_steps"
            yield (
                f"only {loop.schedule.rows_trained:,} of {rows:,} rows are trained: "
                f"training.{name}={getattr(training, name)} ends the run earlier. To train on "
                "all of them once: --set training.epochs=1."
            )
        untrained = sum(tokenized.too_long + tokenized.unscored for tokenized in sets.values())
        lost = summary.left_out - summary.dropped[NOT_DRAWN] + untrained
        if lost > MANY_LEFT_OUT * summary.read > 0:
            yield (
                f"{lost:,} of {summary.read:,} rows ({lost / summary.read:.0%}) are dropped; "
                f"{self.inputs.out / run_folder.DATA / DROPPED} has the reason for each."
            )
        if rows < FEW_ROWS:
            yield f"{rows:,} rows are few to train on; the model can learn little more than the form of the answers."
        held_out = {name: len(sets[name].examples) for name in ("validation", "test") if name in sets}
        few = [f"{count:,} {name}" for name, count in held_out.items() if 0 < count < FEW_HELD_OUT]
        if few:
            yield f"{' and '.join(few)} rows are too few to detect small differences."


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count:,} steps"
