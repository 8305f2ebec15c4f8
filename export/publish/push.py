"""Uploads the files in an export's manifest to the Hub, and nothing else. Names huggingface_hub.

The Hub compares the hashes of large files and takes only missing ones, so that an interrupted upload resumes.
"""

from dataclasses import dataclass
from pathlib import Path

from export.original.model import check_accepted
from gladstone.artifacts import MANIFEST_NAME, Manifest, check_files, read_manifest
from gladstone.commands.progress import Progress, step
from gladstone.errors import ArtifactError, ConfigError, ToolError


@dataclass(frozen=True)
class Upload:
    """The files to upload, with sizes in bytes, and the repository."""

    folder: Path
    repo: str
    files: dict[str, int]


def plan_upload(folder: Path, repo: str, *, accepted: bool = False) -> Upload:
    """The upload of a finished export.

    Raises ArtifactError if a file differs from its manifest, or the training went wrong and that is not accepted;
    ConfigError for a bad repository name.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError("no owner")
    except HFValidationError:
        raise ConfigError(f"{repo!r} is not a repository name: expected OWNER/NAME.") from None
    manifest = _manifest(folder)
    check_files(folder, manifest)
    check_accepted(folder, manifest.facts.get("training_warnings") or [], accepted=accepted)
    sizes = {record.path: record.size_bytes for record in manifest.files}
    return Upload(folder, repo, sizes | {MANIFEST_NAME: (folder / MANIFEST_NAME).stat().st_size})


def _manifest(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    if manifest.stage != "export":
        raise ArtifactError(f"{folder}: made by the stage {manifest.stage!r}, expected a folder of `gladstone export`.")
    return manifest


def upload(planned: Upload, *, private: bool, progress: Progress) -> str:
    """Upload the files as one commit; returns its URL.

    Raises ToolError if the Hub refuses or cannot be reached. A repeated call sends only what is missing.
    """
    import httpx
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    operations = [CommitOperationAdd(name, str(planned.folder / name)) for name in planned.files]
    try:
        with step(progress, f"Uploading to {planned.repo}"):
            api.create_repo(planned.repo, private=private, exist_ok=True)
            made = api.create_commit(planned.repo, operations, commit_message="Export by Gladstone")
    except LocalTokenNotFoundError:
        raise ToolError("no Hub token: run `hf auth login`, or set HF_TOKEN.") from None
    except HfHubHTTPError as error:
        code = error.response.status_code
        said = f": {error.server_message}" if error.server_message else ""
        hint = " Run `hf auth login` with a token that has write access." if code in (401, 403) else ""
        raise ToolError(f"{planned.repo}: the Hub refused the upload ({code}{said}).{hint}") from None
    except (httpx.HTTPError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and error.__cause__ is None:
            raise  # not the error that the library raises for a failed transfer
        why = error.__cause__ or error
        raise ToolError(
            f"{planned.repo}: the upload stopped ({type(why).__name__}: {why}). The same command resumes it."
        ) from None
    return str(made.commit_url)
