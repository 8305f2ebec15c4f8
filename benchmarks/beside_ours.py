"""Gladstone's side of `beside`: one kind of work, once for each line on stdin. Started by that script."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.runtime_ours import STORY
from gladstone.chat.messages import Message

DECODED, READ = 64, 384
CHUNKS, ITEMS = 2, 4
Work = Callable[[], float]


@contextmanager
def decode(model: str) -> Iterator[Work]:
    """Tokens a second of an answer, text out, as `runtime ask` gives it."""
    from runtime.engine import Engine, EngineOptions, Sampling

    with Engine(Path(model), EngineOptions(context_tokens=1024)) as engine:
        prompt = engine.prompt_tokens([Message("user", STORY)])

        def work() -> float:
            done = engine.complete(prompt, Sampling(max_tokens=DECODED), lambda _piece: None)
            return (done.generated_tokens - 1) / done.decode_s

        yield work


@contextmanager
def prefill(model: str) -> Iterator[Work]:
    """Tokens a second of a prompt that is read whole."""
    from runtime.engine import Engine, EngineOptions, Sampling

    with Engine(Path(model), EngineOptions(context_tokens=1024)) as engine:
        prompt = [(number * 37) % 40_000 + 100 for number in range(READ)]

        def work() -> float:
            engine.clear_cache()
            return READ / engine.complete(prompt, Sampling(max_tokens=1)).first_token_s

        yield work


@contextmanager
def proof(model: str) -> Iterator[Work]:
    """Questions a second of the export's proof: distributions and greedy answers of llama.cpp against torch."""
    from dataclasses import replace

    from export.original.finding import find, opened
    from export.proof.answers import check_answers
    from export.proof.trained import trained_of
    from gladstone.commands.progress import Silent
    from gladstone.gguf.header import read_info
    from gladstone.models.base_model import resolve_base

    with opened(find(resolve_base("embedded:smollm2-135m-instruct", Silent()).folder), Silent()) as original:
        trained = trained_of(original)
    trained = replace(trained, rows=trained.rows[:2])

    def work() -> float:
        begin_s = time.perf_counter()
        check_answers(Path(model), read_info(Path(model)).quantisation, trained, Silent())
        return len(trained.rows) / (time.perf_counter() - begin_s)

    yield work


@contextmanager
def imatrix(model: str) -> Iterator[Work]:
    """Tokens a second of an importance matrix, each one computed anew: what the first chunk cannot know counts."""
    from export.quantise.imatrix import CHUNK_TOKENS
    from export.quantise.imatrix_child import evaluate

    job = {
        "model": model,
        "text": (STORY + "\n") * 300,
        "name": "story",
        "chunk_tokens": CHUNK_TOKENS,
        "chunks": CHUNKS,
    }

    def work() -> float:
        begin_s = time.perf_counter()
        _, chunks = evaluate(job)
        return chunks * CHUNK_TOKENS / (time.perf_counter() - begin_s)

    yield work


@contextmanager
def bench(model: str) -> Iterator[Work]:
    """Items a second of what `bench run` scores: losses of all, answers to half of them, the model loaded anew."""
    from bench.measure.measure import QualityJob, measure_quality
    from bench.results import Item

    words = STORY.split()
    items = tuple(
        Item(f"story:{number}", (Message("user", f"{number} {STORY}"),), Message("assistant", " ".join(words * 2)))
        for number in range(ITEMS)
    )
    job = QualityJob(Path(model), items, ITEMS // 2, max_tokens=32, threads=None)

    def work() -> float:
        begin_s = time.perf_counter()
        list(measure_quality(job))
        return len(items) / (time.perf_counter() - begin_s)

    yield work


def main() -> None:
    kind, model = sys.argv[1:]
    kinds = {"decode": decode, "prefill": prefill, "proof": proof, "imatrix": imatrix, "bench": bench}
    with kinds[kind](model) as work:
        work()  # warms up
        print("@" + json.dumps({"kind": "ready"}), flush=True)
        for _ in sys.stdin:
            print("@" + json.dumps({"kind": "turn", "rate": work()}), flush=True)


if __name__ == "__main__":
    main()
