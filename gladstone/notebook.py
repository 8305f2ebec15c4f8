"""What the cells of a notebook call: commands that stop it when they fail, the Hub's token, room on the disks.

Kaggle's and Colab's notebooks in `notebooks/` are its users. A kernel may hold older packages than those that were just
installed, so this module imports none; the commands run in processes of their own.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gladstone import run_folder
from gladstone.artifacts import MANIFEST_NAME, copy_file, is_finished, remove_partials
from gladstone.commands.shell import command_line
from gladstone.errors import ArtifactError, ToolError
from gladstone.machine.host import readable_bytes
from gladstone.process.child import describe_exit

REST_BYTES = 300_000_000  # of a run beside its adapter and checkpoints: tokenizer, rows, plots
RESERVED = 1.25  # the export reserves the largest size that its types may have: up to 21 % more than the estimate says
SIZED = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")  # the types whose size `finetune estimate` says


class NotebookError(ToolError):
    """Ends a cell, and with it "Run all". IPython shows the message without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"Stopped: {self}"]


def recipe_arguments(recipe: str, data: str = "", row_format: str = "auto", changes: Sequence[str] = ()) -> list[str]:
    """Recipe, rows and changed fields as arguments of `finetune estimate` and `finetune run`.

    Raises NotebookError for parameters that no command would understand.
    """
    if not recipe:
        raise NotebookError("RECIPE is empty. Name one of `finetune recipes`, or give the path of your own.")
    if isinstance(changes, str) or not all("=" in str(change) for change in changes):
        raise NotebookError(f'CHANGES = {changes!r}: expected a list such as ["training.epochs=1"].')
    rows = [*(["--data", data] if data else []), *(["--format", row_format] if row_format != "auto" else [])]
    return [recipe, *rows, *(word for change in changes for word in ("--set", change))]


def checked_types(quants: Sequence[str]) -> list[str]:
    """The types to export, each once. Raises NotebookError for one that these notebooks do not make.

    A wrong type would otherwise be found out after hours of training.
    """
    wanted = [] if isinstance(quants, str) else list(dict.fromkeys(str(quant).lower() for quant in quants))
    if not wanted or set(wanted) - set(SIZED):
        raise NotebookError(f"QUANTS = {quants!r}: expected a list of some of {', '.join(SIZED)}.")
    return wanted


def run(*words: str | Path | float, processes: int = 1) -> None:
    """Run a command of Gladstone and print its output as it comes; with several processes, torchrun starts them.

    The stop button of the notebook reaches the command, which saves its work. Raises NotebookError if it fails.
    """
    command = [word if isinstance(word, Path) else str(word) for word in words]
    arguments = [str(word) for word in command]
    own = arguments[1:] if arguments[0] == "gladstone" else arguments
    launch = ["-P", "-m", "gladstone", *own]
    if processes > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", *arguments]
    print(f"$ {command_line(*command)}{f'   (in {processes} processes)' if processes > 1 else ''}", flush=True)
    code = _follow([sys.executable, *launch])
    name = " ".join(arguments[:2])
    if code == 130:
        raise NotebookError(f"{name} was stopped by hand. Run the cell again to go on.")
    if code:
        raise NotebookError(f"{name} failed ({describe_exit(code)}); its message is above.")


