"""An answer as a JSON object, for programs."""

import dataclasses
from typing import Any

from gladstone.strict_json import json_text
from runtime.engine import Completion, Engine

LEAST = -9999.0  # what OpenAI's API writes for a token with probability 0; JSON has no minus infinity


def answer_json(completion: Completion, engine: Engine, seed: int) -> str:
    """The answer with token counts, times, seed and, if requested, log-probabilities."""
    facts = dataclasses.asdict(completion)
    facts["guessed_tokens"] = completion.accepted_draft_tokens  # the earlier name, kept for one release
    if completion.logprobs is None:
        del facts["logprobs"]
    else:
        facts["logprobs"] = [
            _token(engine, sampled.token, sampled.logprob)
            | {
                "top": [[_shown(engine, token), max(logprob, LEAST)] for token, logprob in sampled.top],
                "top_logprobs": [_token(engine, token, logprob) for token, logprob in sampled.top],
            }
            for sampled in completion.logprobs
        ]
    whole = {"model": str(engine.model.path)} | facts | {"seed": seed, "load_s": engine.load_s}
    return json_text(whole, indent=2)


def _token(engine: Engine, token: int, logprob: float) -> dict[str, Any]:
    """The token as in OpenAI's API, with its id. A token may hold part of a character, which only its bytes show."""
    spelt = engine.model.piece(token, special=True)
    return {"token": _shown(engine, token), "id": token, "bytes": list(spelt), "logprob": max(logprob, LEAST)}


def _shown(engine: Engine, token: int) -> str:
    return engine.model.piece(token, special=True).decode("utf-8", "replace")
