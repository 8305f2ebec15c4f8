import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gladstone.errors import DataError
from gladstone.formats import find_layout, iter_conversations, read_conversations
from gladstone.rows import Problems
from tests.data.broken import Broken, cases

CASES = cases()
MAX_S, MAX_MESSAGE_CHARS, MAX_PEAK_BYTES = 10, 8000, 700 << 20
READ_ALL = """
import sys
from pathlib import Path
from gladstone.errors import DataError
from gladstone.formats import read_conversations
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        read_conversations(path, "qa")
    except DataError:
        continue
    raise SystemExit(f"{path} was read")
print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1])
"""


def test_the_corpus_is_large_and_names_are_unique() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_broken_file_is_one_readable_message(tmp_path: Path, case: Broken) -> None:
    path = case.write(tmp_path)
    begin_s = time.process_time()
    with pytest.raises(DataError) as caught:
        read_conversations(path, case.format)
    message = str(caught.value)
    assert time.process_time() - begin_s < MAX_S
    assert case.says in message
    assert message.startswith(str(path))
    assert len(message) < MAX_MESSAGE_CHARS
    assert len(message.splitlines()) <= 12
    assert message.isprintable() or message.replace("\n", "").isprintable()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_skipping_bad_rows_keeps_the_good_ones_and_counts_the_rest(tmp_path: Path, case: Broken) -> None:
    path = case.write(tmp_path)
    problems = Problems()
    if case.good_rows is None:
        with pytest.raises(DataError):
            list(iter_conversations(path, find_layout(path, case.format), problems))
        return
    rows = list(iter_conversations(path, find_layout(path, case.format), problems))
    assert len(rows) == case.good_rows
    assert problems.count + len(problems.unread) >= 1
    assert len(problems.shown) == min(problems.count, 10)


@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory from /proc")
def test_memory_stays_bounded_over_the_whole_corpus(tmp_path: Path) -> None:
    for case in CASES:
        case.write(tmp_path)
    limits = (4 << 30, 4 << 30)
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limits),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) * 1024 < MAX_PEAK_BYTES
