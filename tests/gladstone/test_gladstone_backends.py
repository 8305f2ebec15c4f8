"""Which CPU backend is chosen: among simulated ones that lie, crash, hang or compute nonsense, and real broken files."""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gladstone.errors import UnsupportedError
from gladstone.llamacpp import backends
from gladstone.llamacpp.backends import (
    VARIANTS,
    Probe,
    backend_files,
    backend_id,
    choose_backend,
    compiler_of,
    fingerprint,
    load_best_backend,
    probe_backend,
)
from gladstone.llamacpp.devices import read_devices
from gladstone.machine.packages import llamacpp_folder
from gladstone.process.child import run_child

ALL_FLAGS = frozenset(flag for flags in VARIANTS.values() for flag in flags)
RIGHT = (1.0, -2.0, 0.5)


def named(*variants: str) -> list[Path]:
    return [Path(f"libggml-cpu-{variant}.so") for variant in variants]


def answers(found: dict[str, Probe]) -> Callable[[Path], Probe]:
    """A pretended child process for each variant."""
    return lambda path: found[path.name.removeprefix("libggml-cpu-").removesuffix(".so")]


def works(time_s: float, *logits: float) -> Probe:
    return Probe(logits or RIGHT, time_s)


def test_the_fastest_that_works_is_taken() -> None:
    probe = answers({"haswell": works(0.02), "skylakex": works(0.012), "zen4": works(0.01)})
    path, verdicts = choose_backend(named("haswell", "skylakex", "zen4"), ALL_FLAGS, probe)
    assert path.name == "libggml-cpu-zen4.so"
    assert verdicts["libggml-cpu-skylakex.so"] == "12.0 ms"


def test_a_smaller_one_wins_only_if_it_is_clearly_faster() -> None:
    near = answers({"haswell": works(0.0095), "zen4": works(0.01)})
    assert choose_backend(named("zen4", "haswell"), ALL_FLAGS, near)[0].name == "libggml-cpu-zen4.so"
    far = answers({"haswell": works(0.005), "zen4": works(0.01)})  # a processor that slows down for wide registers
    assert choose_backend(named("zen4", "haswell"), ALL_FLAGS, far)[0].name == "libggml-cpu-haswell.so"


def test_one_that_claims_more_than_the_processor_has_is_not_even_tried() -> None:
    tried = []

    def probe(path: Path) -> Probe:
        tried.append(path.name)
        return works(0.01)

    path, verdicts = choose_backend(named("sapphirerapids", "zen4", "haswell"), frozenset(VARIANTS["haswell"]), probe)
    assert path.name == "libggml-cpu-haswell.so"
    assert tried == ["libggml-cpu-haswell.so"]
    assert verdicts["libggml-cpu-zen4.so"] == "needs instructions that this CPU lacks"


def test_without_cpu_flags_every_backend_is_probed() -> None:
    probe = answers({"haswell": works(0.02), "zen4": Probe(failure="crashed with signal 4")})
    path, verdicts = choose_backend(named("zen4", "haswell"), frozenset(), probe)
    assert path.name == "libggml-cpu-haswell.so"
    assert verdicts["libggml-cpu-zen4.so"] == "crashed with signal 4"


@pytest.mark.parametrize(
    "bad",
    [
        Probe(failure="crashed with signal 4"),
        Probe(failure="gave no answer in 30 s"),
        Probe(failure="does not load: no"),
        works(0.001, 1.0, -2.0, 0.9),
        works(0.001, math.nan, -2.0, 0.5),
        works(0.001, 1.0, -2.0),
        Probe((), 0.001),
    ],
)
def test_one_that_crashes_hangs_or_computes_wrong_numbers_is_not_taken(bad: Probe) -> None:
    found = {"haswell": works(0.02), "skylakex": works(0.015, 1.01, -2.02, 0.49), "zen4": bad}
    path, verdicts = choose_backend(named("haswell", "skylakex", "zen4"), ALL_FLAGS, answers(found))
    assert path.name == "libggml-cpu-skylakex.so"
    assert verdicts["libggml-cpu-zen4.so"] == (bad.failure or "computes wrong numbers")


def test_the_smallest_that_works_is_the_measure_even_if_a_smaller_one_crashes() -> None:
    found = {"x64": Probe(failure="crashed with signal 11"), "haswell": works(0.02), "zen4": works(0.01)}
    assert choose_backend(named("x64", "haswell", "zen4"), ALL_FLAGS, answers(found))[0].name == "libggml-cpu-zen4.so"


