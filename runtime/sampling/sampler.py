"""Sampling: checked settings, and llama.cpp's sampler chain built from them."""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from gladstone.errors import ConfigError, UnsupportedError, listed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from gladstone.llamacpp.context import Context
    from gladstone.llamacpp.model import Model
    from runtime.sampling.candidates import Candidates

MAX_SEED = 2**32 - 2  # for llama.cpp 2**32 - 1 means a random seed
MAX_LOGPROBS = 50
MAX_BEAMS = 8
MAX_LENGTH_PENALTY = 5
MIN_VOCABULARY_PER_CANDIDATE = 256  # with fewer tokens for each candidate, selecting candidates saves no time
DRY_BREAKERS = ("\n", ":", '"', "*")  # llama.cpp's default sequence breakers
MIROSTAT_M = 100  # tokens from which mirostat 1 estimates the distribution, as in its paper


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Names and meaning are llama.cpp's; temperature 0 is greedy.

    These values turn a setting off: top_k 0, top_p 1, min_p 0, typical_p 1, top_n_sigma 0, xtc_probability 0,
    dry_multiplier 0, repeat_penalty 1, frequency_penalty 0, presence_penalty 0, mirostat 0. Mirostat replaces every
    filter. `logit_bias` holds pairs of a token and what is added to its logit; -inf forbids the token. `logprobs` is
    the number of likeliest tokens to report with each token.

    Only for encoder–decoder models: `no_repeat_ngram` N forbids to repeat any run of N tokens; more than one of `beams`
    selects transformers' beam search, which ignores the settings for sampling single tokens.
    """

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repeat_penalty: float = 1.0
    repeat_window: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_window: int = 64
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    logprobs: int | None = None
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    no_repeat_ngram: int = 0
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError that names every field that cannot be used."""
        problems = [
            f"{name} is {getattr(self, name)!r}, expected {expected}"
            for name, (is_allowed, expected) in self._allowed().items()
            if not is_allowed
        ]
        if problems:
            raise ConfigError(listed("the sampling settings cannot be used", problems))

    def _allowed(self) -> dict[str, tuple[bool, str]]:
        count = 2**31 - 1
        biases = [bias for _, bias in self.logit_bias]
        return {
            "temperature": (_between(self.temperature, 0, 100), "0 (greedy) to 100"),
            "top_k": (_between(self.top_k, 0, count), "0 (all tokens) or more"),
            "top_p": (0 < self.top_p <= 1, "more than 0, at most 1 (all tokens)"),
            "min_p": (_between(self.min_p, 0, 1), "0 (all tokens) to 1"),
            "typical_p": (0 < self.typical_p <= 1, "more than 0, at most 1 (all tokens)"),
            "top_n_sigma": (_between(self.top_n_sigma, 0, 100), "0 (all tokens) to 100"),
            "xtc_probability": (_between(self.xtc_probability, 0, 1), "0 (never) to 1"),
            "xtc_threshold": (_between(self.xtc_threshold, 0, 1), "0 to 1 (more than 0.5 is never)"),
            "repeat_penalty": (_between(self.repeat_penalty, 0.1, 10), "0.1 to 10 (1 is no penalty)"),
            "repeat_window": (_between(self.repeat_window, 0, count), "0 (no penalties) or more"),
            "frequency_penalty": (_between(self.frequency_penalty, -10, 10), "-10 to 10 (0 is none)"),
            "presence_penalty": (_between(self.presence_penalty, -10, 10), "-10 to 10 (0 is none)"),
            "dry_multiplier": (_between(self.dry_multiplier, 0, 100), "0 (off) to 100"),
            "dry_base": (_between(self.dry_base, 1, 100), "1 to 100"),
            "dry_allowed_length": (_between(self.dry_allowed_length, 0, count), "0 or more"),
            "dry_window": (_between(self.dry_window, 0, count), "0 (off) or more"),
            "mirostat": (self.mirostat in (0, 1, 2), "0 (off), 1 or 2"),
            "mirostat_tau": (_between(self.mirostat_tau, 0, 100), "0 to 100"),
            "mirostat_eta": (_between(self.mirostat_eta, 0, 10), "0 to 10"),
            "logit_bias": (not any(math.isnan(bias) or bias == math.inf for bias in biases), "numbers"),
            "seed": (_between(self.seed, 0, MAX_SEED), f"0 to {MAX_SEED}"),
            "logprobs": (self.logprobs is None or _between(self.logprobs, 0, MAX_LOGPROBS), f"0 to {MAX_LOGPROBS}"),
            "max_tokens": (self.max_tokens >= 1, "1 or more"),
            "stop": (all(self.stop), "texts that are not empty"),
            "no_repeat_ngram": (_between(self.no_repeat_ngram, 0, 1000), "0 (off) to 1000"),
            "beams": (_between(self.beams, 1, MAX_BEAMS), f"1 (no search) to {MAX_BEAMS}"),
            "length_penalty": (
                _between(self.length_penalty, -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY),
                f"-{MAX_LENGTH_PENALTY} to {MAX_LENGTH_PENALTY}",
            ),
        }

    @property
    def penalises(self) -> bool:
        """Whether a penalty depends on earlier tokens."""
        penalties = (self.repeat_penalty - 1, self.frequency_penalty, self.presence_penalty)
        return self.repeat_window > 0 and any(penalties)


