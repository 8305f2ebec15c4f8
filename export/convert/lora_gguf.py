"""Writes a LoRA adapter as its own GGUF, to be applied to the base's file.

llama.cpp applies one scale, alpha / rank, to a whole adapter, which is wrong for rsLoRA and alpha_pattern. So each B is
already scaled and alpha is 0: llama.cpp then applies no further scale.
"""

from pathlib import Path

from export.convert.convert import Conversion, run_converter
from export.merge.plan import MergePlan
from export.merge.updates import BiasUpdate, LowRankUpdate, TokenRows, Update
from gladstone.commands.progress import Progress
from gladstone.errors import UnsupportedError, listed

LORA = "-lora.gguf"  # suffix of the file's name


def pairs_of(plan: MergePlan) -> list[tuple[str, LowRankUpdate]]:
    """The low-rank updates by base tensor. Raises UnsupportedError listing the updates that need a merge."""
    found: dict[str, str] = {}
    pairs = []
    for name, updates in plan.updates.items():
        for update in updates:
            why = _inexpressible(update)
            if why:
                found.setdefault(why, name)
            elif isinstance(update, LowRankUpdate):
                pairs.append((name, update))
    reasons = [f"{name}: {why}" for why, name in found.items()]
    if plan.untied:
        reasons.append("the head was trained apart from the embedding that it shares with the base")
    if plan.sizes:
        rows = f"{plan.sizes.after:,} tokens, the base's {plan.sizes.before:,}"
        reasons.insert(0, f"the vocabulary has {rows}: an adapter file cannot change that")
    if reasons:
        raise UnsupportedError(
            listed("this adapter cannot be written as its own GGUF (merge it with `gladstone export gguf`)", reasons)
        )
    return pairs


def _inexpressible(update: Update) -> str | None:
    """Why an update cannot be written to an adapter GGUF; None if it can."""
    if isinstance(update, LowRankUpdate):
        if update.magnitude is not None:
            return "a DoRA has lengths besides the product of two matrices"
        if update.embedding:
            return "an update of the embedding would leave a tied head as it was"
        return "the base keeps it transposed: llama.cpp would compute another update" if update.conv1d else None
    kinds = {BiasUpdate: "a bias was trained", TokenRows: "rows of the embedding were trained"}
    return kinds.get(type(update), "was trained as a whole")


def write_lora(conversion: Conversion, out: Path, template: str, progress: Progress) -> None:
    """Write the adapter as the GGUF `out` in float32, with its chat template.

    Raises UnsupportedError for updates that such a file cannot hold, ToolError if the converter fails.
    """
    run_converter(conversion, out, progress, "Writing the adapter", {"template": template}, "export.convert.lora_child")
