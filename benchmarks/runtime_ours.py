"""Gladstone's side of `runtime_speed`: one measurement in its own process, printed as JSON. Started by that script."""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from gladstone.chat.messages import Message
from gladstone.machine.host import peak_memory_bytes
from runtime.engine import Engine, EngineOptions, Request, Sampling

STORY = "Write a long story about a doctor who travels to an island. Describe every person whom she meets there."
SAMPLINGS = {
    "greedy": Sampling(),
    "default": Sampling(temperature=0.8),  # llama.cpp's
    "chat": Sampling(temperature=0.3, top_p=0.9, repeat_penalty=1.1),
}


def main() -> None:
    job = json.loads(sys.argv[1])
    figures = globals()[f"measure_{job.pop('section')}"](**job)
    if figures is not None:
        print(json.dumps(figures))


def engine(model: str, threads: int, **options: Any) -> Engine:
    return Engine(Path(model), EngineOptions(threads=threads, **options))


def measure_decode(model: str, threads: int, tokens: int, sampler: str, rounds: int) -> dict[str, Any]:
    """Tokens/s as the user gets them: text out, piece by piece."""
    sampling = Sampling(**SAMPLINGS[sampler].__dict__ | {"max_tokens": tokens + 1})
    with engine(model, threads) as runtime:
        prompt = runtime.prompt_tokens([Message("user", STORY)])
        runtime.complete(prompt, Sampling(max_tokens=4))
        rates = []
        for _ in range(rounds):
            done = runtime.complete(prompt, sampling, lambda _piece: None)
            rates.append((done.generated_tokens - 1) / done.decode_s)
        return {"rates": rates, "tokens": done.generated_tokens}


def measure_written(model: str, threads: int, tokens: int, sampler: str, prompt: str) -> None:
    """Write an answer of so many tokens behind its first one, as `runtime ask` does; who reads it takes the time."""
    sampling = Sampling(**SAMPLINGS[sampler].__dict__ | {"max_tokens": tokens + 1, "seed": 1})
    with engine(model, threads) as runtime:
        asked = runtime.model.tokenize(prompt, parse_special=True)
        runtime.complete(asked, Sampling(max_tokens=4))
        runtime._vocabulary.ends = lambda _token: False  # type: ignore[method-assign]  # as --ignore-eos
        done = runtime.complete(asked, sampling, lambda piece: print(piece.text, end="", flush=True))
        assert done.generated_tokens == tokens + 1


def measure_prefill(model: str, threads: int, tokens: int, rounds: int) -> dict[str, Any]:
    with engine(model, threads) as runtime:
        prompt = [(number * 37) % 40_000 + 100 for number in range(tokens)]
        runtime.complete(prompt, Sampling(max_tokens=1))
        rates = []
        for _ in range(rounds):
            runtime.clear_cache()
            rates.append(tokens / runtime.complete(prompt, Sampling(max_tokens=1)).first_token_s)
        return {"rates": rates}


def measure_first(model: str, threads: int, words: int, rounds: int) -> dict[str, Any]:
    """From a question to the first text of its answer: rendered, tokenized, read, chosen, handed on."""
    question = text(words)
    with engine(model, threads) as runtime:
        runtime.complete(runtime.prompt_tokens([Message("user", STORY)]), Sampling(max_tokens=4))
        seconds = []
        for _ in range(rounds):
            runtime.clear_cache()
            shown: list[float] = []
            begin_s = time.perf_counter()
            prompt = runtime.prompt_tokens([Message("user", question)])
            runtime.complete(prompt, Sampling(max_tokens=2), note(shown))
            seconds.append(shown[0] - begin_s)
        rendered = b"".join(runtime.model.piece(token, special=True) for token in prompt).decode()
        return {"seconds": seconds, "prompt_tokens": len(prompt), "prompt": rendered}


def measure_together(model: str, threads: int, tokens: int, prompts: list[str], rounds: int) -> dict[str, Any]:
    """All prompts are asked at once; tokens/s of all together, and their texts."""
    with engine(model, threads, slots=len(prompts), context_tokens=512) as runtime:
        asked = [runtime.model.tokenize(prompt, parse_special=True) for prompt in prompts]
        runtime.complete(asked[0], Sampling(max_tokens=4))
        rates, texts = [], []
        for _ in range(rounds):
            runtime.clear_cache()
            begin_s = time.perf_counter()
            answers = [runtime.submit(Request(prompt, Sampling(max_tokens=tokens))) for prompt in asked]
            done = [answer.result() for answer in answers]
            rates.append(sum(one.generated_tokens for one in done) / (time.perf_counter() - begin_s))
            texts = [one.text for one in done]
        return {"rates": rates, "texts": texts}


