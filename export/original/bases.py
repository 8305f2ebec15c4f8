"""Finds an adapter's base: the one named by the user, else the one named by the adapter.

Names huggingface_hub.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from export.original.json_object import read_object
from export.original.model import SourceOptions
from export.original.settings import Settings
from export.original.sources import HUB_ID
from export.tensors.safetensors_io import StoredTensor
from export.tensors.weights import read_folder
from gladstone import file_names
from gladstone.commands.progress import Progress
from gladstone.errors import ConfigError, UnsupportedError
from gladstone.models.base_model import Base, BaseRequirements, check_weights, resolve_base

NEEDS = BaseRequirements("--base", "--base FOLDER", purpose="", tokenizer=False, pickled=True, bare=True)
OLDER_ID = re.compile(r"[A-Za-z0-9][\w.-]*")  # without an owner, as gpt2
IN_4_BIT = re.compile(r"-(unsloth-)?bnb-4bit$", re.I)  # suffix of 4-bit copies of a model


PACKED = (".absmax", ".quant_map", ".qweight", ".qzeros", ".SCB", ".weight_packed", ".weight_scale", "_blocks")
PLAIN = ("F64", "F32", "F16", "BF16", "BOOL")  # dtypes of plain weights; a matrix of integers is packed


def base_of(settings: Settings, options: SourceOptions, progress: Progress) -> tuple[Base, list[str]]:
    """The local base of an adapter, and notes about how it was found.

    Raises ConfigError or UnsupportedError that name the option to use.
    """
    named = settings.base
    plain = IN_4_BIT.sub("", named)
    if options.base:
        base = resolve_base(options.base, progress, NEEDS)
        if base.folder == Path(options.base).expanduser().resolve() and HUB_ID.fullmatch(plain):
            base = replace(base, name=plain)  # shown under the name in adapter_config.json
        return _plain(base, f"--base {options.base}"), []
    where = f"{settings.folder / file_names.ADAPTER_CONFIG}"
    if not named:
        raise ConfigError(f"{where} names no base: name the model it was trained on with --base FOLDER|HUB-ID.")
    notes = []
    if plain != named:
        notes.append(
            f"the adapter was trained on {named}, a 4-bit copy with rounded weights: merged onto {plain}, the "
            "model it was made from. --base FOLDER|HUB-ID names another base."
        )
    if not Path(plain).is_dir() and not HUB_ID.fullmatch(plain) and not OLDER_ID.fullmatch(plain):
        raise ConfigError(
            f"{where} names the base {named!r}, which is not on this machine: name it with --base FOLDER|HUB-ID."
        )
    of = f", a copy in 4 bit of {plain}" if notes else ""
    with naming_owner(f"{where} names the base {named!r}{of}", plain):
        found = resolve_base(as_cached(plain), progress, replace(NEEDS, revision=settings.revision))
    return _plain(replace(found, name=plain), f"the base {plain}"), notes


@contextmanager
def naming_owner(whose: str, name: str) -> Iterator[None]:
    """Add to errors about the base `name` who names it and the option that overrides it."""
    try:
        yield
    except (ConfigError, UnsupportedError) as error:
        message = str(error).removeprefix(f"{NEEDS.option}: ")
        about = message.removeprefix(f"{name!r} ")
        advice = "" if "--base" in message else " Give it with --base FOLDER|HUB-ID."
        raise type(error)(f"{whose}{', which ' if about != message else ': '}{about}{advice}") from None


def as_cached(hub_id: str) -> str:
    """A Hub id in the spelling of the local cache: Hub ids are case-insensitive."""
    from huggingface_hub.constants import HF_HUB_CACHE

    wanted = f"models--{hub_id.replace('/', '--')}".lower()
    names = (path.name for path in Path(HF_HUB_CACHE).glob("models--*") if path.name.lower() == wanted)
    return next((name.removeprefix("models--").replace("--", "/", 1) for name in names), hub_id)


def _plain(base: Base, what: str) -> Base:
    check_weights(base)
    check_plain(base.folder, what, "Name the 16-bit model it was made from with --base FOLDER|HUB-ID.")
    return base


def check_plain(folder: Path, what: str, advice: str) -> None:
    """Raises UnsupportedError for quantised weights, from which nothing exact can be made."""
    config = read_object(folder / file_names.CONFIG)
    packed = next((stored.name for stored in read_folder(folder).values() if _is_packed(stored)), None)
    found = config.get("quantization_config")
    if packed is None and found is None:
        return
    settings = found if isinstance(found, dict) else {}
    method = str(settings.get("quant_method") or "its method is not named")
    if packed is None:
        raise UnsupportedError(
            f"{what}: config.json says that it is quantised ({method}), but its weights are not. Remove "
            f"quantization_config from {folder / 'config.json'}."
        )
    bits = " in 4 bit" if settings.get("load_in_4bit") else " in 8 bit" if settings.get("load_in_8bit") else ""
    raise UnsupportedError(f"{what}: already quantised ({method}{bits}; as {packed} shows). {advice}")


def _is_packed(stored: StoredTensor) -> bool:
    """True for a tensor with packed weights, or with their scales."""
    return stored.name.endswith(PACKED) or (stored.dtype not in PLAIN and len(stored.shape) > 1)
