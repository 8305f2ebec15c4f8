"""A LoRA adapter as a GGUF of its own, to be laid over the base's file.

llama.cpp knows one strength for a whole adapter and computes it as alpha/rank, which is wrong for rsLoRA and for
modules with an alpha of their own. So each B carries its own strength, and alpha is 0: llama.cpp then applies no more.
"""

from pathlib import Path

from export.convert.convert import Conversion, run_converter
from export.merge.plan import MergePlan
from export.merge.updates import BiasUpdate, LowRankUpdate, TokenRows, Update
from gladstone.commands.progress import Progress
from gladstone.errors import UnsupportedError, listed

LORA = "-lora.gguf"  # how the file's name ends


def pairs_of(plan: MergePlan) -> list[tuple[str, LowRankUpdate]]:
    """The pairs of matrices by the base's tensor. Raises UnsupportedError that names all that only a merge can keep."""
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
        reasons.insert(0, f"the vocabulary has {rows}: a file laid over the base's cannot change that")
    if reasons:
        raise UnsupportedError(
            listed("this adapter cannot be a GGUF of its own (merge it with `gladstone export gguf`)", reasons)
        )
    return pairs


def _inexpressible(update: Update) -> str | None:
    """Why an update has no place in such a file."""
    if isinstance(update, LowRankUpdate):
        if update.magnitude is not None:
            return "a DoRA has lengths besides the product of two matrices"
        if update.embedding:
            return "an update of the embedding would leave a tied head as it was"
        return "the base keeps it transposed: llama.cpp would compute another update" if update.conv1d else None
    kinds = {BiasUpdate: "a bias was trained", TokenRows: "rows of the embedding were trained"}
    return kinds.get(type(update), "was trained as a whole")


def write_lora(conversion: Conversion, out: Path, template: str, progress: Progress) -> None:
    """Write `out` whole: the conversion's adapter in float32, with the template that it was trained with.

    Raises UnsupportedError for what cannot be expressed, ToolError if the converter fails.
    """
    run_converter(conversion, out, progress, "Writing the adapter", {"template": template}, "export.convert.lora_child")
