"""Write requirements/cpu.lock: every package of the CPU set-up with its hashes, torch left to the machine.

Run `make lock` after a change of dependencies; needs `uv` on PATH. The registry's address is not part of the file.
"""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "cpu.lock"
HEADER = "# Written by `make lock` from pyproject.toml, requirements/torch-needs.in and requirements/overrides.txt.\n"


def main() -> None:
    """Resolve for every supported Python and platform, then drop what the overrides switched off."""
    command = ["uv", "pip", "compile", "pyproject.toml", "requirements/torch-needs.in"]
    command += [f"--extra={extra}" for extra in ("finetune", "export", "dev")]
    command += ["--override", "requirements/overrides.txt", "--universal", "--python-version", "3.11"]
    command += ["--generate-hashes", "--no-header", "--no-emit-index-url", "--no-annotate", "--upgrade", "--quiet"]
    text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    blocks = re.split(r"(?m)^(?=[A-Za-z0-9])", text)
    kept = [block for block in blocks if "'never'" not in block.partition("\n")[0]]
    LOCK.write_text(HEADER + "".join(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