def test_if_none_works_the_message_says_what_was_found_of_each() -> None:
    found = {"haswell": Probe(failure="crashed with signal 4"), "zen4": Probe(failure="gave no answer in 30 s")}
    with pytest.raises(UnsupportedError) as caught:
        choose_backend(named("zen4", "haswell"), ALL_FLAGS, answers(found))
    assert str(caught.value) == (
        "no CPU backend of llama.cpp works here (libggml-cpu-zen4.so: gave no answer in 30 s; "
        "libggml-cpu-haswell.so: crashed with signal 4)."
    )
    with pytest.raises(UnsupportedError, match="there is none"):
        choose_backend([], ALL_FLAGS, answers({}))


def test_back_ends_are_found_with_the_most_instructions_first(tmp_path: Path) -> None:
    for name in (
        "libggml-cpu-haswell.so",
        "libggml-cpu-zen4.so",
        "libggml-cpu-new9.so",
        "libggml-base.so",
        "libggml-cpu.txt",
    ):
        (tmp_path / name).touch()
    names = [path.name for path in backend_files(tmp_path)]
    assert names == ["libggml-cpu-zen4.so", "libggml-cpu-haswell.so", "libggml-cpu-new9.so"]


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("GLADSTONE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "backends.json"


@pytest.fixture
def library_of(tmp_path: Path) -> Callable[..., tuple[Any, list[str]]]:
    """A stand-in for the binding's module over a folder of files, and the names of what is loaded into it."""

    def make(*names: str, built_in: int = 0, loads: bool = True) -> tuple[Any, list[str]]:
        folder = tmp_path / "llama_cpp" / "lib"
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / name).write_bytes(name.encode())
        loaded: list[str] = []

        class Call:
            def __init__(self, result: Callable[..., Any]) -> None:
                self.result = result

            def __call__(self, *arguments: Any) -> Any:
                return self.result(*arguments)

        def load(path: bytes) -> int:
            loaded.append(Path(path.decode()).name)
            return int(loads)

        others = ("count", "get", "name", "description", "type", "memory", "get_props", "backend_reg")
        calls = {f"ggml_backend_dev_{name}": Call(lambda: 0) for name in others}
        calls |= {"ggml_backend_reg_name": Call(lambda: b"CPU")}
        calls |= {"ggml_backend_load": Call(load), "ggml_backend_reg_count": Call(lambda: built_in)}
        module = SimpleNamespace(__file__=str(folder.parent / "llama_cpp.py"), _lib=SimpleNamespace(**calls))
        return module, loaded

    return make


def test_a_built_in_back_end_is_left_alone(cache: Path, library_of: Callable[..., tuple[Any, list[str]]]) -> None:
    module, loaded = library_of("libggml-cpu.so", built_in=1)
    assert load_best_backend(module) is None
    assert loaded == []
    assert not cache.exists()


def test_the_file_that_the_environment_names_is_loaded_without_a_trial(
    monkeypatch: pytest.MonkeyPatch, cache: Path, library_of: Callable[..., tuple[Any, list[str]]]
) -> None:
    monkeypatch.setattr(backends, "_loaded", [])
    module, loaded = library_of()
    monkeypatch.setenv("GLADSTONE_CPU_BACKEND", "/x/libggml-cpu-haswell.so")
    assert load_best_backend(module) == Path("/x/libggml-cpu-haswell.so") == backends.loaded_backend()
    assert loaded == ["libggml-cpu-haswell.so"]
    module, _ = library_of(loads=False)
    with pytest.raises(UnsupportedError, match=r"/x/libggml-cpu-haswell\.so: llama\.cpp cannot load it as a backend"):
        load_best_backend(module)


def test_files_that_are_no_back_ends_are_refused_by_real_children(
    cache: Path, library_of: Callable[..., tuple[Any, list[str]]]
) -> None:
    module, loaded = library_of("libggml-cpu-x64.so", "libggml-cpu-new9.so")  # their contents are their names
    with pytest.raises(
        UnsupportedError, match=r"libggml-cpu-x64\.so: does not load: .*; libggml-cpu-new9\.so: does not load"
    ):
        load_best_backend(module)
    assert loaded == []
    assert not cache.exists()


