"""Prefill and decode speed of a model file, measured in a process of its own: a backend that crashes takes it along.

See `runtime.commands.doctor`.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from gladstone.errors import UnsupportedError
from gladstone.gguf.header import read_model, summarize_model
from gladstone.machine.other_work import OtherWork
from gladstone.process.child_main import send, serve
from runtime.machine.threads import PREFILL_TOKENS, ThreadBenchmark, choose_threads

CONTEXT_TOKENS, PROMPT_TOKENS, DECODED_TOKENS, LIMIT_S = 512, 128, 48, 2.0


def describe() -> dict[str, Any]:
    """What the build reports: instruction sets, the backend that was chosen, GPUs with their memory."""
    from gladstone.llamacpp.backends import loaded_backend
    from gladstone.llamacpp.devices import read_devices
    from gladstone.llamacpp.library import library

    system = library().llama_print_system_info().decode()
    gpus = [asdict(device) for device in read_devices() if device.kind in ("gpu", "igpu")]
    chosen = loaded_backend()
    return {"system": system, "gpus": gpus, "backend": chosen.name if chosen else ""}


def measure(path: Path) -> dict[str, Any]:
    """Tokens per second of prefill and decoding, the best of several, as an engine with default options computes."""
    from gladstone.llamacpp.backends import backend_id
    from gladstone.llamacpp.context import Context
    from gladstone.llamacpp.model import Model
    from runtime.machine.fit import FitConstraints, plan_fit, read_machine

    headers = read_model(path)
    facts = summarize_model(headers)
    fit = None
    with suppress(UnsupportedError):  # too large for this machine; it is measured all the same
        fit = plan_fit(headers, read_machine(), FitConstraints())
    placed = {} if fit is None else fit.placement
    with Model(path, headers=headers, **placed) as model, Context(model, CONTEXT_TOKENS) as context:
        tokens = [token % model.vocab_size for token in range(100, 100 + PROMPT_TOKENS)]
        token, start = (model.decoder_start, 0) if model.has_encoder else (tokens[0], PROMPT_TOKENS)

        def prefill(length: int) -> None:
            context.forget()
            if model.has_encoder:
                context.encode(tokens[:length])
            else:
                context.decode(tokens[:length], 0)

        def decode_next() -> None:
            context.decode([token], next(positions))

        prefill(PROMPT_TOKENS)
        positions = count(start)
        benchmark = ThreadBenchmark(context.use_threads, decode_next, lambda: prefill(PREFILL_TOKENS))
        threads = choose_threads(facts, backend_id(model.gpu_layers), benchmark)
        others = OtherWork()
        others.measure()
        prefill_s = _best_s(lambda: prefill(PROMPT_TOKENS), 3)
        positions = count(start)
        decode_s = _best_s(decode_next, DECODED_TOKENS)
        others_took = others.mean()
    return {
        "prefill_threads": threads.prefill,
        "prefill_tokens_per_s": PROMPT_TOKENS / prefill_s,
        "decode_threads": threads.decode,
        "decode_tokens_per_s": 1 / decode_s,
        "size_bytes": facts.size_bytes,
        "other_processors": others_took,
        "gpu_layers": model.gpu_layers,
        "placement": fit.reason if fit is not None else "it does not fit the free memory",
    }


def _best_s(once: Callable[[], None], most: int) -> float:
    """The shortest of `most` times, or of as many as fit in 2 s, but at least two: the first one warms up."""
    begin_s, times_s = time.perf_counter(), list[float]()
    while len(times_s) < 2 or (len(times_s) < most and time.perf_counter() - begin_s < LIMIT_S):
        start_s = time.perf_counter()
        once()
        times_s.append(time.perf_counter() - start_s)
    return min(times_s)


def work(job: dict[str, Any]) -> dict[str, Any] | None:
    """Send what the build says of itself; returns the speed of the model that the job names, if it names one."""
    send(**describe())  # before anything is computed, which may be the end of this process
    return measure(Path(job["path"])) if job["path"] else None


if __name__ == "__main__":
    serve(work)
