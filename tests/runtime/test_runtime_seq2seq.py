"""Encoder–decoder models through llama.cpp against transformers: logits, greedy and sampled texts, beams."""

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gladstone.errors import ArtifactError, ConfigError, DataError, UnsupportedError
from gladstone.llamacpp.context import Context
from gladstone.llamacpp.library import library
from gladstone.llamacpp.model import Model
from runtime.engine import Engine, EngineOptions, Request, Sampling
from runtime.errors import ContextFullError
from runtime.grammars.grammar import Grammar
from runtime.sampling.beam_search import Beams, Hypothesis, banned_by_ngrams
from runtime.sampling.encoder_decoder import EncoderDecoder, Logits, logit_scale
from tests.families import FAMILIES, write_tokenizer
from tests.runtime.t5_models import END, KINDS, START, VOCABULARY, Made, generated_beams, make

CONTEXT_TOKENS, SEQUENCES = 512, 8
TIE_LOGITS = 1e-3  # of greedy texts: two tokens that are this near are both right
TIE_SCORE = 1e-4  # of beams: two texts that score so nearly the same are both right
SCORE_TOLERANCE = 1e-3
# llama.cpp looks GELU up in a table of 16-bit floats
LOGITS_TOLERANCE = {"relu": 2e-5, "gated-gelu": 2e-3}
GRID = [
    Beams(count, penalty, stops, ngram)
    for count, ngram, penalty, stops in itertools.product((2, 4), (0, 3), (0.6, 1.0, 2.0), (False, True))
]


@dataclass(frozen=True)
class Pair:
    """A model in torch, and the same one through llama.cpp."""

    made: Made
    runner: EncoderDecoder

    @property
    def torch(self) -> Any:
        return self.made.torch


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(FAMILIES["flan-t5"], folder)
    return folder


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.long if name == "umt5" else []) for name in KINDS]
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Iterator[Pair]:
    made = make(request.param, tmp_path_factory.mktemp("t5") / request.param, tokenizer)
    with Model(made.gguf) as model, _context(model) as context:
        yield Pair(made, EncoderDecoder(context))


def _context(model: Model, tokens: int = CONTEXT_TOKENS, sequences: int = SEQUENCES) -> Context:
    """With floats of 32 bits throughout, as torch has them."""
    return Context(model, tokens, sequences=sequences, threads=1, cache_type="f32", flash_attention=False)


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [[*rng.integers(2, VOCABULARY, int(rng.integers(1, 60))).tolist(), END] for _ in range(count)]


def known(logits: Logits | None) -> Logits:
    """Those of an evaluation that nobody has aborted."""
    assert logits is not None
    return logits


def torch_logits(model: Any, prompt: list[int], answer: list[int]) -> Any:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([answer])).logits[0].numpy()


def test_every_logit_is_that_of_torch(pair: Pair) -> None:
    tolerance = LOGITS_TOLERANCE[pair.made.kind.feed_forward]
    answer = prompts(1, seed=9)[0][:40]
    for prompt in prompts(4):
        expected = torch_logits(pair.torch, prompt, [START, *answer])
        found = [known(pair.runner.begin(prompt)).copy()]
        found += [known(pair.runner.step(token)).copy() for token in answer[:5]]
        found += [*known(pair.runner.extend(answer[5:]))]
        np.testing.assert_allclose(found, expected, atol=tolerance)
    assert pair.runner.scale == (1.0 if pair.made.kind.own_head else 64**-0.5)


@pytest.mark.parametrize("ngram", [0, 3])
def test_greedy_texts_are_those_of_torch_but_for_ties(pair: Pair, ngram: int) -> None:
    import torch

    for prompt in prompts(12, seed=1):
        found = greedy(pair.runner, prompt, 24, ngram)
        config = {"do_sample": False, "num_beams": 1, "max_new_tokens": 24, "no_repeat_ngram_size": ngram}
        expected = pair.torch.generate(torch.tensor([prompt]), **config)[0, 1:].tolist()
        if found == expected:
            continue
        at = next(i for i, (ours, theirs) in enumerate(zip(found, expected, strict=False)) if ours != theirs)
        row = torch_logits(pair.torch, prompt, [START, *expected[:at]])[-1]
        assert row[expected[at]] - row[found[at]] < TIE_LOGITS, (prompt, at)


def greedy(runner: EncoderDecoder, prompt: list[int], most: int, ngram: int = 0) -> list[int]:
    text: list[int] = []
    logits = known(runner.begin(prompt))
    while True:
        logits[banned_by_ngrams([START, *text], ngram)] = -np.inf
        text.append(int(logits.argmax()))
        if text[-1] in runner.ends or len(text) == most:
            return text
        logits = known(runner.step(text[-1]))


