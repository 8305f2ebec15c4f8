"""Find a base model (the embedded one, a local folder or a Hub id) and provide it as a local folder.

Names huggingface_hub, inside the functions that need it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gladstone import file_names, run_folder
from gladstone.artifacts import (
    MANIFEST_NAME,
    sha256_file,
)
from gladstone.commands.progress import Progress, step
from gladstone.commands.shell import command_line
from gladstone.errors import ArtifactError, ConfigError, UnsupportedError
from gladstone.gguf.trainable_base import (
    gguf_base_error,
    gguf_folder_error,
    gguf_repository_error,
    has_same_bytes,
    is_gguf_path,
)
from gladstone.machine.host import check_disk
from gladstone.models.embedded_model import EMBEDDED, embedded_folder, embedded_gguf

HUB_FILES = ["*.json", file_names.WEIGHTS_PATTERN, "*.model", "*.txt", "*.jinja", "README.md"]
PICKLED_FILES = [file_names.PICKLED_WEIGHTS_PATTERN, file_names.PICKLED_WEIGHTS_INDEX]


@dataclass(frozen=True)
class BaseRequirements:
    """What a command requires of a base model, and how its messages name the option and the purpose."""

    option: str = "base.model"
    setting: str = "--set base.model=FOLDER"
    tokenizer: bool = True
    purpose: str = " to train another adapter of it"
    pickled: bool = False  # torch's pickled weights are accepted
    bare: bool = False  # a Hub id without an owner is accepted, as older models have it
    revision: str | None = None  # branch, tag or commit on the Hub


TRAINING = BaseRequirements()


@dataclass(frozen=True)
class Base:
    """A base model in a local folder; `fingerprint` changes with its weights or its tokenizer.

    `config` holds its config.json, read once.
    """

    name: str
    folder: Path
    fingerprint: str
    config: dict[str, Any]

    @property
    def is_encoder_decoder(self) -> bool:
        """True for a model whose encoder reads the prompt, such as T5."""
        return bool(self.config.get("is_encoder_decoder"))


def resolve_base(name: str, progress: Progress, needs: BaseRequirements = TRAINING) -> Base:
    """Provide a base model as a local folder, downloading it if needed.

    Raises ConfigError if there is no such model or it lacks something, UnsupportedError if the Hub cannot be reached.
    """
    folder = _local_folder(name, progress, needs) or _download(name, progress, needs)
    return _base(name, folder, needs)


def find_local_base(name: str, progress: Progress, needs: BaseRequirements = TRAINING) -> Base | None:
    """Like `resolve_base`, but download nothing: None for a Hub id that is not in the local cache."""
    folder = _local_folder(name, progress, needs) or _cached_folder(name, needs)
    if folder is None:
        return None
    return _base(name, folder, needs)


def _base(name: str, folder: Path, needs: BaseRequirements) -> Base:
    config = _checked_config(name, folder, needs)
    return Base(name, folder, fingerprint(folder), config)


def _local_folder(name: str, progress: Progress, needs: BaseRequirements) -> Path | None:
    """The folder of the embedded or a local model; None for a Hub id. Raises ConfigError for anything else."""
    if name == EMBEDDED:
        return embedded_folder(progress)
    if name.startswith("embedded:"):
        raise ConfigError(f"{needs.option}: {name!r} is not embedded; the embedded model is {EMBEDDED!r}.")
    if name and _as_path(name).is_dir():
        return _as_path(name).resolve()
    if name and is_gguf_path(name, _as_path(name)):
        if _is_embedded(_as_path(name)):
            return embedded_folder(progress)
        raise gguf_base_error(needs.option, name, _as_path(name))
    bare = needs.bare and name and "/" not in name
    if name.startswith((".", "/", "~")) or (name.count("/") != 1 and not bare):
        raise _not_a_model_error(name, needs)
    return None


def weights_files(folder: Path) -> list[Path]:
    """A folder's weight files: safetensors, or torch's pickled ones if there are none."""
    return sorted(folder.glob(file_names.WEIGHTS_PATTERN)) or sorted(folder.glob(file_names.PICKLED_WEIGHTS_PATTERN))


def check_weights(base: Base) -> None:
    """Raise ArtifactError if a weights file is missing or cut short; reads only the headers."""
    folder = base.folder
    index = _json(folder / file_names.WEIGHTS_INDEX) or {}
    listed = index.get("weight_map")
    shards = set(listed.values()) if isinstance(listed, dict) else set()
    missing = sorted(shard for shard in shards if not (folder / str(shard)).is_file())
    if missing:
        raise ArtifactError(f"{folder}: lacks {', '.join(missing)}: its download is incomplete.")
    for path in sorted(folder.glob(file_names.WEIGHTS_PATTERN)):
        expected = _length_in_header(path)
        if expected != path.stat().st_size:
            raise ArtifactError(
                f"{path}: damaged: {path.stat().st_size:,} bytes"
                + (f", its header says {expected:,}." if expected else " that are not safetensors.")
            )


def _as_path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~user of an unknown user
        return Path(name)


def _is_embedded(path: Path) -> bool:
    """Whether a GGUF is the embedded model's file or a copy of it."""
    try:
        return has_same_bytes(path, embedded_gguf())
    except UnsupportedError:  # it is not installed
        return False


