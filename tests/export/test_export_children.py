import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from export.children import run_child
from gladstone.errors import ToolError, UnsupportedError


def child(folder: Path, code: str) -> tuple[str, tuple[Path, ...]]:
    (folder / "small_child.py").write_text(
        f"import json, os, signal, sys, time\njob = json.loads(sys.stdin.readline())\n{code}\n"
    )
    return "small_child", (folder,)


def run(folder: Path, code: str, **job: object) -> None:
    module, path = child(folder, code)
    run_child(module, job, "The work", path)


def test_a_child_gets_its_job_and_may_print_as_it_likes(tmp_path: Path) -> None:
    code = "print('noise' * 100_000); print('noise' * 100_000, file=sys.stderr); open(job['out'], 'w').write(job['a'])"
    run(tmp_path, code, out=str(tmp_path / "out"), a="Größe")
    assert (tmp_path / "out").read_text() == "Größe"


def test_a_child_that_fails_is_told_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(ToolError) as caught:
        run(tmp_path, "for n in range(50): print('line', n, file=sys.stderr)\nsys.exit(7)")
    lines = str(caught.value).splitlines()
    assert lines[0] == "The work failed (exit code 7). Its last lines:"
    assert lines[1:] == [f"    line {number}" for number in range(30, 50)]


def test_a_traceback_of_a_child_is_shown(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"(?s)exit code 1.*KeyError: 'absent'"):
        run(tmp_path, "job['absent']")


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
@pytest.mark.parametrize(("name", "number"), [("SIGKILL", 9), ("SIGABRT", 6)])
def test_a_child_that_is_killed_is_told(tmp_path: Path, name: str, number: int) -> None:
    with pytest.raises(ToolError, match=rf"The work failed \(exit code -{number}\)"):
        run(tmp_path, f"os.kill(os.getpid(), signal.{name})")


def test_an_error_meant_for_the_user_comes_through_as_it_is(tmp_path: Path) -> None:
    code = "print('a warning', file=sys.stderr); print('it is not supported', file=sys.stderr); sys.exit(3)"
    with pytest.raises(UnsupportedError) as caught:
        run(tmp_path, code)
    assert str(caught.value) == "it is not supported"


def test_what_a_library_prints_behind_an_error_does_not_stand_in_for_it(tmp_path: Path) -> None:
    module, path = child(tmp_path, "")
    (tmp_path / "small_child.py").write_text(
        "import atexit, sys\nfrom export.children import serve\nfrom gladstone.errors import DataError\n"
        "atexit.register(lambda: print('Writing:  98%', file=sys.stderr))\n"
        "def work(job): raise DataError('it is not finite')\nserve(work)\n"
    )
    with pytest.raises(UnsupportedError, match=r"^it is not finite$"):
        run_child(module, {}, "The work", [*path, Path.cwd()])


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    """Killed, a parent can tell it nothing."""
    (tmp_path / "endless.py").write_text(
        "import os, time\nfrom pathlib import Path\nfrom export.children import serve\n"
        "def work(job):\n    Path(job['out']).write_text(str(os.getpid()))\n    time.sleep(600)\nserve(work)\n"
    )
    told = tmp_path / "pid"
    code = f"from pathlib import Path\nfrom export.children import run_child\nrun_child('endless', {{'out': {str(told)!r}}}, 'x', [Path({str(tmp_path)!r})])"
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline_s = time.monotonic() + 60
    while not (told.exists() and told.read_text()):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    while Path(f"/proc/{told.read_text()}").exists():
        assert time.monotonic() < deadline_s, "the child lives on"
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_a_child_stopped_by_ctrl_c_stops_us_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "signal.signal(signal.SIGINT, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGINT)")


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_no_child_outlives_ctrl_c(tmp_path: Path) -> None:
    """The alarm stands for Ctrl-C that only the parent gets."""
    mark = tmp_path / "pid"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, "open(job['mark'], 'w').write(str(os.getpid())); time.sleep(120)", mark=str(mark))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_a_child_does_not_import_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "json.py").write_text("raise SystemExit('the wrong json')")
    (tmp_path / "modules").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run(tmp_path / "modules", "open(job['out'], 'w').write('done')", out=str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "done"