def measure_same(model: str, threads: int, tokens: int, prompts: list[str]) -> dict[str, Any]:
    """Which answers of many at a time are those that each gets alone; where not, how near the tokens were, in nats."""
    sampling = Sampling(max_tokens=tokens, logprobs=10)
    with engine(model, threads, slots=len(prompts), context_tokens=512) as runtime:
        asked = [runtime.model.tokenize(prompt, parse_special=True) for prompt in prompts]
        alone = []
        for prompt in asked:
            runtime.clear_cache()
            alone.append(runtime.answer(Request(prompt, sampling)))
        runtime.clear_cache()
        answers = [runtime.submit(Request(prompt, sampling)) for prompt in asked]
        gaps = []
        for one, other in zip(alone, [answer.result() for answer in answers], strict=True):
            pairs = zip(one.logprobs or (), other.logprobs or (), strict=False)
            differing = next((pair for pair in pairs if pair[0].token != pair[1].token), None)
            if differing:
                mine, theirs = differing
                gaps.append(mine.logprob - dict(mine.top).get(theirs.token, -99.0))
    return {"same": len(prompts) - len(gaps), "gaps": gaps}


def measure_memory(model: str, threads: int, tokens: int) -> dict[str, Any]:
    with engine(model, threads, context_tokens=4096) as runtime:
        runtime.complete(runtime.prompt_tokens([Message("user", text(300))]), Sampling(max_tokens=tokens))
    return {"peak_bytes": peak_memory_bytes()}


def measure_flat(model: str, threads: int, answers: int, loads: int) -> dict[str, Any]:
    """Resident memory, threads and open files after the first answers and loads, and after many."""
    process = psutil.Process()
    seen: dict[str, Any] = {}
    with engine(model, threads, slots=4, context_tokens=512) as runtime:
        prompts = [runtime.prompt_tokens([Message("user", f"{STORY} {number}")]) for number in range(50)]
        for number in range(answers):
            runtime.complete(prompts[number % 50], Sampling(max_tokens=2))
            if number in (answers // 10, answers - 1):
                seen[f"after answer {number + 1}"] = figures(process)
    for number in range(loads):
        with engine(model, threads, context_tokens=512) as runtime:
            runtime.complete([1, 2, 3], Sampling(max_tokens=1))
        if number in (loads // 10, loads - 1):
            seen[f"after load {number + 1}"] = figures(process)
    return seen


def measure_lookup(model: str, threads: int, tokens: int, rounds: int, draft: str | None) -> dict[str, Any]:
    """Decoding with and without guesses, of a text that repeats its question and of one that does not."""
    names = ", ".join(f"the {name} {part}" for name in ("left", "right") for part in BONES)
    tasks = {
        "repeats its question": f"Copy this list word by word: {names}.\n\nThe list again: {names[:120]}",
        "is new": STORY,
    }
    out: dict[str, Any] = {}
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "guessing": {"draft": Path(draft)} if draft else {"lookup": True},
    }
    engines = {name: engine(model, threads, **given) for name, given in options.items()}
    for task, question in tasks.items():
        rates: dict[str, list[float]] = {"plain": [], "guessing": []}
        texts: dict[str, str] = {}
        guessed = 0
        for _ in range(rounds):
            for name, runtime in engines.items():
                prompt = runtime.prompt_tokens([Message("user", question)])
                done = runtime.complete(prompt, Sampling(max_tokens=tokens))
                rates[name].append((done.generated_tokens - 1) / done.decode_s)
                texts[name], guessed = done.text, done.accepted_draft_tokens
        out[task] = {"rates": rates, "same": texts["plain"] == texts["guessing"], "guessed": guessed,
                     "tokens": done.generated_tokens}  # fmt: skip
    for runtime in engines.values():
        runtime.close()
    return out


BONES = ("femur", "tibia", "fibula", "patella", "humerus", "radius", "ulna", "scapula", "clavicle", "calcaneus")


def figures(process: psutil.Process) -> dict[str, int]:
    return {
        "memory_bytes": process.memory_info().rss,
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
    }


def note(times: list[float]) -> Any:
    """A listener that writes down when it was called."""
    return lambda _piece: times.append(time.perf_counter())


def text(words: int) -> str:
    """Some plain words."""
    return " ".join(STORY.split()[number % 19] for number in range(words))


if __name__ == "__main__":
    main()
