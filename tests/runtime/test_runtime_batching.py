import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gladstone.chat.messages import Message
from gladstone.errors import ConfigError, UnsupportedError
from runtime.engine import Completion, Engine, EngineOptions, Piece, QueueFullError, Request, Sampling
from runtime.request import Event
from tests.waiting import PATIENCE_S

QUESTIONS = [
    "What is 2+2?", "Name three colours.", "What is the capital of France?", "Write a haiku about rain.",
    "Who wrote Hamlet?", "What does the heart do?",
]  # fmt: skip
SHORT = Sampling(max_tokens=16)
TIE_NATS = 0.3
# without flash attention a batch of several rows rounds as a batch of one does in all but a few places
OPTIONS = EngineOptions(context_tokens=1024, slots=3, threads=1, flash_attention=False)


@pytest.fixture(scope="module")
def many(smollm: Path) -> Iterator[Engine]:
    with Engine(smollm, OPTIONS) as engine:
        yield engine


def asked(engine: Engine, question: str) -> list[int]:
    return engine.prompt_tokens([Message("user", question)])


def solo(engine: Engine, tokens: list[int], sampling: Sampling = SHORT) -> str:
    engine.clear_cache()
    return engine.complete(tokens, sampling).text


def long_prompt(engine: Engine, words: int = 900) -> list[int]:
    return engine.model.tokenize(" ".join(f"word{number % 7}" for number in range(words)))[:words]


def test_many_at_a_time_get_the_answers_that_each_gets_alone(many: Engine) -> None:
    sampling = dataclasses.replace(SHORT, logprobs=5)
    prompts = [asked(many, question) for question in QUESTIONS]
    alone = []
    for prompt in prompts:
        many.clear_cache()
        alone.append(many.complete(prompt, sampling))
    many.clear_cache()
    answers = [many.submit(Request(prompt, sampling)) for prompt in prompts]
    for one, answer in zip(alone, answers, strict=True):
        check_equal_but_for_ties(one, answer.result())


def check_equal_but_for_ties(one: Completion, other: Completion) -> None:
    """A batch of several rows adds up in another order than one of one: where two tokens are about as likely, either
    may come, and what follows then differs."""
    assert one.logprobs
    assert other.logprobs
    for mine, theirs in zip(one.logprobs, other.logprobs, strict=False):
        if mine.token != theirs.token:
            assert mine.logprob - dict(mine.top)[theirs.token] < TIE_NATS
            return
    assert one.text == other.text


def test_answers_stream_concurrently(many: Engine) -> None:
    order: list[int] = []
    ends = [threading.Event() for _ in range(3)]

    def tell(number: int, event: Event) -> None:
        if isinstance(event, Piece):
            order.append(number)
        else:
            ends[number].set()

    for number, question in enumerate(QUESTIONS[:3]):
        many.submit(Request(asked(many, question), SHORT), lambda event, number=number: tell(number, event))  # type: ignore[misc]
    assert all(end.wait(PATIENCE_S) for end in ends)
    assert set(order[:9]) == {0, 1, 2}, "somebody waited until another was done"


def test_a_prefix_that_four_questions_have_in_common_is_read_once(smollm: Path) -> None:
    with Engine(smollm, dataclasses.replace(OPTIONS, slots=4)) as engine:
        system = Message("system", " ".join(f"Rule {number}: be brief." for number in range(60)))
        prompts = [engine.prompt_tokens([system, Message("user", question)]) for question in QUESTIONS[:4]]
        before = engine.evaluated_tokens
        answers = [engine.submit(Request(prompt, Sampling(max_tokens=1))) for prompt in prompts]
        cached = [answer.result().cached_tokens for answer in answers]
        common = len(prompts[0]) - 20
        assert cached[0] == 0
        assert all(count > common for count in cached[1:])
        assert engine.evaluated_tokens - before < len(prompts[0]) + 4 * 20


def test_a_conversation_that_comes_back_evaluates_only_what_is_new(many: Engine) -> None:
    turns = [Message("user", QUESTIONS[1])]
    first = many.complete(many.prompt_tokens(turns), SHORT)
    for question in QUESTIONS[2:4]:  # others in between
        many.complete(asked(many, question), SHORT)
    turns += [Message("assistant", first.text), Message("user", "And three more?")]
    again = many.complete(many.prompt_tokens(turns), SHORT)
    assert again.cached_tokens >= first.prompt_tokens + first.generated_tokens - 1


