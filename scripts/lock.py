"""Write requirements/cpu.lock: every package of the CPU set-up with its hashes, torch left to the machine.

Run `make lock` after a change of dependencies: what is locked keeps its version. `scripts/lock.py --upgrade` takes the
newest of all. Needs `uv` on PATH. The registry's address is not part of the file.
"""

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "cpu.lock"
HEADER = "# Written by `make lock` from pyproject.toml, requirements/torch-needs.in and requirements/overrides.txt.\n"


def main() -> None:
    """Resolve for every supported Python and platform, then drop what the overrides switched off."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest version of every package")
    upgrade = parser.parse_args().upgrade
    command = ["uv", "pip", "compile", "pyproject.toml", "requirements/torch-needs.in"]
    command += [f"--extra={extra}" for extra in ("finetune", "export", "ray", "dev")]
    command += ["--override", "requirements/overrides.txt", "--universal", "--python-version", "3.11"]
    command += ["--generate-hashes", "--no-header", "--no-emit-index-url", "--no-annotate", "--quiet"]
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / LOCK.name
        if not upgrade:
            shutil.copyfile(LOCK, out)  # uv keeps the versions that it finds in its output
        subprocess.run([*command, "--output-file", str(out)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        blocks = re.split(r"(?m)^(?=[A-Za-z0-9])", out.read_text(encoding="utf-8"))
    kept = [block for block in blocks if "'never'" not in block.partition("\n")[0]]
    LOCK.write_text(HEADER + "".join(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
