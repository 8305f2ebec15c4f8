"""Largest difference in loss between an uninterrupted training and one that is stopped and resumed, as a table.

python -m benchmarks.resume_losses
"""

import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from finetune.model.trainable import prepare_environment
from tests.families import write_family
from tests.finetune.resumed import BREAKS, CASES, broken, largest_difference, load_case, trained, whole


def main() -> None:
    prepare_environment()
    import unsloth  # noqa: F401 - before what it patches

    print(f"| training | {' | '.join(BREAKS)} | adapter |")
    print("|---" * (len(BREAKS) + 2) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for name in CASES:
            print(row(name, Path(folder)), flush=True)


def row(name: str, folder: Path) -> str:
    """A case's line of the table."""
    case, work = CASES[name], folder / "work"
    base = folder / case.family
    work.mkdir(exist_ok=True)
    with redirect_stdout(sys.stderr):  # unsloth's greetings
        if not base.exists():
            write_family(case.family, base)
        subject = load_case(case, base, work)
    expected, adapter = whole(subject, work), trained(subject)
    cells, same = [], True
    for where in BREAKS:
        cells.append(f"{largest_difference(expected, broken(subject, work, where)):g}")
        same &= all(bool((value == adapter[key]).all()) for key, value in trained(subject).items())
    return f"| {name} | {' | '.join(cells)} | {'equal' if same else 'DIFFERENT'} |"


if __name__ == "__main__":
    main()
