import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gladstone.errors import DataError, GladstoneError, ToolError
from gladstone.process.child import ChildOptions, describe_exit, exit_name, run_child, start_child
from tests.waiting import wait_until


def child(folder: Path, code: str) -> tuple[str, tuple[Path, ...]]:
    (folder / "small_child.py").write_text(
        f"import json, os, signal, sys, time\njob = json.loads(sys.stdin.readline())\n{code}\n"
    )
    return "small_child", (folder,)


def run(folder: Path, code: str, **job: object) -> None:
    module, path = child(folder, code)
    run_child(module, job, "The work", ChildOptions(python_path=path))


def test_a_child_gets_its_job_and_may_print_anything(tmp_path: Path) -> None:
    code = "print('noise' * 100_000); print('noise' * 100_000, file=sys.stderr); open(job['out'], 'w').write(job['a'])"
    run(tmp_path, code, out=str(tmp_path / "out"), a="Größe")
    assert (tmp_path / "out").read_text() == "Größe"


def test_a_child_that_fails_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(ToolError) as caught:
        run(tmp_path, "for n in range(50): print('line', n, file=sys.stderr)\nsys.exit(7)")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("The work failed (exit code 7).")
    assert lines[1:] == [f"    line {number}" for number in range(30, 50)]


def test_a_traceback_of_a_child_is_shown(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"(?s)exit code 1.*KeyError: 'absent'"):
        run(tmp_path, "job['absent']")


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGABRT"])
def test_a_child_that_is_killed_is_reported_with_the_signal(tmp_path: Path, name: str) -> None:
    with pytest.raises(ToolError, match=rf"The work failed \({name}"):
        run(tmp_path, f"os.kill(os.getpid(), signal.{name})")


def test_the_end_of_a_process_has_a_name() -> None:
    assert [exit_name(code) for code in (0, 7, -4, -2000)] == ["exit code 0", "exit code 7", "SIGILL", "signal 2000"]
    assert describe_exit(-9) == "SIGKILL: did memory run out?"
    assert describe_exit(-6) == "SIGABRT"


def test_an_error_for_the_user_comes_through_as_it_is_whatever_a_library_prints_behind_it(tmp_path: Path) -> None:
    module, path = child(tmp_path, "")
    (tmp_path / "small_child.py").write_text(
        "import atexit, sys\nfrom gladstone.process.child_main import serve\nfrom gladstone.errors import DataError\n"
        "atexit.register(lambda: print('Writing:  98%', file=sys.stderr))\n"
        "class OwnError(DataError): pass\n"
        "def work(job): raise OwnError('it is not finite')\nserve(work)\n"
    )
    with pytest.raises(GladstoneError, match=r"^it is not finite$") as caught:
        run_child(module, {}, "The work", ChildOptions(python_path=path))
    assert type(caught.value) is DataError


SERVED = """
import sys
from gladstone.process.child_main import send, send_fraction, serve
def work(job):
    print("what a library prints")
    print('{"result": "a line that looks like an event"}')
    send(row=1)
    send_fraction(0.5)
    return job["a"] * 2
serve(work)
"""


def test_events_arrive_apart_from_what_a_child_prints(tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(SERVED)
    with start_child("served", {"a": 21}, ChildOptions(python_path=[tmp_path])) as running:
        assert list(running.events()) == [{"row": 1}, {"fraction": 0.5}, {"result": 42}]
        assert running.wait() == 0
        assert running.log().startswith("what a library prints\n")


@pytest.mark.parametrize("limits", [{"time_s": 0.3}, {"memory_bytes": 60_000_000}])
def test_a_child_that_exceeds_a_limit_is_killed(tmp_path: Path, limits: dict[str, float]) -> None:
    module, path = child(tmp_path, "print('{\"begun\": 1}', flush=True)\nheld = b'x' * 100_000_000\ntime.sleep(600)")
    with start_child(module, {}, ChildOptions(python_path=path, **limits)) as running:  # type: ignore[arg-type]
        list(running.events())
        assert running.wait() == -9
    assert running.exceeded == next(iter(limits)).partition("_")[0]


def test_a_child_within_its_limits_is_left_alone(tmp_path: Path) -> None:
    module, path = child(tmp_path, "time.sleep(0.2)")
    with start_child(module, {}, ChildOptions(python_path=path, time_s=60, memory_bytes=10**9)) as running:
        assert running.wait() == 0
    assert running.exceeded is None


def test_ctrl_c_lets_a_child_save_its_work_if_it_does(tmp_path: Path) -> None:
    """The exception stands for Ctrl-C while the child works."""
    code = (
        "try: print('{\"begun\": 1}', flush=True); time.sleep(600)\n"
        "except KeyboardInterrupt: open(job['out'], 'w').write('saved'); sys.exit(130)"
    )
    module, path = child(tmp_path, code)
    options = ChildOptions(python_path=path, saves_on_interrupt=True)
    job = {"out": str(tmp_path / "out")}
    with pytest.raises(KeyboardInterrupt), start_child(module, job, options) as running:  # noqa: PT012
        next(running.events())
        raise KeyboardInterrupt
    assert (tmp_path / "out").read_text() == "saved"


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    """Killed, a parent can tell it nothing."""
    (tmp_path / "endless.py").write_text(
        "import os, time\nfrom pathlib import Path\nfrom gladstone.process.child_main import serve\n"
        "def work(job):\n    Path(job['out']).write_text(str(os.getpid()))\n    time.sleep(600)\nserve(work)\n"
    )
    told = tmp_path / "pid"
    code = f"from pathlib import Path\nfrom gladstone.process.child import ChildOptions, run_child\nrun_child('endless', {{'out': {str(told)!r}}}, 'x', ChildOptions(python_path=[Path({str(tmp_path)!r})]))"
    parent = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: told.exists() and told.read_text(), "the child works")
    parent.kill()
    parent.wait()
    wait_until(lambda: not Path(f"/proc/{told.read_text()}").exists(), "the child ends with its parent")


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

    def interrupt_at_work() -> None:
        wait_until(lambda: mark.exists() and mark.read_text(), "the child works")
        os.kill(os.getpid(), signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, interrupt)
    watcher = threading.Thread(target=interrupt_at_work)
    watcher.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, "open(job['mark'], 'w').write(str(os.getpid())); time.sleep(600)", mark=str(mark))
    finally:
        watcher.join()
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