def _between(value: float, least: float, most: float) -> bool:
    return least <= value <= most  # False for NaN


class SamplerChain:
    """Samples tokens. Close it, or use it in a `with` block."""

    def __init__(self, sampling: Sampling, model: "Model", prompt: Sequence[int] = ()) -> None:
        """The penalties include the end of the prompt, as in llama.cpp's own programs.

        Raises ConfigError for a bias on a token outside the vocabulary.
        """
        from gladstone.llamacpp.library import library

        outside = [token for token, _ in sampling.logit_bias if not 0 <= token < model.vocab_size]
        if outside:
            raise ConfigError(f"logit_bias: the token {outside[0]} is outside the vocabulary of {model.vocab_size:,}.")
        self._lib: Any = library()
        self._chain = self._lib.llama_sampler_chain_init(self._lib.llama_sampler_chain_default_params())
        samplers = self._samplers(sampling, model)
        self._is_argmax = sampling.temperature == 0 and len(samplers) == 1
        self._candidates = self._select_candidates(sampling, model)
        for sampler in samplers:
            self._lib.llama_sampler_chain_add(self._chain, sampler)
        window = max(sampling.repeat_window if sampling.penalises else 0, sampling.dry_window * self._dries(sampling))
        for token in prompt[-window:] if window else ():
            self.accept(token)

    def _select_candidates(self, sampling: Sampling, model: "Model") -> "Candidates | None":
        """The likeliest tokens, if no other can be sampled; None if samplers must see all, or if that costs no more.

        llama.cpp scans a whole vocabulary in 60 µs, but a penalty looks each token up in a table.
        """
        from runtime.sampling.candidates import Candidates

        raises = sampling.repeat_penalty < 1 or min(sampling.frequency_penalty, sampling.presence_penalty) < 0
        kept = 1 if sampling.temperature == 0 else sampling.top_k
        whole = sampling.temperature > 0 and (sampling.mirostat or sampling.top_n_sigma)
        if sampling.logit_bias or (raises and sampling.penalises) or not kept or whole:
            return None
        if not sampling.penalises and not self._dries(sampling):
            return None
        lowered = sampling.repeat_window * sampling.penalises + sampling.dry_window * self._dries(sampling)
        count = kept + lowered
        return Candidates(self._lib, count) if count <= model.vocab_size // MIN_VOCABULARY_PER_CANDIDATE else None

    @staticmethod
    def _dries(sampling: Sampling) -> bool:
        return sampling.dry_multiplier > 0 and sampling.dry_window > 0

    def _samplers(self, sampling: Sampling, model: "Model") -> list[Any]:
        """The samplers, in llama.cpp's default order."""
        lib, samplers = self._lib, []
        if sampling.logit_bias:
            biases = (lib.llama_logit_bias * len(sampling.logit_bias))(*sampling.logit_bias)
            samplers.append(lib.llama_sampler_init_logit_bias(model.vocab_size, len(biases), biases))
        if sampling.penalises:
            penalties = sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
            samplers.append(lib.llama_sampler_init_penalties(model.vocab_size, sampling.repeat_window, *penalties))
        if self._dries(sampling):
            samplers.append(self._dry(sampling, model))
        if sampling.temperature == 0:
            return [*samplers, lib.llama_sampler_init_greedy()]
        if sampling.mirostat:
            return [*samplers, lib.llama_sampler_init_temp(sampling.temperature), self._mirostat(sampling, model)]
        return [*samplers, *self._filters(sampling), lib.llama_sampler_init_dist(sampling.seed)]

    def _filters(self, sampling: Sampling) -> list[Any]:
        lib, filters = self._lib, []
        if sampling.top_n_sigma > 0:
            filters.append(lib.llama_sampler_init_top_n_sigma(sampling.top_n_sigma))
        if sampling.top_k > 0:
            filters.append(lib.llama_sampler_init_top_k(sampling.top_k))
        if sampling.typical_p < 1:
            filters.append(lib.llama_sampler_init_typical(sampling.typical_p, 1))
        if sampling.top_p < 1:
            filters.append(lib.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p > 0:
            filters.append(lib.llama_sampler_init_min_p(sampling.min_p, 1))
        if sampling.xtc_probability > 0:
            xtc = sampling.xtc_probability, sampling.xtc_threshold
            filters.append(lib.llama_sampler_init_xtc(*xtc, 1, sampling.seed))
        return [*filters, lib.llama_sampler_init_temp(sampling.temperature)]

    def _dry(self, sampling: Sampling, model: "Model") -> Any:
        breakers = (ctypes.c_char_p * len(DRY_BREAKERS))(*(text.encode() for text in DRY_BREAKERS))
        settings = sampling.dry_multiplier, sampling.dry_base, sampling.dry_allowed_length, sampling.dry_window
        return self._lib.llama_sampler_init_dry(model.vocabulary, *settings, breakers, len(breakers))

    def _mirostat(self, sampling: Sampling, model: "Model") -> Any:
        settings = sampling.seed, sampling.mirostat_tau, sampling.mirostat_eta
        if sampling.mirostat == 1:
            return self._lib.llama_sampler_init_mirostat(model.vocab_size, *settings, MIROSTAT_M)
        return self._lib.llama_sampler_init_mirostat_v2(*settings)

    def sample(self, context: "Context", index: int, logits: "npt.NDArray[np.float32]") -> int:
        """Sample from `logits` (V,) float32, the output of the batch's token `index`.

        The penalties count the token. Raises UnsupportedError if the logits are NaN or Inf.
        """
        if self._is_argmax:
            token = int(logits.argmax())
        elif self._candidates is not None:
            token = self._candidates.choose(self._chain, logits)
            if token >= 0:
                self.accept(token)
        else:
            token = int(self._lib.llama_sampler_sample(self._chain, context.handle, index))
        if token < 0 or not math.isfinite(logits[token]):
            raise UnsupportedError(f"{context.model.path}: its logits contain NaN or Inf: the file is damaged.")
        return token

    def accept(self, token: int) -> None:
        """Count a token that was not sampled here for the penalties."""
        self._lib.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        """Free the samplers. Closing twice is harmless."""
        if self._chain:
            self._lib.llama_sampler_free(self._chain)
            self._chain = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()
