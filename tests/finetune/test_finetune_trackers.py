import importlib.util
import json
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune.monitor.trackers import RUN_ID, Tracker, TrackerCallback, check_trackers
from gladstone.errors import ConfigError, UnsupportedError
from tests.finetune.histories import made_up_history

CONFIG = {"name": "tiny", "lora": {"rank": 8}, "training": {"seed": 0}}
HISTORY = made_up_history(6, validations=2)


def report(names: list[Tracker], out: Path, first: int = 1, last: int = 6, *, resume: bool = False) -> None:
    with TrackerCallback(names, "tiny", out, CONFIG, resume=resume) as reporter:
        for stats in HISTORY.steps[first - 1 : last]:
            reporter.on_step_end(stats, 6)
            for step, loss in HISTORY.validation:
                if step == stats.step:
                    reporter.on_validation_end(step, loss)
        if last == 6:
            reporter.on_scores(6, {"rougeL": 0.25})
            reporter.log_held_out(4.0, 2.0)


EXPECTED = {
    "train/loss": [(stats.step, stats.loss_nats_per_token) for stats in HISTORY.steps],
    "train/learning_rate": [(stats.step, stats.learning_rate) for stats in HISTORY.steps],
    "train/tokens_per_s": [(stats.step, stats.tokens / stats.step_s) for stats in HISTORY.steps],
    "validation/loss": HISTORY.validation,
    "samples/rougeL": [(6, 0.25)],
    "held_out/loss_before": [(6, 4.0)],
    "held_out/loss_after": [(6, 2.0)],
}


def check(found: dict[str, list[tuple[int, float]]]) -> None:
    for name, points in EXPECTED.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points], name
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in points], rel=1e-6), name


def tensorboard_scalars(out: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format with blocks of 32 kB, behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def wandb_scalars(out: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(out.glob("wandb/offline-run-*/*.wandb")):
        for record in wandb_records(path):
            if record.WhichOneof("record_type") == "history":
                values = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                for name, value in values.items():
                    found.setdefault(name, []).append((int(values["step"]), json.loads(value)))
    return found


def trackio_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    with sqlite3.connect(folder / "gladstone.db") as database:
        rows = database.execute("select step, metrics from metrics order by id").fetchall()
    database.close()
    for step, metrics in rows:
        for name, value in json.loads(metrics).items():
            found.setdefault(name, []).append((step, value))
    return found


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Trackers that keep everything here."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def test_tensorboard_has_every_figure(tmp_path: Path) -> None:
    report(["tensorboard"], tmp_path)
    check(tensorboard_scalars(tmp_path))


def test_tensorboard_shows_a_broken_run_once(tmp_path: Path) -> None:
    report(["tensorboard"], tmp_path, last=4)
    report(["tensorboard"], tmp_path, first=3, resume=True)
    check(tensorboard_scalars(tmp_path))


CHILD = """
import sys
from pathlib import Path
from tests.conftest import _guarded
import socket
for name, place in (("connect", 0), ("connect_ex", 0), ("sendto", -1)):
    setattr(socket.socket, name, _guarded(getattr(socket.socket, name), place))
from tests.finetune.test_finetune_trackers import report
from finetune.monitor.trackers import check_trackers
check_trackers([sys.argv[1]])
report([sys.argv[1]], Path(sys.argv[2]), last=4)
report([sys.argv[1]], Path(sys.argv[2]), first=5, resume=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_a_tracker_keeps_every_figure_here_and_reaches_for_no_network(offline: Path, tracker: str) -> None:
    pytest.importorskip(tracker, reason="the extra trackers is not installed")
    # a process of its own: both leave threads, and W&B a service, behind
    done = subprocess.run(
        [sys.executable, "-c", CHILD, tracker, str(offline / "out")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    check(wandb_scalars(offline / "out") if tracker == "wandb" else trackio_scalars(offline / "trackio"))


@pytest.mark.slow
def test_both_calls_of_a_broken_run_are_one_run_of_wandb(offline: Path) -> None:
    pytest.importorskip("wandb", reason="the extra trackers is not installed")
    (offline / "out").mkdir()
    subprocess.run(
        [sys.executable, "-c", CHILD, "wandb", str(offline / "out")],
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    names = {path.name for path in offline.glob("out/wandb/offline-run-*/*.wandb")}
    assert len(names) == 1
    run = next(
        record.run
        for path in offline.glob("out/wandb/offline-run-*/*.wandb")
        for record in wandb_records(path)
        if record.WhichOneof("record_type") == "run"
    )
    assert run.project == "gladstone"
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["lora"] == {"rank": 8}


def test_a_run_that_begins_anew_is_another_run(tmp_path: Path) -> None:
    ids = []
    for resume in (False, True, False):
        report(["tensorboard"], tmp_path, last=1, resume=resume)
        ids.append((tmp_path / "checkpoints" / RUN_ID).read_text())
    assert ids[0] == ids[1] != ids[2]


def test_without_a_tracker_nothing_is_written_or_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.finetune.test_finetune_trackers import report\n"
        "from finetune.monitor.trackers import check_trackers\n"
        f"check_trackers([]); report([], Path({str(tmp_path)!r}))\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & "
        "{'wandb', 'trackio', 'tensorboard', 'torch'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_refused_with_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "trackio" else found(name, *more)
    )
    with pytest.raises(UnsupportedError) as caught:
        check_trackers(["tensorboard", "trackio"])
    assert str(caught.value) == (
        "training.report_to needs trackio, not installed here. Run: pip install 'gladstone[trackers]' "
        "(from a clone: pip install '.[trackers]')"
    )


@pytest.mark.slow
def test_wandb_without_a_key_is_refused_before_it_could_ask(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra trackers is not installed")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(offline / "netrc"))
    with pytest.raises(ConfigError, match=r"wandb has no key on this machine\. Run `wandb login`"):
        check_trackers(["wandb"])
