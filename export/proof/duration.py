"""Estimate of a proof's duration."""

import time

from export.proof.reading import Text, plan_reading
from export.proof.rows import ANSWER_TOKENS, PROMPTS, sequences_of
from export.proof.trained import Trained
from gladstone.llamacpp.context import Context
from gladstone.llamacpp.model import Model

TRIAL_TOKENS = 48
# cost of a token relative to a prefilled token of the file: decoded, in torch, and in a quantised file
# (SmolLM2-135M, q8_0 and q4_k_m, two cores with AVX-512)
WRITTEN_COST, TORCH_COST, QUANTISED_COST = 1.4, 0.7, 1.15
FIXED_S = 6.0  # for loading, vocabulary and texts


def proof_s(model: Model, trained: Trained, files: int) -> float | None:
    """Estimated seconds for all checks of a file and of `files` quantised ones; None without rows.

    Times a short prefill of the file.
    """
    sequences = sequences_of(trained)
    if not sequences:
        return None
    prompts = [Text(prompt, len(prompt)) for prompt, _ in sequences[:PROMPTS]]
    rows = [Text([*prompt, *answer], len(prompt)) for prompt, answer in sequences]
    asked, written = plan_reading(prompts, 512).read, len(prompts) * ANSWER_TOKENS
    answered = plan_reading(rows, 512).read if files else 0
    costs = asked + WRITTEN_COST * written + TORCH_COST * (asked + written) + answered * (1 + QUANTISED_COST * files)
    return FIXED_S + costs * token_s(model, prompts[0].tokens)


def token_s(model: Model, tokens: list[int]) -> float:
    """Prefill seconds per token, the better of two measurements. Unknown token ids are clamped."""
    times = []
    with Context(model, TRIAL_TOKENS) as context:
        # a wrong vocabulary may be smaller than the tokenizer's; a later check reports it
        known = [min(token, model.vocab_size - 1) for token in tokens]
        read = (known * TRIAL_TOKENS)[:TRIAL_TOKENS]
        for _ in range(2):
            begin_s = time.perf_counter()
            if model.has_encoder:
                context.encode(read)
            else:
                context.forget()
                context.decode(read, 0, all_logits=True)
            times.append((time.perf_counter() - begin_s) / len(read))
    return min(times)