def test_llama_cpp_samples_from_the_distribution_of_torch(pair: Pair) -> None:
    lib = library()
    prompt, draws = prompts(1, seed=2)[0], 1500
    logits = torch_logits(pair.torch, prompt, [START])[0].astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum())
    entropy, deviation = -(np.exp(log_p) * log_p).sum(), np.sqrt((np.exp(log_p) * log_p**2).sum())
    pair.runner.begin(prompt)
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(1))
    drawn = [lib.llama_sampler_sample(chain, pair.runner.context.handle, -1) for _ in range(draws)]
    lib.llama_sampler_free(chain)
    assert -log_p[drawn].mean() == pytest.approx(entropy, abs=5 * deviation / np.sqrt(draws))


@pytest.mark.parametrize("rounds", [1, pytest.param(9, marks=pytest.mark.long)])
def test_beams_are_those_of_transformers_but_for_ties(pair: Pair, rounds: int) -> None:
    ties, lengths = 0, set()
    settings = GRID * rounds
    for beams, prompt in zip(settings, prompts(len(settings), seed=3), strict=True):
        found = pair.runner.search(prompt, beams, 16)
        expected = generated_beams(pair.torch, prompt, beams, 16)
        assert [each.score for each in found.hypotheses] == pytest.approx([s for _, s in expected], abs=SCORE_TOLERANCE)
        different = [i for i, each in enumerate(found.hypotheses) if each.tokens != expected[i][0]]
        for index in different:
            assert abs(found.hypotheses[index].score - expected[index][1]) < TIE_SCORE, (beams, prompt, index)
        ties += bool(different)
        lengths |= {len(each.tokens) for each in found.hypotheses}
        assert found.stop_reason == ("end" if found.hypotheses[0].ended else "length")
    print(f"{ties} of {len(settings)} searches differ, all by ties")  # shown with -rP
    assert ties <= 0.05 * len(settings) + 1
    assert len(lengths) > 4  # they end sooner and later


def test_requests_do_not_influence_each_other(pair: Pair) -> None:
    runner, (first, second, third) = pair.runner, prompts(3, seed=4)
    alone = _tokens(runner.search(first, Beams(4), 20).hypotheses)
    written = greedy(runner, second, 20)
    runner.search(third, Beams(8), 20)
    assert _tokens(runner.search(first, Beams(4), 20).hypotheses) == alone
    assert greedy(runner, second, 20) == written


def _tokens(hypotheses: tuple[Hypothesis, ...]) -> list[tuple[tuple[int, ...], float]]:
    return [(each.tokens, each.score) for each in hypotheses]


def longest(pair: Pair, beams: Beams, most: int) -> list[int]:
    """A prompt whose search goes on to the limit."""
    return next(p for p in prompts(200, seed=5) if pair.runner.search(p, beams, most).steps == most)


def test_a_search_can_be_given_up_before_every_step(pair: Pair) -> None:
    prompt = longest(pair, Beams(4), 8)
    whole = pair.runner.search(prompt, Beams(4), 8)
    for allowed in range(8):
        asked = iter(range(100))
        given_up = pair.runner.search(prompt, Beams(4), 8, lambda: next(asked) >= allowed)  # noqa: B023 - called within
        assert (given_up.stop_reason, given_up.steps) == ("cancelled", allowed)
        assert len(given_up.hypotheses) == (4 if allowed else 0)
        assert all(each.ended or len(each.tokens) == allowed for each in given_up.hypotheses)
        assert pair.runner.search(prompt, Beams(4), 8) == whole


def test_an_abort_from_elsewhere_ends_what_is_under_way(pair: Pair) -> None:
    runner, context = pair.runner, pair.runner.context
    prompt = longest(pair, Beams(4), 8)
    whole, written = runner.search(prompt, Beams(4), 8), greedy(runner, prompt, 8)
    for before in range(6):
        asked = iter(range(100))

        def abort_later() -> bool:
            if next(asked) == before:  # noqa: B023 - called within
                context.abort()
            return False

        aborted = runner.search(prompt, Beams(4), 8, abort_later)
        assert (aborted.stop_reason, aborted.steps) == ("cancelled", before)
        assert runner.begin(prompt) is None
        context.resume()
        assert runner.search(prompt, Beams(4), 8) == whole
    known(runner.begin(prompt))
    context.abort()
    assert runner.step(5) is None
    context.resume()
    assert greedy(runner, prompt, 8) == written


