"""Write notebooks/kaggle.ipynb and notebooks/colab.ipynb from one description; with --check, fail if one is stale.

`cells` is the description. What differs between the two platforms is a field of `Platform`.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"


@dataclass(frozen=True)
class Platform:
    """What differs between the notebooks: folders, the parameters that only one has, texts, and calls."""

    name: str
    file: str
    keep: str
    scratch: str
    hours: str
    data_example: str
    before: str
    survives: str
    parameters: str
    mount: str
    set_up: str
    read_secret: str
    add_secret: str
    gpus: str
    download: str
    metadata: dict[str, Any]


KAGGLE = Platform(
    name="Kaggle",
    file="kaggle.ipynb",
    keep="/kaggle/working",
    scratch="/kaggle/temp",
    hours="8.5",
    data_example="/kaggle/input/my-rows/rows.jsonl",
    before="""\
        1. *Settings → Accelerator → GPU T4 x2*. Not P100: recent builds of PyTorch hold no code for it, and the
           training then refuses it in one line.
        2. *Settings → Internet on*.
        3. *Settings → Persistence → Files only*, if you work interactively.
        4. For a long training, *Save Version → Save & Run All*: it runs without your browser.""",
    survives="""\
        | folder | holds | after the session |
        |---|---|---|
        | `/kaggle/working`, 20 GB | `run` (checkpoints, adapter), `gguf` (finished files) | interactive: kept, if \
*Persistence* was set to files before the session ended; *Save & Run All*: the output of the version, once it \
has ended |
        | `/kaggle/temp` | the export while it works | lost |
        | `~/.cache/huggingface`, `~/.cache/gladstone` | the base, data sets, llama.cpp's converter | lost, and \
downloaded again |

        Kaggle ends a session after 12 hours at most. To go on in a new version, add the output of the earlier version
        as an input (*Add Input → Your Work*) and set `EARLIER` to its path: the folder that holds `run`.""",
    parameters='''\
        # The output of an earlier version, as an input of this notebook: its run is copied and goes on. "": none.
        EARLIER = ""''',
    mount="",
    set_up="notebook.take_over(EARLIER, Path(KEEP))",
    read_secret="""\
        from kaggle_secrets import UserSecretsClient

        notebook.use_token(SECRET, UserSecretsClient().get_secret)""",
    add_secret="*Add-ons → Secrets*: add the token there, attach it to this notebook",
    gpus="""\
        "T4 x2" has two GPUs. One process trains on the first. `PROCESSES = 2` starts two with torchrun, which share
        the rows of every step; each holds the whole base, so two GPUs make a run faster, not a larger base possible.
        It was tried with two processes on a CPU, and not yet on two GPUs.""",
    download="""\
        print("In the panel 'Output' on the right, below gguf; of a saved version, on its tab 'Output':")
        for path in notebook.exported(GGUF, quants):
            print(path)""",
    metadata={
        "kaggle": {
            "accelerator": "nvidiaTeslaT4",
            "dataSources": [],
            "isGpuEnabled": True,
            "isInternetEnabled": True,
            "language": "python",
            "sourceType": "notebook",
        }
    },
)
COLAB = Platform(
    name="Colab",
    file="colab.ipynb",
    keep="/content/drive/MyDrive/gladstone",
    scratch="/content/scratch",
    hours="3",
    data_example="/content/drive/MyDrive/rows.jsonl",
    before="""\
        1. *Runtime → Change runtime type → T4 GPU*.
        2. A Google Drive with room for the run and the finished files: the cell *Estimate* prints how much. It cannot
           see the quota of your Drive; [drive.google.com](https://drive.google.com) shows it.""",
    survives="""\
        | folder | holds | after the session |
        |---|---|---|
        | `/content/drive/MyDrive/gladstone` | `run` (checkpoints, adapter) and `gguf` (the finished files) | kept, on \
your Drive |
        | `/content/scratch` | the export while it works | lost |
        | `~/.cache/huggingface`, `~/.cache/gladstone` | the base, data sets, llama.cpp's converter | lost, and \
downloaded again |

        Everything in `/content` outside the Drive disappears when the session ends, also when it ends without asking.
        Older checkpoints are removed as newer ones come. Drive moves them to its bin, where they count until you empty
        it: that is why the checkpoints of this notebook are 30 minutes apart.""",
    parameters="""\
        # False keeps the files in KEEP on this machine alone, where they are lost when the session ends.
        USE_DRIVE = True""",
    mount="""\
        if USE_DRIVE:
            from google.colab import drive

            drive.mount("/content/drive")

        """,
    set_up="""\
        if not USE_DRIVE and KEEP.startswith("/content/drive"):
            raise notebook.NotebookError('USE_DRIVE is False: set KEEP to a folder such as "/content/kept".')
        if not USE_DRIVE:
            print(f"{KEEP} is lost when the session ends: download what you need before.")""",
    read_secret="""\
        from google.colab import userdata

        notebook.use_token(SECRET, userdata.get)""",
    add_secret="the key on the left: add the token there, switch on *Notebook access*",
    gpus="Colab lends one GPU.",
    download="""\
        if USE_DRIVE:
            print(f"On your Drive, in {GGUF}.")
        else:
            from google.colab import files

            for path in notebook.exported(GGUF, quants):
                files.download(str(path))""",
    metadata={"accelerator": "GPU", "colab": {"gpuType": "T4", "provenance": [], "toc_visible": True}},
)


