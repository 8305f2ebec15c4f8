"""The child process: `python -m bench.measure.child_main` reads one job from stdin and writes events to stdout, a
JSON line each.

A model lives in a process of its own because llama.cpp can end the process, and because peak memory belongs to one.
The parent keeps stdin open; when it closes, the parent is gone and the child ends itself.
"""

import dataclasses
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from bench.measure.asking import Frame
from bench.measure.measure import QualityJob, SpeedJob, measure_quality, measure_speed
from bench.measure.rows import Room, RowsJob, RowTokens, count_rows
from bench.results import Answer, Item, Loss
from gladstone.chat.messages import message_from_fields
from gladstone.chat.named_templates import NamedTemplate
from gladstone.errors import GladstoneError
from gladstone.machine.host import peak_memory_bytes

Emit = Callable[[str, dict[str, Any]], None]
Job = QualityJob | SpeedJob | RowsJob
JOBS: dict[str, type[Job]] = {"quality": QualityJob, "speed": SpeedJob, "rows": RowsJob}


def encode_job(job: Job) -> str:
    """The line on which a job travels."""
    kind = next(name for name, each in JOBS.items() if isinstance(job, each))
    return json.dumps({"kind": kind, **dataclasses.asdict(job)}, default=str) + "\n"


def decode_job(line: str) -> Job:
    """The job on a line that `encode_job` wrote."""
    fields = json.loads(line)
    kind = fields.pop("kind")
    fields["model"], fields["frame"] = Path(fields["model"]), _frame(fields["frame"])
    fields["items"] = tuple(_item(item) for item in fields["items"])
    return JOBS[kind](**fields)


def run_job(job: Job, emit: Emit) -> None:
    """Do the work, one event for each thing measured, `done` last or `error` instead."""
    try:
        if isinstance(job, SpeedJob):
            emit("speed", dataclasses.asdict(measure_speed(job)))
        else:
            for measured in count_rows(job) if isinstance(job, RowsJob) else measure_quality(job):
                emit(_EVENT_NAMES[type(measured)], dataclasses.asdict(measured))
        emit("done", {"peak_memory_bytes": peak_memory_bytes()})
    except GladstoneError as error:
        emit("error", {"type": type(error).__name__, "message": str(error)})


def main() -> None:
    """Entry of the child process."""
    channel = _take_stdout()

    def emit(event: str, fields: dict[str, Any]) -> None:
        channel.write(json.dumps({"event": event, **fields}) + "\n")
        channel.flush()

    job = decode_job(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    run_job(job, emit)


_EVENT_NAMES: dict[type, str] = {Loss: "loss", Answer: "answer", Room: "room", RowTokens: "row"}


def _frame(fields: dict[str, Any]) -> Frame:
    template = fields.pop("chat_template")
    return Frame(**fields, chat_template=template and NamedTemplate(**template))


def _item(fields: dict[str, Any]) -> Item:
    prompt, reference = tuple(map(message_from_fields, fields["prompt"])), message_from_fields(fields["reference"])
    return Item(fields["source"], prompt, reference, tuple(fields["tools"]))


def _take_stdout() -> TextIO:
    """Keep stdout for events; what native code prints there goes to stderr."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
