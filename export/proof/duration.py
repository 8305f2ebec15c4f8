"""Estimate of a proof's duration. Names torch."""

import time
from dataclasses import dataclass

from export.proof.comparison import SETTLED_ROWS
from export.proof.reading import Text, plan_reading
from export.proof.rows import ANSWER_TOKENS, proof_rows
from export.proof.trained import Trained
from export.torch_model.placement import Placement
from gladstone.llamacpp.context import Context
from gladstone.llamacpp.model import Model

TRIAL_TOKENS, PRODUCT_SIDE = 48, 1024
# cost of a token relative to a prefilled token of the file: decoded, in torch, and in a quantised file
# (SmolLM2-135M, q8_0 and q4_k_m, two cores with AVX-512)
WRITTEN_COST, TORCH_COST, QUANTISED_COST = 1.4, 0.7, 1.15
FIXED_S = 6.0  # for loading, vocabulary and texts


@dataclass(frozen=True)
class Costs:
    """Work of a proof in prefilled tokens of the file: in llama.cpp and in torch."""

    file: float
    torch: float


def proof_costs(trained: Trained, files: int) -> Costs | None:
    """The work of all checks of a file and of `files` quantised ones; None without rows.

    For a healthy file: torch computes the first rows only.
    """
    rows = proof_rows(trained)
    if not rows:
        return None
    texts = [Text([*row.prompt, *row.answer], len(row.prompt)) for row in rows]
    read, settling = plan_reading(texts, 512).read, texts if trained.has_experts else texts[:SETTLED_ROWS]
    asked = [row.prompt for row in rows if row.asked]
    written = len(asked) * ANSWER_TOKENS
    in_torch = plan_reading(settling, 512).read + sum(map(len, asked)) + written
    return Costs(read * (1 + QUANTISED_COST * files) + WRITTEN_COST * written, TORCH_COST * in_torch)


def proof_s(model: Model, trained: Trained, files: int, placement: Placement) -> float | None:
    """Estimated seconds for all checks of a file and of `files` quantised ones; None without rows.

    Times a short prefill of the file.
    """
    costs = proof_costs(trained, files)
    if costs is None:
        return None
    first = proof_rows(trained)[0].prompt
    on_cpu = costs.torch if placement.device == "cpu" else 0.0
    return FIXED_S + (costs.file + on_cpu) * token_s(model, first)


def foreseen_s(trained: Trained, files: int, parameters: int, placement: Placement) -> float | None:
    """As `proof_s` before there is a file: from the number of weights and the speed of a matrix product."""
    costs = proof_costs(trained, files)
    if costs is None:
        return None
    on_cpu = costs.torch if placement.device == "cpu" else 0.0
    return FIXED_S + (costs.file + on_cpu) * 2 * parameters / product_flops() / TORCH_COST


def product_flops() -> float:
    """Float32 operations a second of a matrix product in torch on the CPU, the better of two measurements."""
    import torch

    sides, times = torch.ones(PRODUCT_SIDE, PRODUCT_SIDE), []
    for _ in range(2):
        begin_s = time.perf_counter()
        sides @ sides
        times.append(time.perf_counter() - begin_s)
    return float(2 * PRODUCT_SIDE**3 / min(times))


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