def test_a_full_context_ends_the_search_and_the_text(pair: Pair) -> None:
    with _context(pair.runner.context.model, 256) as context:
        runner = EncoderDecoder(context)
        for count in (1, 3, 8):
            found = runner.search(prompts(1)[0], Beams(count, 5.0, "never", 2), 1000)  # the longer, the better
            room = 255 // count + 1
            assert found.steps == max(len(each.tokens) for each in found.hypotheses) == room
            assert found.stop_reason == ("end" if found.hypotheses[0].ended else "context")
        runner.begin(prompts(1)[0])
        steps = 0
        while runner.room_tokens > 1:
            runner.step(7)
            steps += 1
        assert steps == 255
        with pytest.raises(ContextFullError, match="257 tokens does not fit the context of 256"):
            runner.step(7)


def test_what_does_not_fit_is_refused_beforehand(pair: Pair) -> None:
    with pytest.raises(ContextFullError, match="prompt of 513 tokens does not fit the context of 512"):
        pair.runner.begin([5] * 513)
    with pytest.raises(DataError, match="empty"):
        pair.runner.search([], Beams(2), 5)
    with pytest.raises(ConfigError, match="9 beams on a context of 8 sequences"):
        pair.runner.search([5, END], Beams(9), 5)
    assert known(pair.runner.begin([5] * 512)).shape == (VOCABULARY,)


def test_a_file_can_tell_the_scale_of_its_logits(pair: Pair, tmp_path: Path) -> None:
    path = with_number(pair.made.gguf, tmp_path / "told.gguf", "t5.logit_scale", 0.5)
    with Model(path) as model, _context(model) as context:
        told = EncoderDecoder(context)
        assert told.scale == 0.5
        ours, theirs = known(told.begin([5, 6, END])), known(pair.runner.begin([5, 6, END]))
        np.testing.assert_allclose(ours / 0.5, theirs / pair.runner.scale, rtol=1e-5, atol=1e-5)
    for wrong in (0.0, 2.0):
        wrong_path = with_number(pair.made.gguf, tmp_path / "wrong.gguf", "t5.logit_scale", wrong)
        with (
            Model(wrong_path) as model,
            pytest.raises(ArtifactError, match=r"t5\.logit_scale is .*, expected more than 0"),
        ):
            logit_scale(model)


def with_number(source: Path, target: Path, key: str, value: float) -> Path:
    """A copy with another value of a float in its header."""
    data = bytearray(source.read_bytes())
    at = data.index(struct.pack("<Q", len(key)) + key.encode()) + 8 + len(key)
    struct.pack_into("<If", data, at, 6, value)
    target.write_bytes(data)
    return target


def test_an_engine_answers_searches_and_scores_as_torch_does(pair: Pair) -> None:
    """Through the runner that decoder-only models have too; a queue of one request bounds how many are scored at once."""
    options = EngineOptions(context_tokens=CONTEXT_TOKENS, threads=1, raw=True, queue=1)
    prompt = longest(pair, Beams(4), 8)
    with Engine(pair.made.gguf, options) as engine:
        piece = engine.model.piece
        expected = b"".join(map(piece, greedy(pair.runner, prompt, 8))).decode()
        assert engine.complete(prompt, Sampling(max_tokens=8)).text == expected
        best = pair.runner.search(prompt, Beams(4), 8).hypotheses[0].tokens
        searched = engine.complete(prompt, Sampling(max_tokens=8, beams=4))
        assert (searched.text, searched.stop_reason) == (b"".join(map(piece, best)).decode(), "length")
        continuations = [[5, END], [7, 8, 9], list(best), [5, 6], [END]]
        for answer, loss in zip(continuations, engine.score(prompt, continuations), strict=True):
            logits = torch_logits(pair.torch, prompt, [START, *answer[:-1]]).astype(np.float64)
            nats = (np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(answer)), answer]).sum()
            assert loss.tokens == len(answer)
            assert loss.nats == pytest.approx(nats, abs=0.02)
        with pytest.raises(UnsupportedError, match="has an encoder"):
            engine.logits(prompt, lambda _position, _rows: None)
        with pytest.raises(UnsupportedError, match="a grammar and beams"):
            engine.submit(Request(prompt, Sampling(beams=2), grammar=Grammar("regex", "[a-z]+")))
        assert engine.open_requests == 0


def test_a_model_that_only_decodes_is_refused(smollm: Path) -> None:
    with Model(smollm) as model, _context(model, 64, 1) as context, pytest.raises(UnsupportedError, match="'llama'"):
        EncoderDecoder(context)
