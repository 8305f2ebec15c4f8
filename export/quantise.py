"""F16 GGUF to a quantised one, through llama.cpp's own quantiser in a child process."""

from pathlib import Path

from export.children import run_child
from gladstone.artifacts import whole_file
from gladstone.errors import ArtifactError, ConfigError
from gladstone.gguf import FILE_TYPES
from gladstone.host import core_count
from gladstone.progress import Progress, step

F16 = "f16"
NEED_IMATRIX = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs")
NOT_FROM_F16 = ("f32", "f16", "bf16", "tq1_0", "tq2_0")
QUANTS = {
    name.lower(): number
    for number, name in FILE_TYPES.items()
    if name.lower() not in (*NEED_IMATRIX, *NOT_FROM_F16)
}  # fmt: skip


def check_quants(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names in lower case, each once. Raises ConfigError for one that cannot be made here."""
    wanted = tuple(dict.fromkeys(name.lower() for name in names))
    for name in wanted:
        if name in NEED_IMATRIX:
            raise ConfigError(f"--quant {name}: needs an importance matrix, without which it is unusable.")
        if name != F16 and name not in QUANTS:
            raise ConfigError(f"--quant {name}: unknown; known: {F16}, {', '.join(QUANTS)}.")
    return wanted


def quantise(source: Path, out: Path, quant: str, progress: Progress) -> None:
    """Write `out` whole. llama.cpp has no guard of its own: writing onto the source would destroy it.

    Raises ArtifactError if both are the same file, ToolError if the quantiser fails.
    """
    if out.exists() and out.samefile(source):
        raise ArtifactError(f"{out}: source and target are the same file.")
    with step(progress, f"Quantising to {quant.upper()}"), whole_file(out) as partial:
        job = {"source": str(source), "out": str(partial), "file_type": QUANTS[quant], "threads": core_count()}
        run_child("export.quantise_child", job, f"quantising to {quant}")
