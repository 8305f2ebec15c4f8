"""Measures one loaded model: losses, answers, speed. Runs in a child process."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure.prompts import PromptEncoder, PromptSettings, make_prompt_encoder
from bench.results import Answer, Item, Loss, SpeedRun
from gladstone.errors import UnsupportedError
from gladstone.llamacpp.context import Context
from gladstone.llamacpp.devices import Device, layer_devices, read_devices
from gladstone.machine.host import core_count, peak_memory_bytes
from gladstone.machine.other_work import OtherWork
from runtime.engine import Engine, Request, Sampling

WARM_UP_PROMPT_TOKENS, WARM_UP_STEPS = 64, 4


@dataclass(frozen=True)
class QualityJob:
    """A job: losses of all items, and greedy answers to the first `answers` of them."""

    model: Path
    items: tuple[Item, ...]
    answers: int
    max_tokens: int
    threads: int | None
    frame: PromptSettings = field(default_factory=PromptSettings)


@dataclass(frozen=True)
class SpeedJob:
    """A job: one timing of a newly loaded model; the items supply the prompt text."""

    model: Path
    items: tuple[Item, ...]
    prefill_tokens: int
    decode_tokens: int
    threads: int | None
    frame: PromptSettings = field(default_factory=PromptSettings)


def measure_quality(job: QualityJob) -> Iterator[Loss | Answer]:
    """Yield the loss of every item in order, then the answers in order. `select_rows` has checked that the rows fit."""
    with Engine(job.model, job.frame.engine_options(job.threads, steady=True)) as engine:
        encoder = _encoder(engine, job.frame)
        for item in job.items:
            yield _loss(engine, encoder, item)
        sampling = Sampling(temperature=0.0, repeat_penalty=1.0, max_tokens=job.max_tokens)
        for item in job.items[: job.answers]:
            yield _answer(engine, Request(encoder.prompt(item), sampling, reasoning_tokens=job.frame.thought_tokens))


def measure_speed(job: SpeedJob) -> SpeedRun:
    """Load, warm up, then time the first token of a typical question, prefill and decode.

    Prefill and decode exclude sampling and detokenising and never stop early: every model does the same work.
    """
    before = read_devices()
    with Engine(job.model, job.frame.engine_options(job.threads)) as engine:
        room = engine.context_tokens - job.decode_tokens
        if room < 1:
            raise UnsupportedError(
                f"{job.model}: its context of {engine.context_tokens} tokens is too small to be timed."
            )
        encoder = _encoder(engine, job.frame)
        prompt = _text_tokens(encoder, job.items, min(job.prefill_tokens, room))
        _time_plain(engine, prompt[:WARM_UP_PROMPT_TOKENS], WARM_UP_STEPS)
        others = OtherWork()
        others.measure()
        first_token_s = _time_first_token(engine, encoder, typical_item(job.items))
        prefill_s, decode_s = _time_plain(engine, prompt, job.decode_tokens)
        return SpeedRun(
            load_s=engine.load_s,
            first_token_s=first_token_s,
            prefill_tokens=len(prompt),
            prefill_tokens_per_s=len(prompt) / prefill_s,
            decode_tokens=job.decode_tokens,
            decode_tokens_per_s=job.decode_tokens / decode_s,
            peak_memory_bytes=peak_memory_bytes(),
            other_processors=others.mean(),
            processors=core_count(),
            placement=engine.fit.reason,
            gpu_layers=engine.fit.gpu_layers,
            all_layers=engine.fit.all_layers,
            gpu_memory_bytes=_held_bytes(before, read_devices()) if engine.fit.gpu_layers else 0,
        )


def _held_bytes(before: Sequence[Device], now: Sequence[Device]) -> int:
    """Memory of all GPUs that is taken now and was free before."""
    then = {device.name: device.free_bytes for device in layer_devices(before)}
    return sum(max(0, then[device.name] - device.free_bytes) for device in layer_devices(now))


def typical_item(items: Sequence[Item]) -> Item:
    """The item whose question has the median length."""
    by_length = sorted(items, key=lambda item: (len(item.question), item.source))
    return by_length[len(by_length) // 2]


def _loss(engine: Engine, encoder: PromptEncoder, item: Item) -> Loss:
    prompt, answer = encoder.scored(item)
    pieces = _windows(prompt, answer, engine.context_tokens) if item.is_text else [(prompt, answer)]
    losses = [engine.score(before, [scored])[0] for before, scored in pieces]
    nats, tokens = sum(loss.nats for loss in losses), sum(loss.tokens for loss in losses)
    if not math.isfinite(nats) or tokens < 1:
        raise UnsupportedError(f"{engine.model.path}: gives no finite probability for the answer of {item.source}.")
    return Loss(nats, tokens)


def _windows(begin: list[int], tokens: list[int], context: int) -> Iterator[tuple[list[int], list[int]]]:
    """Split a text into windows that fill the context, each with the same prefix."""
    size = context - len(begin)
    for start in range(0, len(tokens), size):
        yield begin, tokens[start : start + size]


def _encoder(engine: Engine, frame: PromptSettings) -> PromptEncoder:
    return make_prompt_encoder(engine.model, None if frame.raw else engine.template, frame)


def _answer(engine: Engine, request: Request) -> Answer:
    # a cached prefix changes the last bits of the logits, and answers must not depend on their order
    engine.clear_cache()
    done = engine.answer(request)
    return Answer(done.text.strip(), done.reasoning, done.stop_reason, done.prompt_tokens, done.generated_tokens)


def _text_tokens(encoder: PromptEncoder, items: Sequence[Item], count: int) -> list[int]:
    """The first `count` tokens of the items' prompts and answers, repeated if there are too few."""
    tokens: list[int] = []
    while len(tokens) < count:
        for item in items:
            tokens += [token for part in encoder.scored(item) for token in part]
            if len(tokens) >= count:
                break
    return tokens[:count]


def _time_first_token(engine: Engine, encoder: PromptEncoder, item: Item) -> float:
    engine.clear_cache()
    start_s = time.perf_counter()
    tokens = (encoder.scored(item)[1][: engine.context_tokens // 2] if item.is_text else encoder.prompt(item)) or [0]
    rendered_s = time.perf_counter() - start_s
    return rendered_s + engine.complete(tokens, Sampling(temperature=0.0, max_tokens=1)).first_token_s


def _time_plain(engine: Engine, tokens: list[int], steps: int) -> tuple[float, float]:
    """Seconds of prefill from an empty cache, and of `steps` steps of greedy decoding."""

    def work(context: Context) -> tuple[float, float]:
        start_s = time.perf_counter()
        for start in range(0, len(tokens), context.batch_tokens):
            context.decode(tokens[start : start + context.batch_tokens], start)
        context.logits()  # llama.cpp may still be computing until the result is read
        read_s = time.perf_counter()
        for step in range(steps):
            context.decode([int(context.logits().argmax())], len(tokens) + step)
        context.logits()
        return read_s - start_s, time.perf_counter() - read_s

    return engine.run(work)