def _not_a_model_error(name: str, needs: BaseRequirements) -> ConfigError:
    return ConfigError(f"{needs.option}: {name!r} is neither a folder nor a Hub id like 'owner/model'.")


def fingerprint(folder: Path) -> str:
    """Hash the tokenizer files and the names, sizes, first and last bytes of the weights: cheap for any size."""
    import hashlib

    digest = hashlib.sha256()
    weights = weights_files(folder)
    for path in sorted(folder.iterdir()):
        beside = path.suffix in (".json", ".model", ".jinja") and path.name != MANIFEST_NAME
        if not beside and path not in weights:
            continue
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        if path in weights:
            digest.update(_head_and_tail(path))
        else:
            digest.update(sha256_file(path).encode())
    return digest.hexdigest()


def _cached_folder(name: str, needs: BaseRequirements) -> Path | None:
    """The folder of a Hub id in the local cache; None if it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name, revision=needs.revision, allow_patterns=HUB_FILES, local_files_only=True)
        )  # fmt: skip
    except LocalEntryNotFoundError:
        return None
    except HFValidationError:
        raise _not_a_model_error(name, needs) from None


def _download(name: str, progress: Progress, needs: BaseRequirements) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        with step(progress, f"Downloading {name} from the Hub"):
            _check_room(name, needs.revision)
            folder = Path(snapshot_download(name, revision=needs.revision, allow_patterns=HUB_FILES))
            if needs.pickled and not weights_files(folder):
                snapshot_download(name, revision=needs.revision, allow_patterns=PICKLED_FILES)
            return folder
    except HFValidationError:
        raise _not_a_model_error(name, needs) from None
    except RepositoryNotFoundError:
        raise ConfigError(
            f"{needs.option}: the Hub has no model {name!r}, or it needs a login (`hf auth login`, or a token in "
            "HF_TOKEN)."
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UnsupportedError(
            f"{needs.option}: {name!r} is not in the local cache and the Hub cannot be reached "
            f"({type(error).__name__}). Without a network, give the path of a folder that holds the model: "
            f"{needs.setting}."
        ) from None


def _check_room(name: str, revision: str | None) -> None:
    """Raise ArtifactError if the disk of the Hub's cache has too little room for what is not in it yet."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    files = snapshot_download(name, revision=revision, allow_patterns=HUB_FILES, dry_run=True)
    missing = sum(file.file_size or 0 for file in files if file.will_download)
    check_disk(Path(HF_HUB_CACHE), missing, f"the download of {name}", "set HF_HOME to a folder of another disk")


def _checked_config(name: str, folder: Path, needs: BaseRequirements) -> dict[str, Any]:
    """Return the folder's config.json. Raises ConfigError if it, usable weights or a tokenizer is missing."""
    candidates = (folder, folder / run_folder.ADAPTER)
    adapters = [candidate for candidate in candidates if (candidate / file_names.ADAPTER_CONFIG).is_file()]
    config = _json(folder / file_names.CONFIG)
    merge = command_line("gladstone", "export", "merge", Path(name))
    if config is None and adapters:
        of = (_json(adapters[0] / file_names.ADAPTER_CONFIG) or {}).get("base_model_name_or_path", "an unnamed model")
        raise ConfigError(
            f"{needs.option}: {name!r} is not a model but an adapter of {of}. Give {of}{needs.purpose}, or merge the "
            f"adapter first (`{merge}`) and give the resulting folder."
        )
    weights = weights_files(folder)
    if config is None or not weights:
        other = gguf_folder_error(needs.option, name, folder) or gguf_repository_error(needs.option, name)
        if other is not None:
            raise other
    if config is None or "model_type" not in config:
        raise ConfigError(f"{needs.option}: {name!r} is not a model folder: it has no usable config.json.")
    if not weights:
        raise ConfigError(f"{needs.option}: {name!r} holds no .safetensors weights.")
    if weights[0].suffix == ".bin" and not needs.pickled:
        raise ConfigError(
            f"{needs.option}: {name!r} holds no .safetensors weights, only pickled ones ({weights[0].name}), which are "
            f"not loaded for training. Convert it to safetensors once: `{merge} --out FOLDER`."
        )
    if needs.tokenizer and not any((folder / file).exists() for file in file_names.VOCABULARIES):
        raise ConfigError(f"{needs.option}: {name!r} holds no tokenizer.")
    return config


def _length_in_header(path: Path) -> int | None:
    """The length of a safetensors file by its own header; None if the header is invalid."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > path.stat().st_size:
            return None
        try:
            tensors = json.loads(file.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
            return 8 + length + max(ends, default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _head_and_tail(path: Path, sample_bytes: int = 1 << 20) -> bytes:
    with path.open("rb") as file:
        head = file.read(sample_bytes)
        file.seek(max(0, path.stat().st_size - sample_bytes))
        return head + file.read(sample_bytes)
