"""The rules of the house, read off the imports: who may name whom, and what loads when."""

import ast
import functools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ("finetune", "export", "runtime", "bench")
PACKAGES = ("gladstone", *STAGES)
MAY_IMPORT = {
    "gladstone": {"gladstone"},
    "finetune": {"gladstone", "finetune"},
    "export": {"gladstone", "export"},
    "runtime": {"gladstone", "runtime"},
    "bench": {"gladstone", "runtime", "bench"},
}
REACH_ALL = {"gladstone/cli.py", "gladstone/demo.py"}
HEAVY = {
    "torch", "transformers", "unsloth", "trl", "peft", "llama_cpp", "gradio", "ray", "optuna", "matplotlib", "datasets",
    "safetensors", "tokenizers", "bitsandbytes", "evaluate", "huggingface_hub",
}  # fmt: skip
MOST_MODULES = 15  # of a folder that a reader can take in
ROOM = {"gladstone/formats": 24, "export/proof": 18}  # a module for each row format; one for each check of the proof
VAGUE = {"utils", "util", "common", "helpers", "helper", "misc", "base"}


@dataclass(frozen=True)
class Import:
    """One imported module; `lazy` inside a function, `typing` under `if TYPE_CHECKING`."""

    module: str
    line: int
    lazy: bool
    typing: bool
    level: int = 0
    star: bool = False

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


@dataclass(frozen=True)
class Source:
    """A file of the packages."""

    name: str
    package: str
    docstring: str
    imports: tuple[Import, ...]


@functools.cache
def sources() -> tuple[Source, ...]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return tuple(read_source(path) for path in paths)


def read_source(path: Path) -> Source:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    name = path.relative_to(ROOT).as_posix()
    return Source(name, name.partition("/")[0], ast.get_docstring(tree) or "", tuple(walk(tree.body, False, False)))


def is_module(package: str, name: str) -> bool:
    """True if what is imported from a package of ours is a file or folder of its own."""
    path = ROOT.joinpath(*package.split("."), name)
    return package in PACKAGES or path.is_dir() or path.with_suffix(".py").is_file()


def walk(body: list[ast.stmt], lazy: bool, typing: bool) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, lazy, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                module = node.module or ""
                module = f"{module}.{alias.name}" if is_module(module, alias.name) else module
                yield Import(module, node.lineno, lazy, typing, node.level, alias.name == "*")
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for part in ("body", "orelse", "finalbody"):
            yield from walk(getattr(node, part, []), inside, typing or (checked and part == "body"))
        for nested in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
            yield from walk(nested.body, inside, typing)


def violations(condition: str, found: list[tuple[Source, Import]]) -> None:
    assert not found, (
        condition + "\n" + "\n".join(f"{source.name}:{each.line}: {each.module}" for source, each in found)
    )


def all_imports() -> list[tuple[Source, Import]]:
    return [(source, each) for source in sources() for each in source.imports]


def test_the_reader_of_imports_sees_every_way_to_import() -> None:
    path = ROOT / "tests" / "gladstone" / "imports_sample.txt"
    found = {(each.module, each.lazy, each.typing, each.star) for each in read_source(path).imports}
    assert found == {
        ("os", False, False, False),
        ("typing", False, False, False),
        ("torch", False, False, False),
        ("peft.tuners", True, False, False),
        ("gladstone.errors", False, True, False),
        ("json", False, False, True),
        ("trl", True, False, False),
        ("ray", True, False, False),
        ("datasets", False, False, False),
        ("unsloth", False, False, False),
        ("gradio", False, False, False),
    }


def test_every_package_is_read() -> None:
    for package in PACKAGES:
        assert f"{package}/__init__.py" in {source.name for source in sources()}
        assert f"{package}/cli.py" in {source.name for source in sources()}


def test_a_stage_imports_gladstone_only_and_bench_also_runtime() -> None:
    violations(
        "packages import in one direction",
        [
            (source, each)
            for source, each in all_imports()
            if each.top in PACKAGES and each.top not in MAY_IMPORT[source.package] and source.name not in REACH_ALL
        ],
    )


def test_the_umbrella_reaches_the_stages_lazily() -> None:
    violations(
        "gladstone.cli and gladstone.demo import stages inside functions",
        [(s, each) for s, each in all_imports() if s.name in REACH_ALL and each.top in STAGES and not each.lazy],
    )