def test_cancelling_in_the_middle_of_a_long_prompt_ends_it_at_once(smollm: Path) -> None:
    with Engine(smollm, EngineOptions(threads=1, batch_tokens=2048)) as engine:
        answer = engine.submit(Request(long_prompt(engine, 2000), SHORT))
        time.sleep(0.3)
        begin_s = time.process_time()  # not the wall's: other work on the machine is not the engine's
        answer.cancel()
        completion = answer.result()
        assert time.process_time() - begin_s < 1.0, "the batch of 2,000 tokens takes several seconds"
        assert (completion.stop_reason, completion.text) == ("cancelled", "")
        assert engine.complete(asked(engine, QUESTIONS[0]), Sampling(max_tokens=64)).text.endswith("4.")


def test_cancelling_one_leaves_the_others_alone(many: Engine) -> None:
    sampling = dataclasses.replace(SHORT, logprobs=5)
    prompts = [asked(many, question) for question in QUESTIONS[1:3]]
    many.clear_cache()
    alone = [many.complete(prompt, sampling) for prompt in prompts]
    many.clear_cache()
    victim = many.submit(Request(long_prompt(many), SHORT))
    others = [many.submit(Request(prompt, sampling)) for prompt in prompts]
    next(iter(others[0]))
    victim.cancel()
    victim.cancel()
    assert victim.result().stop_reason == "cancelled"
    for one, answer in zip(alone, others, strict=True):
        check_equal_but_for_ties(one, answer.result())


def test_what_waits_can_be_cancelled_and_the_queue_is_bounded(smollm: Path) -> None:
    with Engine(smollm, EngineOptions(context_tokens=512, threads=1, queue=2)) as engine:
        prompt = asked(engine, QUESTIONS[3])
        answers = [engine.submit(Request(prompt, Sampling(max_tokens=200))) for _ in range(3)]
        with pytest.raises(QueueFullError, match="3 requests are under way or wait already"):
            engine.submit(Request(prompt))
        answers[2].cancel()
        assert answers[2].result().generated_tokens == 0
        engine.submit(Request(prompt, SHORT)).cancel()
        for answer in answers[:2]:
            answer.cancel()
            assert answer.result().stop_reason == "cancelled"


def test_a_higher_priority_goes_first(smollm: Path) -> None:
    with Engine(smollm, EngineOptions(context_tokens=512, threads=1)) as engine:
        order: list[str] = []
        prompt = asked(engine, QUESTIONS[0])
        first = engine.submit(Request(prompt, Sampling(max_tokens=60)))
        next(iter(first))
        ends = []
        for name, priority in (("low", 0), ("high", 3)):
            end = threading.Event()
            ends.append(end)

            def tell(event: Event, name: str = name, end: threading.Event = end) -> None:
                if isinstance(event, Completion):
                    order.append(name)
                    end.set()

            engine.submit(Request(prompt, SHORT, priority=priority), tell)
        assert all(end.wait(PATIENCE_S) for end in ends)
        assert order == ["high", "low"]


def test_closing_ends_what_is_under_way(smollm: Path) -> None:
    engine = Engine(smollm, EngineOptions(threads=1))
    answers = [engine.submit(Request(long_prompt(engine, 2000))) for _ in range(2)]
    engine.close()
    engine.close()
    for answer in answers:
        with pytest.raises(UnsupportedError, match="the engine was closed"):
            answer.result()
    with pytest.raises(UnsupportedError, match="the engine is closed"):
        engine.submit(Request([1, 2]))


def test_log_probabilities_are_those_of_the_model(many: Engine) -> None:
    completion = many.complete(asked(many, QUESTIONS[0]), Sampling(max_tokens=5, logprobs=3))
    assert completion.logprobs is not None
    for logprob in completion.logprobs:
        assert next(each for each, _ in logprob.top) == logprob.token, "greedy takes the likeliest"
        assert logprob.top[0][1] == logprob.logprob <= 0
        assert sorted(logprob.top, key=lambda pair: -pair[1]) == list(logprob.top)
    loss = many.score(asked(many, QUESTIONS[0]), [[each.token for each in completion.logprobs]])[0]
    assert loss.nats == pytest.approx(-sum(each.logprob for each in completion.logprobs), abs=0.05)


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=40), Sampling(max_tokens=40, temperature=1.0, seed=5)])
def test_looking_up_the_prompt_gives_the_same_text(smollm: Path, sampling: Sampling) -> None:
    text = "Repeat this: the femur, the tibia, the fibula, the patella, the femur, the tibia, the fibula, the patella."
    with Engine(smollm, dataclasses.replace(OPTIONS, slots=1)) as plain:
        expected = plain.complete(asked(plain, text), sampling)
    with Engine(smollm, dataclasses.replace(OPTIONS, slots=1, lookup=True)) as engine:
        completion = engine.complete(asked(engine, text), sampling)
    assert completion.text == expected.text
    assert expected.accepted_draft_tokens == 0
    assert completion.accepted_draft_tokens > 10 or sampling.temperature


