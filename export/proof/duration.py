"""How long a proof takes, estimated before it begins."""

import time

from export.proof.reading import Text, plan_reading
from export.proof.rows import ANSWER_TOKENS, PROMPTS, sequences_of
from export.proof.trained import Trained
from gladstone.llamacpp.context import Context
from gladstone.llamacpp.model import Model

TRIAL_TOKENS = 48
# what a token takes, against one that llama.cpp reads from the file itself: as a step of an answer, by torch, and from
# a quantised file (SmolLM2-135M, q8_0 and q4_k_m, two cores with AVX-512)
WRITTEN_COST, TORCH_COST, QUANTISED_COST = 1.4, 0.7, 1.15
FIXED_S = 6.0  # for loading, and for the vocabulary and the texts


def proof_s(model: Model, trained: Trained, files: int) -> float | None:
    """Seconds for all checks of a file and of so many quantised ones made of it; None if there are no rows for it.

    The file reads a few tokens for it, as fast as it does at the moment.
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
    """What reading such tokens takes the file, each: the better of two times. Ids that it does not have do no harm."""
    times = []
    with Context(model, TRIAL_TOKENS) as context:
        # a file with a wrong vocabulary may have fewer entries than the tokenizer; it is found later
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
