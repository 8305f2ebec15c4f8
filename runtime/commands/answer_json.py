"""An answer as a JSON object, for programs."""

import dataclasses
import json
from typing import Any

from runtime.engine import Completion, Engine

LEAST = -9999.0  # what OpenAI's interface writes for a token that cannot come; JSON has no minus infinity


def answer_json(completion: Completion, engine: Engine, seed: int) -> str:
    """The answer with its counts, times, seed and, where they were asked for, log-probabilities."""
    facts = dataclasses.asdict(completion)
    if completion.logprobs is None:
        del facts["logprobs"]
    else:
        facts["logprobs"] = [
            _token(engine, each.token, each.logprob)
            | {
                "top": [[_shown(engine, token), max(logprob, LEAST)] for token, logprob in each.top],
                "top_logprobs": [_token(engine, token, logprob) for token, logprob in each.top],
            }
            for each in completion.logprobs
        ]
    whole = {"model": str(engine.model.path)} | facts | {"seed": seed, "load_s": engine.load_s}
    return json.dumps(whole, ensure_ascii=False, indent=2)


def _token(engine: Engine, token: int, logprob: float) -> dict[str, Any]:
    """As OpenAI's interface has it, with the id: a token may hold a part of a character, which only its bytes tell."""
    spelt = engine.model.piece(token, special=True)
    return {"token": _shown(engine, token), "id": token, "bytes": list(spelt), "logprob": max(logprob, LEAST)}


def _shown(engine: Engine, token: int) -> str:
    return engine.model.piece(token, special=True).decode("utf-8", "replace")