def cells(platform: Platform) -> list[dict[str, Any]]:
    """The cells of a notebook, in order."""
    return [*_opening(platform), *_set_up(platform), *_training(platform), *_results(platform)]


def _opening(platform: Platform) -> list[dict[str, Any]]:
    changes = "" if platform is KAGGLE else '"training.checkpoint_minutes=30"'
    return [
        _text(
            "title",
            f"""
            # Fine-tune on {platform.name}, take the model home

            Trains a language model on your rows (QLoRA), exports it as a GGUF file that is proven to be the model that
            was trained, and asks it a question on the CPU, as a laptop would.
            These are the commands of Gladstone; its README explains them.

            This is software for experiments with language models. It gives **no medical advice**, and neither do the
            models made with it.
            """,
        ),
        _text("before", f"## Before you start\n\n{dedent(platform.before)}"),
        _text(
            "survives",
            f"""## What survives\n\n{dedent(platform.survives)}

**Run all** again, at any time: a run goes on from its newest checkpoint, a finished run is kept, and so is a finished
export. No cell removes a run. If there is no checkpoint, the training says so and starts at the first step.""",
        ),
        _text("about-parameters", "## Parameters\n\nThe only cell to edit."),
        _code(
            "parameters",
            f"""
# The recipe: a name that `finetune recipes` lists, or the path of your own YAML file.
RECIPE = "tinyllama-qlora"
# Your rows: a file such as "{platform.data_example}", or "hub:owner/name". "": those of the recipe.
DATA = ""
# Their layout: see the table in the README. "auto" recognises most.
FORMAT = "auto"
# Fields of the recipe to change, such as "training.epochs=1".
CHANGES = [{changes}]
# The training saves a checkpoint and stops within this many hours. Set-up and export take more.
HOURS = {platform.hours}
# Types of the exported files, of q4_k_m (small), q5_k_m, q6_k, q8_0 (nearly 16 bit) and f16.
QUANTS = ["q4_k_m"]
# What the finished model is asked.
QUESTION = "What does insulin do?"
# For a gated base (Llama 3.2 and Gemma 3 among the recipes), the name of the secret with your Hugging Face token.
SECRET = ""
# "cuda" stops at once where there is no GPU that PyTorch can use, and says why; "cpu" computes without one.
DEVICE = "cuda"
# The number of processes, one for each GPU.
PROCESSES = 1
# Where pip finds Gladstone: a folder, an archive or a wheel that you uploaded, or the address of its repository, which
# begins with "git+https://".
GLADSTONE = ""
# The folder that holds what shall survive, and one for what need not.
KEEP = "{platform.keep}"
SCRATCH = "{platform.scratch}"
{dedent(platform.parameters)}
""",
            tags=["parameters"],
        ),
    ]


def _set_up(platform: Platform) -> list[dict[str, Any]]:
    return [
        _text(
            "about-set-up",
            """
            ## Set up

            Installs Gladstone, unless this session has it. Every command that follows runs in a process of its own, so
            the notebook needs no restart.
            """,
        ),
        _code("set-up", f"{IMPORTS}\n{dedent(platform.mount)}{INSTALL}\n{dedent(platform.set_up)}"),
        _text(
            "about-token",
            f"""
            ## Token for a gated base

            Without `SECRET`, nothing happens here. Otherwise the token comes from {platform.name}'s own secrets
            ({platform.add_secret}).
            It is given to the commands, and is never printed or written to a file.
            """,
        ),
        _code("token", f"if SECRET:\n{_indented(platform.read_secret)}"),
    ]


