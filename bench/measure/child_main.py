"""The child process that measures one model: `python -m bench.measure.child_main`.

A model lives in a process of its own because llama.cpp can end the process, and because peak memory belongs to one.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.measure.measure import QualityJob, SpeedJob, measure_quality, measure_speed
from bench.measure.prompts import PromptSettings
from bench.measure.token_counts import ContextLimits, RowTokens, TokenCountJob, count_tokens
from bench.results import Answer, Item, Loss
from gladstone.chat.messages import message_from_fields
from gladstone.chat.named_templates import NamedTemplate
from gladstone.machine.host import peak_memory_bytes
from gladstone.process.child_main import send, serve

Job = QualityJob | SpeedJob | TokenCountJob
JOBS: dict[str, type[Job]] = {"quality": QualityJob, "speed": SpeedJob, "rows": TokenCountJob}


def encode_job(job: Job) -> dict[str, Any]:
    """A job as it is sent: its kind and its fields."""
    kind = next(name for name, job_type in JOBS.items() if isinstance(job, job_type))
    return {"kind": kind, **dataclasses.asdict(job)}


def decode_job(sent: Mapping[str, Any]) -> Job:
    """The job that `encode_job` made ready, once it has been through JSON."""
    fields = dict(sent)
    kind = fields.pop("kind")
    fields["model"], fields["frame"] = Path(fields["model"]), _prompt_settings(fields["frame"])
    fields["items"] = tuple(_item(item) for item in fields["items"])
    return JOBS[kind](**fields)


def run_job(sent: Mapping[str, Any]) -> None:
    """Do the work and send an event for each thing measured, `done` last."""
    job = decode_job(sent)
    if isinstance(job, SpeedJob):
        send(event="speed", **dataclasses.asdict(measure_speed(job)))
    else:
        for measured in count_tokens(job) if isinstance(job, TokenCountJob) else measure_quality(job):
            send(event=_EVENT_NAMES[type(measured)], **dataclasses.asdict(measured))
    send(event="done", peak_memory_bytes=peak_memory_bytes())


_EVENT_NAMES: dict[type, str] = {Loss: "loss", Answer: "answer", ContextLimits: "room", RowTokens: "row"}


def _prompt_settings(fields: dict[str, Any]) -> PromptSettings:
    template = fields.pop("chat_template")
    return PromptSettings(**fields, chat_template=template and NamedTemplate(**template))


def _item(fields: dict[str, Any]) -> Item:
    prompt, reference = tuple(map(message_from_fields, fields["prompt"])), message_from_fields(fields["reference"])
    return Item(fields["source"], prompt, reference, tuple(fields["tools"]))


if __name__ == "__main__":
    serve(run_job)
