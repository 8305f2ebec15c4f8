"""Callbacks of the training loop: what the live view, the trackers and a sweep implement."""

from collections.abc import Mapping

from finetune.monitor.metrics_log import History, StepStats


class Callback:
    """Receives the events of the training loop. An exception from a method ends the training after a checkpoint."""

    def on_train_begin(self, history: History, total: int) -> None:
        """The loop starts and will end after step `total`; `history` holds what was logged before a resume."""

    def on_step_end(self, stats: StepStats, total: int) -> None:
        """An optimizer step is complete."""

    def on_validation_end(self, step: int, loss: float) -> None:
        """The validation loss was measured."""

    def on_sample(self, step: int, prompt: str, text: str) -> None:
        """The model answered a fixed prompt."""

    def on_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """The answers to all fixed prompts were scored."""
