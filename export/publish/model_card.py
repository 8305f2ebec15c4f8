"""The model card: sources, use, held-out results, files, training and proof.

Names huggingface_hub, whose `ModelCard` writes the YAML head for the Hub.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.convert.lora_gguf import LORA
from export.merge.plan import MERGED_ONTO, ONTO_SAID, Onto
from export.original.model import Training, serious_warnings
from export.original.rows import Rows
from export.original.sources import Source
from export.proof.check import Check
from export.proof.heldout import HeldOut, describe_mean
from export.publish.metadata import About
from gladstone.chat.messages import NO_MEDICAL_ADVICE
from gladstone.machine.host import readable_bytes
from gladstone.report.tables import Markdown, escape_markdown, markdown_table

NAME = "README.md"
UNKNOWN_LICENSE = "not stated: find out before you share this model"
UNKNOWN = "unknown"
LIMITS = f"""## Limits

{NO_MEDICAL_ADVICE}
{{measured}}
It has what its base and its data have: their errors, their biases, and their age."""


@dataclass(frozen=True)
class Card:
    """The content of a model card. `files` are paths by name; the first is the recommended one."""

    about: About
    training: Training
    rows: Rows
    held_out: Mapping[str, HeldOut]  # by model; empty without held-out rows
    proof: Mapping[str, Sequence[Check]]
    files: Mapping[str, Path]
    onto: Onto
    ollama: str | None  # why there is no Modelfile, if there is none
    vocabulary: str | None = None  # how it grew beyond the base's


def model_card(card: Card) -> str:
    """The text of README.md."""
    from huggingface_hub import ModelCard, ModelCardData

    about = card.about
    data = ModelCardData(
        language=list(about.languages) or None,
        license=about.license,
        library_name="gguf",
        pipeline_tag="text-generation",
        base_model=about.base.hub_id if about.base else None,
        datasets=[each.hub_id for each in about.datasets if each.hub_id] or None,
        tags=list(about.tags),
        model_name=about.name,
    )
    parts = (_title, _use, _results, _files, _training, _proof)
    body = "\n\n".join(["\n".join(part(card)) for part in parts] + [LIMITS.format(measured=card.rows.words.card)])
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def _title(card: Card) -> Iterable[str]:
    about = card.about
    yield f"# {about.name}"
    yield ""
    yield f"{_one_line(about.description).rstrip('.')}." if about.description else "A fine-tuned model."
    yield f"Made by {_one_line(about.author)}." if about.author else ""
    yield f"**{NO_MEDICAL_ADVICE}**"
    yield ""
    for warning in serious_warnings(card.training.facts):
        yield f"> **WARNING:** {_one_line(warning)}."
        yield ""
    yield markdown_table(
        ("", "name", "licence"),
        [
            ("this model", about.name, about.license or _no_license(card)),
            ("base model", *_base(about)),
            *(("data", _linked(each, "datasets/"), each.license or UNKNOWN_LICENSE) for each in about.datasets),
            *([("data", UNKNOWN, UNKNOWN)] if "data" in card.training.unknown else []),
        ],
    )


def _base(about: About) -> tuple[str, str]:
    return (_linked(about.base, ""), about.base.license or UNKNOWN_LICENSE) if about.base else (UNKNOWN, UNKNOWN)


def _no_license(card: Card) -> str:
    return f"{UNKNOWN}: find out before you share this model" if "licence" in card.training.unknown else UNKNOWN_LICENSE


def _use(card: Card) -> Iterable[str]:
    model = next(iter(card.files))
    lora = next((f" --lora {name}" for name in card.files if name.endswith(LORA)), "")
    yield "## Use"
    yield ""
    yield "```sh"
    yield f"runtime chat {model}{lora}          # pip install gladstone; nothing leaves the machine"
    yield f"llama-cli -m {model}{lora} --jinja   # llama.cpp"
    if card.ollama is None:
        yield f"ollama create {card.about.name.lower()} -f Modelfile && ollama run {card.about.name.lower()}"
    yield "```"
    if card.ollama is not None:
        yield ""
        yield f"There is no Modelfile for Ollama: {card.ollama}."


def _results(card: Card) -> Iterable[str]:
    yield f"## Results on {'given' if card.rows.kind == 'given' else 'held-out'} rows"
    yield ""
    if not card.held_out:
        yield f"Not measured: {card.rows.words.absent}"
        return
    first = next(iter(card.held_out.values()))
    which = f"{len(first.nats)} answers that were {card.rows.kind.replace('held out', 'not trained on')}"
    yield f"-log p of {which} ({sum(first.tokens):,} tokens), by llama.cpp;"
    yield "in brackets the 95 % interval over rows."
    yield ""
    rows = []
    for name, loss in card.held_out.items():
        found = loss.as_json()
        mean, interval = found["nats_per_token"], found["interval"]
        rows.append((name, describe_mean((mean, *interval)), f"{math.exp(min(mean, 700.0)):.2f}"))
    yield markdown_table(("model", "nats a token", "perplexity"), rows)
    names = list(card.held_out)
    if len(names) == 2:
        less = card.held_out[names[0]].less(card.held_out[names[1]])
        yield ""
        yield f"{names[0]} less {names[1]}, row by row: {describe_mean(less)} nats a token."


def _files(card: Card) -> Iterable[str]:
    costs = {
        (model, check.name): check.measured
        for model, checks in card.proof.items()
        for check in checks
        if "perplexity_ratio" in check.measured
    }
    yield "## Files"
    yield ""
    yield "The cost of quantising, against the file of 16 or 32 bit that it was made from,"
    yield f"on {card.rows.words.rows}:"
    yield ""
    rows = []
    for name, path in card.files.items():
        cost = next((found for (model, quant), found in costs.items() if name.startswith(f"{model}-{quant}")), None)
        rows.append((name, readable_bytes(path.stat().st_size), *_cost(cost)))
    yield markdown_table(("file", "size", "KL, nats", "same best token", "perplexity ×"), rows)


def _cost(measured: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if measured is None:
        return "", "", ""
    low, high = measured["perplexity_ratio_interval"]
    return (
        f"{measured['mean_kl_nats']:.1e}",
        f"{measured['top1_agreement']:.1%}",
        describe_mean((measured["perplexity_ratio"], low, high)),
    )


def _training(card: Card) -> Iterable[str]:
    facts = card.training.facts
    rows = list(card.training.settings)
    if "training settings" in card.training.unknown:
        rows.append(("all other settings" if rows else "settings", UNKNOWN))
    over = "applied to" if any(name.endswith(LORA) for name in card.files) else MERGED_ONTO
    if card.training.method and MERGED_ONTO not in dict(rows):
        rows.append((over, ONTO_SAID[card.onto]))
    if card.vocabulary:
        rows.append(("vocabulary", card.vocabulary))
    counts = facts.get("rows") or {}
    if counts:
        rows.append(("rows", ", ".join(f"{count:,} {name}" for name, count in counts.items())))
    if "steps" in facts:
        rows.append(("steps", f"{facts['steps']:,}"))
    if "held_out_loss_after" in facts:
        before, after = facts["held_out_loss_before"], facts["held_out_loss_after"]
        losses = "not measured: the run has no test rows"
        if before is not None and after is not None:
            losses = f"{before:.3f} → {after:.3f} nats a token"
        rows.append(("held-out loss while training", losses))
    yield "## Training"
    yield ""
    yield markdown_table(("", ""), rows)


def _proof(card: Card) -> Iterable[str]:
    yield "## Proof"
    yield ""
    yield "Each file was compared with the trained model; `proof.txt` and `proof.json` have all measurements."
    for name, checks in card.proof.items():
        yield ""
        yield f"{name}:"
        yield ""
        for check in checks:
            yield f"- {check.verdict} {_one_line(check.name)}: {_one_line(check.detail)}"


def _linked(source: Source, kind: str) -> str:
    if not source.hub_id:
        return source.name
    return Markdown(f"[{escape_markdown(source.hub_id)}](https://huggingface.co/{kind}{source.hub_id})")


def _one_line(text: str) -> str:
    return " ".join(text.split())
