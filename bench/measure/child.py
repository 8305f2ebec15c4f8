"""The parent's side of the child processes: one at a time, ended whatever happens here."""

from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

from bench.measure.child_main import Job, encode_job
from bench.measure.measure import QualityJob, SpeedJob
from bench.measure.token_counts import ContextLimits, RowTokens, TokenCountJob
from bench.results import Answer, Loss, Measured, SpeedRun
from gladstone.process.child import start_child

Event = tuple[str, dict[str, Any]]


def run_token_counts(
    job: TokenCountJob, label: str, on_row: Callable[[int], None]
) -> tuple[ContextLimits, tuple[RowTokens, ...]]:
    """The items in the tokens of one model, counted in a child; `on_row` hears how many have come."""
    rows: list[RowTokens] = []
    room = ContextLimits(0, 0)
    with closing(_events(job, label)) as events:
        for kind, fields in events:
            if kind == "room":
                room = ContextLimits(**fields)
            elif kind == "row":
                rows.append(RowTokens(**fields))
                on_row(len(rows))
    return room, tuple(rows)


def run_quality(job: QualityJob, label: str, on_event: Callable[[int], None]) -> Measured:
    """Losses and answers of one model, measured in a child; `on_event` hears how many events have come."""
    losses, answers, peak_bytes = [], [], 0
    with closing(_events(job, label)) as events:
        for count, (kind, fields) in enumerate(events, 1):
            if kind == "loss":
                losses.append(Loss(**fields))
            elif kind == "answer":
                answers.append(Answer(**fields))
            else:
                peak_bytes = fields["peak_memory_bytes"]
            on_event(count)
    return Measured(tuple(losses), tuple(answers), peak_bytes)


def run_speed(job: SpeedJob, label: str) -> SpeedRun:
    """One timing of one model in a child."""
    (_kind, fields), _done = list(_events(job, label))
    return SpeedRun(**fields)


def _events(job: Job, label: str) -> Generator[Event, None, None]:
    """The child's events, `done` the last.

    Raises the child's own GladstoneError, or ToolError with the end of its log if it died.
    """
    with start_child("bench.measure.child_main", encode_job(job)) as child:
        for event in child.events():
            kind = str(event.pop("event"))
            yield kind, event
            if kind == "done":
                return
        child.check(f"{label}: the process that measures this model")
        raise RuntimeError("the child ended without its last event")
