"""How the next token is chosen: checked settings, and llama.cpp's sampler chain built from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from gladstone.errors import ConfigError, listed

if TYPE_CHECKING:
    from gladstone.llama import Context

PENALTY_WINDOW_TOKENS = 64  # llama.cpp's default: the repeat penalty looks this far back
MAX_SEED = 2**32 - 2  # llama.cpp takes 2**32 - 1 for "choose one at random"


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 takes the most likely token each time; top_k 0, top_p 1 and min_p 0 switch those filters off."""

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int = 0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ConfigError that names every field that cannot be used."""
        allowed = {
            "temperature": (_between(self.temperature, 0, 100), "0 (greedy) to 100"),
            "top_k": (_between(self.top_k, 0, 2**31 - 1), "0 (all tokens) or more"),
            "top_p": (0 < self.top_p <= 1, "more than 0, at most 1 (all tokens)"),
            "min_p": (_between(self.min_p, 0, 1), "0 (all tokens) to 1"),
            "repeat_penalty": (_between(self.repeat_penalty, 0.1, 10), "0.1 to 10 (1 is no penalty)"),
            "seed": (_between(self.seed, 0, MAX_SEED), f"0 to {MAX_SEED}"),
            "max_tokens": (self.max_tokens >= 1, "1 or more"),
            "stop": (all(self.stop), "texts that are not empty"),
        }
        problems = [
            f"{name} is {getattr(self, name)!r}, expected {expected}"
            for name, (is_allowed, expected) in allowed.items()
            if not is_allowed
        ]
        if problems:
            raise ConfigError(listed("the sampling settings cannot be used", problems))


def _between(value: float, least: float, most: float) -> bool:
    return math.isfinite(value) and least <= value <= most


class SamplerChain:
    """llama.cpp's samplers in its own order: penalties, top-k, top-p, min-p, temperature, draw. Close it after use."""

    def __init__(self, sampling: Sampling, vocab_size: int, prompt: Sequence[int]) -> None:
        """The repeat penalty counts the end of the prompt too, as llama.cpp's own programs do."""
        from gladstone.llama import library

        self._lib: Any = library()
        self._chain = self._lib.llama_sampler_chain_init(self._lib.llama_sampler_chain_default_params())
        for sampler in self._samplers(sampling, vocab_size):
            self._lib.llama_sampler_chain_add(self._chain, sampler)
        if sampling.repeat_penalty != 1:
            for token in prompt[-PENALTY_WINDOW_TOKENS:]:
                self._lib.llama_sampler_accept(self._chain, token)

    def _samplers(self, sampling: Sampling, vocab_size: int) -> list[Any]:
        lib, samplers = self._lib, []
        if sampling.repeat_penalty != 1:
            penalty = sampling.repeat_penalty
            samplers.append(lib.llama_sampler_init_penalties(vocab_size, PENALTY_WINDOW_TOKENS, penalty, 0.0, 0.0))
        if sampling.temperature == 0:
            return [*samplers, lib.llama_sampler_init_greedy()]
        if sampling.top_k > 0:
            samplers.append(lib.llama_sampler_init_top_k(sampling.top_k))
        if sampling.top_p < 1:
            samplers.append(lib.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p > 0:
            samplers.append(lib.llama_sampler_init_min_p(sampling.min_p, 1))
        samplers.append(lib.llama_sampler_init_temp(sampling.temperature))
        return [*samplers, lib.llama_sampler_init_dist(sampling.seed)]

    def sample(self, context: "Context") -> int:
        """Choose a token from the logits of the context's last evaluated token, and remember it for the penalties."""
        return int(self._lib.llama_sampler_sample(self._chain, context.handle, -1))

    def close(self) -> None:
        """Free the samplers. Closing twice is harmless."""
        if self._chain:
            self._lib.llama_sampler_free(self._chain)
            self._chain = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()
