"""Largest difference of losses between an unbroken training and one that is broken off and goes on, as a table.

python benchmarks/resume_losses.py
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from finetune.trainable import prepare_environment


def main() -> None:
    prepare_environment()
    import unsloth  # noqa: F401 - before what it patches
    from tests.families import write_family
    from tests.finetune.resumed import BREAKS, CASES, broken, largest_difference, load_case, trained, whole

    print("| training | " + " | ".join(BREAKS) + " | adapter |\n|---" * 1 + "|---" * (len(BREAKS) + 1) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for name, case in CASES.items():
            base, work = Path(folder) / case.family, Path(folder) / "work"
            work.mkdir(exist_ok=True)
            if not base.exists():
                write_family(case.family, base)
            subject = load_case(case, base, work)
            expected, adapter = whole(subject, work), trained(subject)
            differences, same = [], True
            for where in BREAKS:
                differences.append(f"{largest_difference(expected, broken(subject, work, where)):g}")
                same &= all(bool((value == adapter[key]).all()) for key, value in trained(subject).items())
            print(f"| {name} | {' | '.join(differences)} | {'equal' if same else 'DIFFERENT'} |", flush=True)


if __name__ == "__main__":
    main()