IMPORTS = """\
import importlib.metadata
import shlex
import sys
from pathlib import Path
"""
INSTALL = """\
if not any(found.name == "gladstone" for found in importlib.metadata.distributions()):
    if not GLADSTONE:
        raise SystemExit("GLADSTONE is empty: say where pip finds Gladstone.")
    extras = "[finetune,export,gpu]"
    wanted = f"gladstone{extras} @ {GLADSTONE}" if "://" in GLADSTONE else f"{GLADSTONE}{extras}"
    pip = f"{sys.executable} -m pip install {shlex.quote(wanted)}"
    !CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF" {pip}
    importlib.invalidate_caches()

from gladstone import notebook

RUN, GGUF = Path(KEEP) / "run", Path(KEEP) / "gguf"
recipe = notebook.recipe_arguments(RECIPE, DATA, FORMAT, CHANGES)
quants = notebook.checked_types(QUANTS)"""


def _training(platform: Platform) -> list[dict[str, Any]]:
    return [
        _text(
            "about-estimate",
            """
            ## Estimate

            Memory, time and disk, before the base is downloaded or anything is trained. It stops here if a disk is too
            small. If the memory is, it prints settings that take less, to put into `CHANGES`.
            """,
        ),
        _code(
            "estimate",
            """
            estimate = Path(SCRATCH) / "estimate.json"
            if not notebook.is_finished(RUN):
                notebook.run("finetune", "estimate", *recipe, "--device", DEVICE, "--out", estimate)
                notebook.check_room(estimate, quants, Path(KEEP), Path(SCRATCH))
            """,
        ),
        _text("about-train", f"## Train\n\n{_joined(platform.gpus)}\n\nThe stop button saves a checkpoint."),
        _code(
            "train",
            """
            if notebook.is_finished(RUN):
                print(f"{RUN}: the run is finished, and is kept.")
            else:
                how = ["--device", DEVICE, "--max-hours", HOURS, "--resume"]
                notebook.run("finetune", "run", *recipe, "--out", RUN, *how, processes=PROCESSES)
            """,
        ),
    ]


def _results(platform: Platform) -> list[dict[str, Any]]:
    return [
        _text(
            "about-export",
            f"""
            ## Export

            Merges, converts, quantises and proves in `{platform.scratch}`: for a moment, the model lies there in 16 bit
            and in every type of `QUANTS`. Only the finished files are copied to `{platform.keep}/gguf`.
            If the training went wrong, the export refuses with the reason; `"--yes"` in its command overrules it.
            """,
        ),
        _code(
            "export",
            """
            if notebook.exported(GGUF, quants):
                print(f"{GGUF}: the export is finished, and is kept.")
            elif notebook.is_ready(RUN):
                types = [word for quant in quants for word in ("--quant", quant)]
                notebook.run("gladstone", "export", "gguf", RUN, *types, "--out", Path(SCRATCH) / "gguf")
                notebook.keep(Path(SCRATCH) / "gguf", GGUF)
            """,
        ),
        _text(
            "about-ask",
            """
            ## Ask

            On the CPU, as a laptop does. The answer can be wrong, and is no medical advice.
            """,
        ),
        _code(
            "ask",
            """
            if notebook.is_ready(RUN):
                for path in notebook.exported(GGUF, quants):
                    notebook.run("runtime", "ask", path, QUESTION, "--gpu-layers", 0)
            """,
        ),
        _text(
            "about-download",
            """
            ## Download

            Then, on a laptop: `runtime chat FILE.gguf`. It needs no network, and no GPU.
            """,
        ),
        _code("download", f"if notebook.is_ready(RUN):\n{_indented(platform.download)}"),
    ]


def _text(name: str, text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": _lines(text)}


def _code(name: str, code: str, tags: list[str] | None = None) -> dict[str, Any]:
    metadata = {"tags": tags} if tags else {}
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": name,
        "metadata": metadata,
        "outputs": [],
        "source": _lines(code),
    }


def _lines(text: str) -> list[str]:
    return dedent(text).strip("\n").splitlines(keepends=True)


def _indented(code: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in dedent(code).splitlines())


def _joined(text: str) -> str:
    return dedent(text).strip()


def render(platform: Platform) -> str:
    """The notebook as a file: format 4.5, without outputs."""
    language = {"name": "python"}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = dict(sorted({**platform.metadata, "kernelspec": kernel, "language_info": language}.items()))
    notebook = {"cells": cells(platform), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """0 if the notebooks are written or up to date, 1 if --check finds a stale one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = []
    for platform in (KAGGLE, COLAB):
        path, text = FOLDER / platform.file, render(platform)
        if check and (not path.is_file() or path.read_text(encoding="utf-8") != text):
            stale.append(path.name)
        elif not check:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"notebooks: {', '.join(stale)} out of date: run `make docs`.", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
