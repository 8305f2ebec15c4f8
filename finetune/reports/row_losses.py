"""The base model's loss on each row, which reveals outliers. Names torch, transformers."""

from collections.abc import Callable, Sequence
from typing import Any

from finetune.reports.data_preview import Previewer
from finetune.tokens.examples import IGNORED
from gladstone.chat.messages import Conversation
from gladstone.errors import DataError

SHOWN = 8


def row_losses(
    previewer: Previewer, rows: Sequence[Conversation], on_part: Callable[[float], None]
) -> list[dict[str, Any]]:
    """The rows with the highest and the lowest mean loss (nats per scored token), highest first."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(previewer.base.folder, local_files_only=True, dtype=torch.float32)
    scored: list[dict[str, Any]] = []
    for number, row in enumerate(rows, 1):
        try:
            examples = previewer.labeller.untruncated(row)
        except DataError:
            continue
        if not examples:
            continue
        example = examples[-1]  # of several examples of a row, the one with its last answer
        limit = previewer.recipe.base.max_tokens
        ids, labels = (torch.tensor([part[:limit]]) for part in (example.input_ids, example.labels))
        if (labels[:, 1:] != IGNORED).sum() == 0:
            continue
        with torch.no_grad():
            logits = model(ids).logits[0, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=IGNORED)
        scored.append(
            {"source": row.source.rpartition("/")[2], "loss": round(float(loss), 3), "answer": row.answer.content[:160]}
        )
        on_part(number / len(rows))
    scored.sort(key=lambda each: -each["loss"])
    return scored if len(scored) <= 2 * SHOWN else [*scored[:SHOWN], *scored[-SHOWN:]]