def _follow(command: Sequence[str]) -> int:
    """Print what a command says, line by line, and return its exit code.

    Jupyter interrupts the process group of the kernel, so the command has its own Ctrl-C: this process waits for it. A
    second one is passed on as well.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
        encoding="utf-8", errors="replace",
    ) as process:  # fmt: skip
        assert process.stdout is not None  # noqa: S101 - a pipe
        interrupts = 0
        while True:
            try:
                for line in process.stdout:
                    print(line, end="", flush=True)
                return process.wait()
            except KeyboardInterrupt:
                interrupts += 1
                if interrupts > 1:
                    process.terminate()


def use_token(secret: str, read: Callable[[str], str | None]) -> None:
    """Take the Hub's token from the platform's secrets, and give it to the commands that follow. Never prints it.

    Raises NotebookError if the platform does not give the secret.
    """
    try:
        token = (read(secret) or "").strip()
    except Exception as error:  # noqa: BLE001 - each platform has its own errors
        raise NotebookError(
            f"SECRET = {secret!r}: the platform does not give this secret ({type(error).__name__}). Add it under this "
            "name, and allow this notebook to read it."
        ) from None
    if not token:
        raise NotebookError(f"SECRET = {secret!r}: the secret is empty.")
    os.environ["HF_TOKEN"] = token
    print(f"The commands use the token in the secret {secret!r}.")


def take_over(earlier: str, kept: Path) -> None:
    """Copy the run and the export of an earlier session to `kept`, unless `kept` already holds a run.

    Raises NotebookError if `earlier` holds no run, or if another folder is in the way.
    """
    run, source = kept / "run", Path(earlier) / "run"
    if not earlier or _holds_run(run):
        return
    if not _holds_run(source):
        raise NotebookError(f"EARLIER = {earlier!r}: holds no folder 'run' with a checkpoint or a finished run.")
    if run.exists():
        raise NotebookError(f"{run}: holds no run and is in the way of the earlier one. Rename or remove it.")
    partial = kept / f".run.{os.getpid()}.partial"
    kept.mkdir(parents=True, exist_ok=True)
    remove_partials(kept)
    _copy(source, partial)
    partial.rename(run)
    _copy(Path(earlier) / "gguf", kept / "gguf")
    print(f"{run}: copied from {source}.")


def _holds_run(folder: Path) -> bool:
    return is_finished(folder) or any((folder / run_folder.CHECKPOINTS).glob("step-*"))


def check_room(estimate: Path, quants: Sequence[str], kept: Path, scratch: Path) -> None:
    """Compare what `finetune estimate --out` says of the disk with what is free in the three places that fill.

    What an earlier call left there counts as free. Raises NotebookError if a disk is too small.
    """
    said = json.loads(estimate.read_text(encoding="utf-8"))
    disk = said["disk_bytes"]
    models = sum(disk[f"GGUF {quant}"] for quant in quants)
    cached = _hub_cache() / f"models--{said['base'].replace('/', '--')}"
    on_hub = "/" in said["base"] and not Path(said["base"]).is_dir()
    needs = [
        (kept, disk["adapter"] + disk["checkpoints"] + REST_BYTES + models, "run and exported model"),
        (scratch, int(RESERVED * (disk["GGUF f16"] + models)), "export while it works"),
        *([(cached, disk["merged, 16 bit"], "download of the base")] if on_hub else []),
    ]
    missing = []
    for device in dict.fromkeys(_device(place) for place, _, _ in needs):
        here = [need for need in needs if _device(need[0]) == device]
        free = shutil.disk_usage(_existing(here[0][0])).free
        needed = sum(max(0, size - _folder_bytes(place)) for place, size, _ in here)
        for place, size, what in here:
            print(f"{readable_bytes(size):>9}  {what}: {place}")
        print(f"{readable_bytes(free):>9}  free there, {readable_bytes(needed)} still needed")
        if needed > free:
            missing.append(f"{here[0][0]} has {readable_bytes(free)} free, {readable_bytes(needed)} are needed")
    if missing:
        raise NotebookError(f"{'; '.join(missing)}. Free some space, or choose a smaller base or other QUANTS.")


def _hub_cache() -> Path:
    """The folder where huggingface_hub keeps downloads."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")


def _existing(place: Path) -> Path:
    return next(parent for parent in (place, *place.absolute().parents) if parent.exists())


def _device(place: Path) -> int:
    return _existing(place).stat().st_dev


def _folder_bytes(folder: Path) -> int:
    """The size of the files below a folder; a link, as in the cache of the Hub, counts as nothing."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def is_ready(run: Path) -> bool:
    """True for a finished run. Otherwise print how to go on, since a session that ended by itself is no failure."""
    if not is_finished(run):
        print("The run is not finished: nothing to do here yet. Run all cells again, now or in the next session.")
    return is_finished(run)


def exported(folder: Path, quants: Sequence[str]) -> list[Path]:
    """The GGUF files of a finished export, in the order of `quants`; none if one is missing."""
    found = [path for quant in quants for path in sorted(folder.glob(f"*-{quant}.gguf"))]
    return found if is_finished(folder) and len(found) >= len(quants) else []


def keep(folder: Path, place: Path) -> None:
    """Copy a finished export to the place that survives. Raises NotebookError if there is too little room."""
    _copy(folder, place)
    print(f"Kept in {place}: {', '.join(path.name for path in sorted(place.glob('*.gguf')))}")


def _copy(source: Path, target: Path) -> None:
    """Copy the files of a folder, each whole or not at all, but not their permissions; the manifest last."""
    files = sorted((path for path in source.rglob("*") if path.is_file()), key=lambda path: path.name == MANIFEST_NAME)
    (target / MANIFEST_NAME).unlink(missing_ok=True)  # what it says ceases to be true
    try:
        for path in files:
            copy_file(path, target / path.relative_to(source))
    except ArtifactError as error:
        raise NotebookError(str(error)) from None