def test_the_choice_is_remembered_until_a_file_or_the_memory_changes(
    monkeypatch: pytest.MonkeyPatch, cache: Path, library_of: Callable[..., tuple[Any, list[str]]]
) -> None:
    monkeypatch.setattr(backends, "_loaded", [])
    module, loaded = library_of("libggml-cpu-x64.so", "libggml-cpu-new9.so", "libggml-vulkan.so")
    with pytest.raises(UnsupportedError):
        load_best_backend(module)
    known = cache.parent
    known.mkdir(parents=True)
    files = backend_files(Path(module.__file__).parent / "lib")
    key = memory_key(files)
    cache.write_text(json.dumps({key: {"backend": "libggml-cpu-x64.so"}}))
    best = load_best_backend(module)  # nothing is tried, or it would fail as above
    assert best is not None
    assert loaded == ["libggml-cpu-x64.so", "libggml-vulkan.so"]
    for text in ("{", "[]", json.dumps({key: 3}), json.dumps({key: {"backend": "libggml-cpu-gone.so"}})):
        cache.write_text(text)
        with pytest.raises(UnsupportedError):
            load_best_backend(module)
    cache.write_text(json.dumps({key: {"backend": "libggml-cpu-x64.so"}}))
    files[-1].write_bytes(b"another build")
    with pytest.raises(UnsupportedError):
        load_best_backend(module)


def memory_key(files: tuple[Path, ...]) -> str:
    import hashlib

    from gladstone.machine.host import cpu_flags, cpu_name

    marks = [cpu_name(), *sorted(cpu_flags()), *map(fingerprint, files)]
    return hashlib.sha256("\n".join(marks).encode()).hexdigest()


BROKEN = {
    "crash": ("__attribute__((constructor)) static void f(void) { __builtin_trap(); }", "crashed with SIG"),
    "hang": ("__attribute__((constructor)) static void f(void) { for (;;) __asm__ volatile(\"\"); }", "gave no answer in 2 s"),
    "lie": ("int ggml_backend_score(void) { return 1 << 30; } void *ggml_backend_init(void) { return 0; }", "does not load: "),
    "empty": ("int nothing;", "does not load: "),
}  # fmt: skip


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("name", BROKEN)
def test_a_real_library_that_is_broken_harms_only_the_child(tmp_path: Path, name: str) -> None:
    code, failure = BROKEN[name]
    path = tmp_path / f"libggml-cpu-{name}.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-o", path, "-"], input=code, text=True, check=True)
    assert probe_backend(path, timeout_s=2.0 if name == "hang" else 60.0).failure.startswith(failure)


def test_a_library_that_is_cut_off_does_not_load(tmp_path: Path) -> None:
    folder = llamacpp_folder()
    assert folder is not None
    whole = next(iter(backend_files(folder))).read_bytes()
    path = tmp_path / "libggml-cpu-haswell.so"
    path.write_bytes(whole[: len(whole) // 2])
    assert probe_backend(path).failure
    assert not probe_backend(path).logits


def test_the_probes_model_gives_the_same_finite_numbers_again() -> None:
    first, second = (run_child("gladstone.llamacpp.backend_probe", {}, "the probe") for _ in range(2))
    assert first["logits"] == second["logits"]
    assert len(first["logits"]) == 9 * 256
    assert 0.1 < max(map(abs, first["logits"])) < 100
    assert first["time_s"] > 0


def test_the_back_end_in_use_has_a_mark_of_its_own() -> None:
    assert re.fullmatch(r"(lib)?ggml-cpu\S* [0-9a-f]{16}", backend_id())


def test_the_processor_is_among_the_devices() -> None:
    devices = read_devices()
    processor = next(device for device in devices if device.kind == "cpu")
    assert processor.total_bytes >= processor.free_bytes > 0
    assert processor.description


def test_the_compiler_of_a_library_is_read_from_its_signature(tmp_path: Path) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(b"\x00GCC: (Debian 12.2.0-14+deb12u1) 12.2.0\x00")
    assert compiler_of(path) == "gcc 12.2.0"
    path.write_bytes(b"\x00GCC: (GNU) 13.2.1\x00Ubuntu clang version 17.0.6 (9)\x00")
    assert compiler_of(path) == "clang 17.0.6"
    path.write_bytes(b"\x00nothing")
    assert compiler_of(path) == ""