def test_a_draft_model_gives_the_same_text_to_each_of_several(smollm: Path) -> None:
    options = dataclasses.replace(OPTIONS, slots=2, draft=smollm)  # the model itself: nearly all guesses are right
    with Engine(smollm, dataclasses.replace(OPTIONS, slots=2)) as plain:
        expected = [solo(plain, asked(plain, question)) for question in QUESTIONS[:3]]
    with Engine(smollm, options) as engine:
        answers = [engine.submit(Request(asked(engine, question), SHORT)) for question in QUESTIONS[:3]]
        completions = [answer.result() for answer in answers]
    assert [completion.text for completion in completions] == expected
    assert sum(completion.accepted_draft_tokens for completion in completions) > 10


def test_a_bias_steers_and_forbids(many: Engine) -> None:
    prompt = asked(many, QUESTIONS[0])
    first = many.model.tokenize(solo(many, prompt))[0]
    forbidden = many.complete(prompt, Sampling(max_tokens=1, logit_bias=((first, -float("inf")),)))
    assert many.model.tokenize(forbidden.text) != [first]
    forced = many.complete(prompt, Sampling(max_tokens=3, logit_bias=((first, 1000.0),)))
    assert forced.text == many.model.piece(first).decode() * 3
    with pytest.raises(ConfigError, match="token 49152 is outside the vocabulary"):
        many.complete(prompt, Sampling(logit_bias=((49152, 1.0),)))


@pytest.mark.parametrize("budget", [0, 4])
def test_a_budget_closes_the_reasoning_and_the_answer_follows(many: Engine, budget: int) -> None:
    prompt = [*asked(many, QUESTIONS[2]), *many.model.tokenize("<think>\nThe user asks")]
    if budget == 0:
        prompt = [*asked(many, QUESTIONS[2]), *many.model.tokenize("<think>\n")]
    completion = many.submit(Request(prompt, Sampling(max_tokens=40), reasoning_tokens=budget)).result()
    assert completion.text
    assert "think>" not in completion.text
    thought = many.model.tokenize(completion.reasoning or "")
    assert len(thought) <= budget
    endless = many.submit(Request(prompt, Sampling(max_tokens=12))).result()
    assert endless.text == "" or budget == 4


@pytest.mark.parametrize("error", [BrokenPipeError("closed"), KeyboardInterrupt()])
@pytest.mark.parametrize("how", ["answered", "cancelled"])
def test_a_listener_that_raises_at_the_last_piece_gets_its_error_and_the_engine_continues(
    many: Engine, error: BaseException, how: str
) -> None:
    def refuse(_piece: Piece) -> None:
        raise error

    # all that is written may begin the stop string, so that the first piece comes when nothing follows
    first = many.complete(asked(many, QUESTIONS[0]), Sampling(max_tokens=1)).text
    wanted = Sampling(max_tokens=1 if how == "answered" else 400, stop=(first + "\0",) if how == "answered" else ())
    if how == "answered":
        with pytest.raises(type(error)):
            many.answer(Request(asked(many, QUESTIONS[0]), wanted), refuse)
    else:
        ends: list[Event] = []
        done = threading.Event()

        def listen(event: Event) -> None:
            if isinstance(event, Piece):
                raise error
            ends.append(event)
            done.set()

        held = dataclasses.replace(wanted, logit_bias=((many.model.tokenize("<")[0], 1e6),), stop=("<" * 1000,))
        answer = many.submit(Request(asked(many, QUESTIONS[0]), held), listen)
        time.sleep(0.3)
        answer.cancel()
        assert done.wait(PATIENCE_S)
        assert ends == [error]
    assert many.complete(asked(many, QUESTIONS[0]), SHORT).text
    assert many.open_requests == 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_limit_that_closing_the_reasoning_uses_up_ends_the_answer(many: Engine, temperature: float) -> None:
    prompt = [*asked(many, QUESTIONS[2]), *many.model.tokenize("<think>\n")]
    wanted = Request(prompt, Sampling(max_tokens=2, temperature=temperature), reasoning_tokens=0)
    completion = many.submit(wanted).result()
    assert (completion.text, completion.stop_reason, completion.generated_tokens) == ("", "length", 2)
    assert many.complete(asked(many, QUESTIONS[0]), SHORT).text, "the engine goes on"
    assert many.open_requests == 0


def test_one_wrong_request_does_not_harm_the_others(many: Engine) -> None:
    def refuse(event: Event) -> None:
        if isinstance(event, Piece):
            raise UnsupportedError("the listener cannot take it.")
        ends.append(event)
        done.set()

    ends: list[Event] = []
    done = threading.Event()
    good = many.submit(Request(asked(many, QUESTIONS[0]), SHORT))
    many.submit(Request(asked(many, QUESTIONS[1]), SHORT), refuse)
    assert good.result().text
    assert done.wait(PATIENCE_S)
    assert isinstance(ends[0], UnsupportedError)
