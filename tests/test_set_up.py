"""`scripts/setup.py`: which of llama.cpp's back ends are built. The build itself takes minutes and is not run here."""

import importlib.util
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
LIST = """if (GGML_CPU_ALL_VARIANTS)
    if (GGML_SYSTEM_ARCH STREQUAL "x86")
        ggml_add_cpu_backend_variant(x64)
        ggml_add_cpu_backend_variant(haswell            SSE42 AVX F16C FMA AVX2 BMI2)
        if (NOT MSVC)
            ggml_add_cpu_backend_variant(zen4           SSE42 AVX AVX512)
            ggml_add_cpu_backend_variant(sapphirerapids AMX_INT8)
        endif()
    elseif(GGML_SYSTEM_ARCH STREQUAL "ARM")
        ggml_add_cpu_backend_variant(armv8.2_1    DOTPROD)
    endif()
endif()
"""


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script as a module, its stamp in a folder of the test."""
    spec = importlib.util.spec_from_file_location("set_up_script", ROOT / "scripts" / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "STAMP", tmp_path / "stamp")
    return module


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "llama_cpp_python-1.tar.gz"
    listed = tmp_path / "list"
    listed.write_text(LIST)
    with tarfile.open(path, "w:gz") as packed:
        packed.add(listed, "llama_cpp_python-1/vendor/llama.cpp/ggml/src/CMakeLists.txt")
    return path


def test_only_the_chosen_back_ends_stay_in_the_list(setup: ModuleType, archive: Path, tmp_path: Path) -> None:
    sources = setup.with_variants(archive, tmp_path / "work", ("haswell", "zen4"))
    text = (sources / "vendor" / "llama.cpp" / "ggml" / "src" / "CMakeLists.txt").read_text()
    kept = [line for line in LIST.splitlines() if "x64" not in line and "sapphirerapids" not in line]
    assert text.splitlines() == kept  # other processors' back ends are all built


def test_a_list_without_a_chosen_back_end_is_an_error(setup: ModuleType, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(setup.SetUpError, match="list no back end icelake"):
        setup.with_variants(archive, tmp_path / "work", ("icelake",))


def test_the_choice_of_back_ends_is_read_and_kept(setup: ModuleType) -> None:
    assert setup.chosen_variants("portable") == ()
    assert setup.chosen_variants("all") == setup.VARIANTS
    assert setup.chosen_variants("zen4,haswell,zen4") == ("zen4", "haswell")
    with pytest.raises(setup.SetUpError, match=r"--cpu zen9: expected portable, all, or some of x64, haswell"):
        setup.chosen_variants("zen9")
    assert setup.set_up_before() == "portable"
    for variants in ((), ("haswell", "zen4"), setup.VARIANTS):
        setup.STAMP.write_text(setup.stamp("cpu", variants))
        assert setup.chosen_variants(setup.set_up_before()) == variants
    setup.STAMP.write_text("an older stamp")
    assert setup.set_up_before() == "portable"


def test_no_back_end_with_amx_is_built_and_every_name_is_known_at_run_time(setup: ModuleType) -> None:
    from gladstone.llamacpp.backends import VARIANTS

    assert set(setup.VARIANTS) <= set(VARIANTS)
    assert set(VARIANTS) == setup.X86_VARIANTS
    assert not any("amx" in flag for name in setup.VARIANTS for flag in VARIANTS[name])
