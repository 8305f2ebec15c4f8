"""`runtime info`: what a model file contains, and whether it is the file that its manifest describes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gladstone.machine.host import readable_bytes
from gladstone.report.terminal import visible
from gladstone.strict_json import json_text
from runtime.commands.console import tolerate_narrow_encodings
from runtime.commands.options import model_argument
from runtime.trust.load_check import check_loadable
from runtime.trust.provenance import Provenance, check_provenance

if TYPE_CHECKING:
    from gladstone.gguf.header import GgufInfo

TEMPLATE_LINES = 6


@click.command()
@model_argument
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(model: Path, as_json: bool) -> None:
    """Show architecture, size, quantisation, context, special tokens and template; check manifest and proof.

    A file that differs from the manifest beside it is an error. For a GGUF without a model, such as an adapter or an
    importance matrix, it shows what the file is and what it is for.
    """
    from gladstone.gguf.header import OtherKindError, read_info

    tolerate_narrow_encodings()
    try:
        facts = read_info(model)
    except OtherKindError:
        _show_contents(model, as_json=as_json)
        return
    provenance = check_provenance(facts)
    if not provenance.is_verified:
        check_loadable(model, vocab_only=True)
    special = read_special_tokens(model)
    if as_json:
        click.echo(json_text(_as_json(facts, special, provenance), indent=2))
    else:
        click.echo(visible(render_info(facts, special, provenance)))


def _show_contents(path: Path, *, as_json: bool) -> None:
    from runtime.commands.contents import read_contents, render_contents

    contents = read_contents(path)
    click.echo(json_text(contents, indent=2) if as_json else visible(render_contents(contents)))


def read_special_tokens(path: Path) -> dict[str, tuple[int, str]]:
    """Id and text of BOS, EOS and EOT, those that the vocabulary has, as llama.cpp reads it."""
    from gladstone.llamacpp.model import Model

    with Model(path, vocab_only=True) as model:
        ids = {"bos": model.bos, "eos": model.eos, "eot": model.eot}
        return {name: (token, model.token_text(token)) for name, token in ids.items() if token >= 0}


def render_info(facts: "GgufInfo", special: dict[str, tuple[int, str]], provenance: Provenance) -> str:
    """Render the facts as lines of text."""
    types = ", ".join(f"{count} {name}" for name, count in facts.tensor_types.items())
    proofs = {None: "no proof", True: "passed", False: "FAILED: this file differs from the model that was trained"}
    bits = 8 * facts.size_bytes / max(1, facts.parameters)
    stage = f" (made by {provenance.stage}: size, sha256 and template as recorded)" if provenance.stage else ""
    parts = f" in {len(facts.parts)} parts" if len(facts.parts) > 1 else ""
    rows = {
        "file": str(facts.path),
        "architecture": facts.architecture,
        "name": facts.name or "none",
        "parameters": f"{facts.parameters:,}",
        "size": f"{readable_bytes(facts.size_bytes)} ({bits:.2f} bits a weight){parts}",
        "quantisation": f"{facts.quantisation} (tensors: {types})",
        "context": _context(facts),
        "vocabulary": f"{facts.vocabulary:,} tokens",
        "special tokens": ", ".join(f"{name.upper()} {token} {text}" for name, (token, text) in special.items())
        or "none",
        "manifest": provenance.manifest + stage,
        "proof": proofs[provenance.proof_passed],
        "template": facts.template_sha256 or "none: give one with --chat-template",
    }
    if _asks_for_date(facts):
        trained = f"; trained with {provenance.template_date}" if provenance.template_date else ""
        rows["date"] = f"the template writes today's date{trained}"
    lines = [f"{name:<15} {value}" for name, value in rows.items()]
    template = (facts.template or "").splitlines()
    lines += [f"  | {line[:110]}{'…' if len(line) > 110 else ''}" for line in template[:TEMPLATE_LINES]]
    if len(template) > TEMPLATE_LINES:
        lines.append(f"  | … {len(template) - TEMPLATE_LINES} more lines")
    return "\n".join(lines)


def _context(facts: "GgufInfo") -> str:
    if facts.claimed_tokens == facts.context_tokens:
        return f"{facts.context_tokens:,} tokens"
    return f"{facts.claimed_tokens:,} tokens declared, of which {facts.context_tokens:,} can be used"


def _asks_for_date(facts: "GgufInfo") -> bool:
    from gladstone.chat.template import CLOCK

    return CLOCK in (facts.template or "")


def _as_json(facts: "GgufInfo", special: dict[str, tuple[int, str]], provenance: Provenance) -> dict[str, Any]:
    return {
        "file": str(facts.path),
        "architecture": facts.architecture,
        "name": facts.name,
        "parameters": facts.parameters,
        "size_bytes": facts.size_bytes,
        "quantisation": facts.quantisation,
        "tensor_types": facts.tensor_types,
        "context_tokens": facts.context_tokens,
        "claimed_tokens": facts.claimed_tokens,
        "vocabulary": facts.vocabulary,
        "special_tokens": {name: {"id": token, "text": text} for name, (token, text) in special.items()},
        "template": facts.template,
        "template_sha256": facts.template_sha256,
        "template_writes_date": _asks_for_date(facts),
        "template_trained_date": provenance.template_date,
        "manifest": provenance.manifest,
        "manifest_stage": provenance.stage,
        "proof_passed": provenance.proof_passed,
    }
