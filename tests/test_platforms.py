"""The declared ranges against what notebooks have installed, and against what Unsloth accepts. No network."""

import importlib.metadata
import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from gladstone.machine.gpu import install_line

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "platforms.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
KEPT = {  # by platform: what must stay, since the rest of the notebook is built on it
    "Colab": (
        "torch",
        "torchvision",
        "triton",
        "transformers",
        "tokenizers",
        "peft",
        "accelerate",
        "numpy",
        "protobuf",
    ),
    "Kaggle": ("torch", "torchvision", "triton", "peft", "accelerate", "numpy", "protobuf"),
}


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("platforms_script", ROOT / "scripts" / "platforms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


SCRIPT = _script()
PLATFORMS = [SCRIPT.read_platform(path) for path in sorted(SCRIPT.LISTS.glob("*.txt"))]
NAMES = [platform.name for platform in PLATFORMS]


def requirements(python: str) -> dict[str, Requirement]:
    """What pyproject.toml itself asks for with the extras of a notebook."""
    lines = PROJECT["dependencies"] + [
        one for extra in SCRIPT.EXTRAS for one in PROJECT["optional-dependencies"][extra]
    ]
    parsed = [Requirement(line) for line in lines]
    here = {"python_version": python, "sys_platform": "linux"}
    return {canonicalize_name(one.name): one for one in parsed if one.marker is None or one.marker.evaluate(here)}


def replaced_in_the_page(name: str) -> dict[str, str]:
    """Package to version there, of the table of a platform."""
    section = PAGE.partition(f"### {name} (")[2].partition("Added:")[0]
    return dict(re.findall(r"(?m)^\| ([a-z0-9-]+) \| (\d\S*) \| \S+ \|$", section))


@pytest.mark.parametrize("platform", PLATFORMS, ids=NAMES)
def test_the_notebooks_torch_and_what_builds_on_it_are_within_the_declared_ranges(platform: Any) -> None:
    there = platform.versions
    declared = requirements(platform.python)
    for name in KEPT[platform.name]:
        if name in declared:
            assert declared[name].specifier.contains(Version(there[name]).base_version), f"{name} {there[name]}"
        assert name not in replaced_in_the_page(platform.name)


@pytest.mark.parametrize("platform", PLATFORMS, ids=NAMES)
def test_the_page_lists_every_direct_dependency_that_is_replaced(platform: Any) -> None:
    there = platform.versions
    replaced = replaced_in_the_page(platform.name)
    declared = requirements(platform.python)
    outside = {
        name
        for name, requirement in declared.items()
        if name in there and not requirement.specifier.contains(Version(there[name]).base_version)
    }
    assert outside <= replaced.keys()
    assert {name: there[name] for name in replaced} == replaced
    assert "torch 2.1" in PAGE.partition(f"### {platform.name}")[2].partition("| replaced")[0]


@pytest.mark.parametrize("name", ["torch", "transformers", "peft", "trl", "datasets", "accelerate"])
def test_both_ends_of_a_range_are_accepted_by_unsloth(name: str) -> None:
    wanted = [
        parsed.specifier
        for package in ("unsloth", "unsloth_zoo")
        for line in importlib.metadata.requires(package) or ()
        if (parsed := Requirement(line)).name == name and "extra ==" not in line
    ]
    assert wanted
    row = re.search(rf"(?m)^\| {name} \|[^|]*\| (\S+) \| (\S+) \|", PAGE)
    assert row is not None
    own = requirements("3.11")[name].specifier
    for end in row.groups():
        assert own.contains(end), f"{name} {end} is documented as tested"
        assert all(specifier.contains(end) for specifier in wanted), f"Unsloth refuses {name} {end}"
    lowest = min(Version(part.version) for part in own if part.operator == ">=")
    assert lowest.release[:2] == Version(row[1]).release[:2]


def test_the_install_lines_of_the_page_are_those_of_the_messages() -> None:
    for capability in ("7.5", "6.0"):
        assert f"`{install_line([capability])}`" in PAGE
    own = requirements("3.12")["torch"].specifier
    for line in (install_line(["7.5"]), install_line(["6.0"])):
        lower, upper = re.findall(r"\d+\.\d+", line.partition("'torch")[2].partition("'")[0])
        assert own.contains(f"{lower}.0")
        assert not own.contains(f"{upper}.0") or Version(upper) <= Version("2.12")


def test_no_extra_asks_for_xformers() -> None:
    assert not [line for lines in PROJECT["optional-dependencies"].values() for line in lines if "xformers" in line]


def test_a_list_is_read_with_its_local_versions(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("# platform: One\n# python: 3.12\n# source: a list\n\ntorch==2.10.0+cu128\nHugging_Face.hub==1.2\n")
    platform = SCRIPT.read_platform(path)
    assert (platform.name, platform.python, platform.source) == ("One", "3.12", "a list")
    assert platform.versions == {"torch": "2.10.0+cu128", "hugging-face-hub": "1.2"}
    shown = SCRIPT.table(platform, {"torch": "2.10.0", "hugging-face-hub": "2.0", "new": "3"})
    assert "torch 2.10.0+cu128" in shown
    assert "| hugging-face-hub | 1.2 | 2.0 |" in shown
    assert "Added: new 3." in shown
