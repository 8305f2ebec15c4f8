import sys
from pathlib import Path

import pytest

from tests.faults.damage_gguf import Result, run, table
from tests.faults.damages import DAMAGES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory from /proc")
ALWAYS = len(DAMAGES)  # one file of each kind


def check(results: list[Result]) -> None:
    """No crash, no hang, bounded memory, one line for each refusal."""
    problems = [result for result in results if result.problems]
    assert not problems, f"{problems}\n{table(results)}"


def test_no_damaged_file_ends_the_process_or_holds_it_up(tmp_path: Path) -> None:
    results = list(run(ALWAYS, 0, tmp_path))
    check(results)
    assert {result.kind for result in results} == set(DAMAGES)
    assert sum(result.outcome == "guard" for result in results) > ALWAYS / 3
    assert sum(result.outcome == "trial" for result in results) > ALWAYS / 20


def test_no_damaged_file_is_accepted_beside_a_manifest(tmp_path: Path) -> None:
    results = list(run(ALWAYS, 1, tmp_path, with_manifest=True))
    check(results)
    assert {result.outcome for result in results} <= {"guard", "manifest"}


@pytest.mark.long
def test_no_damaged_file_of_a_thousand_ends_the_process_or_holds_it_up(tmp_path: Path) -> None:
    results = list(run(1000, 2, tmp_path))
    check(results)


@pytest.mark.long
def test_no_damaged_file_of_a_thousand_is_accepted_beside_a_manifest(tmp_path: Path) -> None:
    results = list(run(1000, 3, tmp_path, with_manifest=True))
    check(results)
    assert {result.outcome for result in results} <= {"guard", "manifest"}
