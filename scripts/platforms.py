"""Show what installing Gladstone replaces on Colab and Kaggle, with uv's resolver.

For each list in requirements/platforms/ uv resolves `.[finetune,export,gpu]` for the platform's Python and prefers the
versions that are installed there, as pip does. Needs `uv` on PATH and a package registry; prints Markdown, or with
--write renews the tables in docs/platforms.md. torch there is a build of its own, whose dependencies are there too: it
is resolved without any.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LISTS = ROOT / "requirements" / "platforms"
PAGE = ROOT / "docs" / "platforms.md"
EXTRAS = ("finetune", "export", "gpu")
BEGIN, END = "<!-- written by scripts/platforms.py --write -->", "<!-- end -->"
PIN = re.compile(r"(?m)^([A-Za-z0-9._-]+)==([^\s+;]+)(\+\S+)?")


@dataclass(frozen=True)
class Platform:
    """A notebook platform: its name, its Python, where its list comes from, and what is installed there."""

    name: str
    python: str
    source: str
    versions: dict[str, str]


def read_platform(path: Path) -> Platform:
    """Read a list: `# key: value` lines, then `package==version` lines, local versions such as +cu128 included."""
    text = path.read_text(encoding="utf-8")
    facts = dict(re.findall(r"(?m)^# (platform|python|source): (.+)$", text))
    versions = {_normal(name): version + local for name, version, local in PIN.findall(text)}
    return Platform(facts["platform"], facts["python"], facts["source"], versions)


def resolve(platform: Platform) -> dict[str, str]:
    """Return the version of each package that is there after the installation. Raises CalledProcessError."""
    torch = platform.versions["torch"].partition("+")[0]
    with tempfile.TemporaryDirectory() as work:
        out, settings = Path(work) / "out.txt", Path(work) / "uv.toml"
        pins = (f"{name}=={version.partition('+')[0]}\n" for name, version in platform.versions.items())
        out.write_text("".join(pins), encoding="utf-8")  # uv keeps the versions that it finds in its output
        settings.write_text(
            f'dependency-metadata = [{{ name = "torch", version = "{torch}", requires-dist = [] }}]\n', encoding="utf-8"
        )
        command = ["uv", "pip", "compile", "pyproject.toml", *(f"--extra={extra}" for extra in EXTRAS)]
        command += ["--python-version", platform.python, "--python-platform", "x86_64-manylinux_2_35", "--no-header"]
        command += ["--no-annotate", "--quiet", "--config-file", str(settings), "--output-file", str(out)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return {_normal(name): version for name, version, _ in PIN.findall(out.read_text(encoding="utf-8"))}


def table(platform: Platform, resolved: dict[str, str]) -> str:
    """Render what is kept, replaced and added on a platform."""
    there = platform.versions
    kept = [name for name in resolved if name in there and there[name].partition("+")[0] == resolved[name]]
    replaced = [name for name in resolved if name in there and name not in kept]
    added = [f"{name} {version}" for name, version in resolved.items() if name not in there]
    lines = [
        f"### {platform.name} (Python {platform.python})\n\nInstalled there: {platform.source}.\n",
        f"Kept: {len(kept)} packages, among them {_named(kept, there)}.\n",
        "| replaced | there | afterwards |\n|---|---|---|",
        *(f"| {name} | {there[name]} | {resolved[name]} |" for name in replaced),
        f"\nAdded: {', '.join(added)}.\n",
    ]
    return "\n".join(lines)


def _named(kept: list[str], there: dict[str, str]) -> str:
    known = ("torch", "torchvision", "triton", "transformers", "tokenizers", "peft", "accelerate", "numpy", "protobuf")
    return ", ".join(f"{name} {there[name]}" for name in known if name in kept)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="renew the tables in docs/platforms.md")
    write = parser.parse_args().write
    platforms = [read_platform(path) for path in sorted(LISTS.glob("*.txt"))]
    text = "\n".join(table(platform, resolve(platform)) for platform in platforms)
    if not write:
        print(text)
        return 0
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