def test_nothing_imports_a_cli() -> None:
    clis = {f"{package}.cli" for package in PACKAGES}
    violations(
        "nothing imports a cli",
        [
            (source, each)
            for source, each in all_imports()
            if any(each.module == cli or each.module.startswith(f"{cli}.") for cli in clis)
            and not source.name.endswith("__main__.py")
            and source.name not in REACH_ALL
        ],
    )


def test_imports_are_absolute_and_name_what_they_take() -> None:
    violations("no relative imports", [(s, each) for s, each in all_imports() if each.level])
    violations("no star imports", [(s, each) for s, each in all_imports() if each.star])


def test_no_module_has_a_vague_name() -> None:
    vague = [source.name for source in sources() if VAGUE & {Path(source.name).stem, *Path(source.name).parts}]
    assert vague == []


def test_every_module_says_what_it_holds() -> None:
    assert [source.name for source in sources() if not source.docstring.strip()] == []


def test_heavy_libraries_are_imported_inside_functions() -> None:
    violations(
        "heavy libraries are imported in the function that needs them",
        [(s, each) for s, each in all_imports() if each.top in HEAVY and not each.lazy and not each.typing],
    )


def names(docstring: str) -> str:
    """The sentence of a docstring that tells which libraries the file names."""
    flat = " ".join(docstring.split())
    sentences = [part for part in flat.replace("; ", ". ").split(". ") if "Names " in part or " names " in part]
    return " ".join(sentences)


def test_a_file_that_names_a_heavy_library_says_so_in_its_docstring() -> None:
    violations(
        "the module's docstring says 'Names …' the library",
        [
            (source, each)
            for source, each in all_imports()
            if each.top in HEAVY and not each.typing and each.top not in names(source.docstring)
        ],
    )


def module_name(source: Source) -> str:
    return source.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@functools.cache
def imported_modules() -> dict[str, set[str]]:
    """The modules of ours that each one imports: at load time, lazily or for types alone."""
    names = {module_name(source) for source in sources()}
    graph: dict[str, set[str]] = {name: set() for name in names}
    for source, statement in all_imports():
        module = statement.module if statement.module in names else statement.module.rpartition(".")[0]
        if module in names and module != module_name(source):
            graph[module_name(source)].add(module)
    return graph


def circles(graph: dict[str, set[str]]) -> list[str]:
    """A circle of each group of nodes that reach one another, as "a → b → a"."""
    found: list[str] = []
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            found.append(" → ".join((*path[path.index(name) :], name)))
        elif name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())
    return found


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b → c → b"]


def test_no_module_imports_in_a_circle_lazily_or_for_types_either() -> None:
    assert circles(imported_modules()) == []


def test_no_folder_imports_in_a_circle() -> None:
    """Modules at the top of a package stand above its folders, and reach down freely."""
    folders = {module_name(source): Path(source.name).parent.as_posix() for source in sources()}
    graph: dict[str, set[str]] = {}
    for name, others in imported_modules().items():
        reached = {folders[other] for other in others} - {folders[name], *PACKAGES}
        if folders[name] not in PACKAGES:
            graph.setdefault(folders[name], set()).update(reached)
    assert circles(graph) == []


def test_no_folder_is_crowded() -> None:
    count = Counter(Path(source.name).parent.as_posix() for source in sources() if not source.name.endswith("__.py"))
    crowded = {folder: modules for folder, modules in count.items() if modules > ROOM.get(folder, MOST_MODULES)}
    assert crowded == {}, f"more than {MOST_MODULES} modules"


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_cli_loads_nothing_heavy(package: str) -> None:
    code = f"import sys, json, {package}.cli; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert package in loaded
    assert loaded & (HEAVY | {"numpy", "sacrebleu", "pandas", "scipy"}) == set()
    assert loaded & set(STAGES) <= {package}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_help_of_a_command_loads_nothing_heavy(package: str) -> None:
    code = (
        f"import sys, json; from {package}.cli import main; main(['--help'], standalone_mode=False);"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "Usage:" in done.stdout
    loaded = {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}
    assert loaded & (HEAVY | {"numpy", "pydantic", "rich", "prompt_toolkit"}) == set()
