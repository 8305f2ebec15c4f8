"""Who looks on while a training runs. No heavy library."""

from collections.abc import Mapping

from finetune.monitor.metrics_log import History, StepStats


class Callback:
    """Is told what the loop does; what a method raises ends the training, after a checkpoint."""

    def on_train_begin(self, history: History, total: int) -> None:
        """The loop begins, behind what an earlier call of the run has told; it ends after step `total`."""

    def on_step_end(self, stats: StepStats, total: int) -> None:
        """A step was made."""

    def on_validation_end(self, step: int, loss: float) -> None:
        """The validation loss was measured."""

    def on_sample(self, step: int, prompt: str, text: str) -> None:
        """The model has answered a fixed prompt."""

    def on_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """All answers to the fixed prompts were scored."""
