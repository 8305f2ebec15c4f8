"""Which base an adapter belongs to: the one that a caller names, else the one that the adapter names."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.original.model import Asked
from export.original.settings import CONFIG, Settings
from export.original.sources import HUB_ID
from gladstone.basemodel import Base, Needs, resolve_base
from gladstone.errors import ArtifactError, ConfigError, UnsupportedError
from gladstone.progress import Progress

NEEDS = Needs("--base", "--base FOLDER", tokenizer=False)
IN_4_BIT = re.compile(r"-(unsloth-)?bnb-4bit$", re.I)  # how copies in 4 bit are called, beside the model itself


def base_of(settings: Settings, asked: Asked, progress: Progress) -> tuple[Base, list[str]]:
    """The base of an adapter, on this machine, and what is to be told of how it was found.

    Raises ConfigError or UnsupportedError with the option that names another one.
    """
    named = settings.base
    plain = IN_4_BIT.sub("", named)
    if asked.base:
        base = resolve_base(asked.base, progress, NEEDS)
        if base.folder == Path(asked.base).expanduser().resolve() and HUB_ID.fullmatch(plain):
            base = replace(base, name=plain)  # a folder is told by the name that the adapter has for it
        return _plain(base, f"--base {asked.base}"), []
    where = f"{settings.folder / CONFIG}"
    if not named:
        raise ConfigError(f"{where} names no base: give the model that it was trained on with --base FOLDER|HUB-ID.")
    notes = []
    if plain != named:
        notes.append(
            f"the adapter was trained on {named}, a copy in 4 bit whose weights are rounded: merged onto {plain}, the "
            "model that it was made of. --base FOLDER|HUB-ID names another one."
        )
    if not Path(plain).is_dir() and not HUB_ID.fullmatch(plain):
        raise ConfigError(
            f"{where} names the base {named!r}, which is not on this machine: give it with --base FOLDER|HUB-ID."
        )
    try:
        base = resolve_base(plain, progress, NEEDS)
    except (ConfigError, UnsupportedError) as error:
        told = str(error).removeprefix(f"{NEEDS.option}: ")
        of = f", a copy in 4 bit of {plain}" if notes else ""
        raise type(error)(f"{where} names the base {named!r}{of}: {told}{_advice(told)}") from None
    return _plain(base, f"the base {plain}"), notes


def _advice(told: str) -> str:
    return "" if "--base" in told else " Give it with --base FOLDER|HUB-ID."


def _plain(base: Base, what: str) -> Base:
    check_plain(base.folder, what, "Give the model in 16 bit, of which it was made, with --base FOLDER|HUB-ID.")
    return base


def check_plain(folder: Path, what: str, advice: str) -> None:
    """Raises UnsupportedError for weights that are quantised already: nothing exact can be merged or made of them."""
    try:
        config: Mapping[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{folder / 'config.json'}: broken: {error}.") from None
    found = config.get("quantization_config")
    if isinstance(found, dict):
        method = str(found.get("quant_method") or "an unnamed method")
        bits = " in 4 bit" if found.get("load_in_4bit") else " in 8 bit" if found.get("load_in_8bit") else ""
        raise UnsupportedError(f"{what}: already quantised ({method}{bits}), by its config.json. {advice}")
