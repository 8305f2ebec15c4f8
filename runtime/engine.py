"""The engine under chat, ask and bench: one model, many concurrent requests, one thread that computes.

with Engine(Path("model.gguf"), EngineOptions(slots=4)) as engine:
    tokens = engine.prompt_tokens([Message("user", "What is anaemia?")])
    answer = engine.submit(Request(tokens))
    for piece in answer:
        print(piece.text, end="")
    print(answer.result().stop_reason)
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
import numpy.typing as npt

from gladstone.chat.guarded_template import GuardedTemplate
from gladstone.chat.messages import Message
from gladstone.chat.reasoning_markers import UNMARKED, find_markers
from gladstone.errors import ConfigError, DataError, UnsupportedError
from gladstone.llamacpp.context import Context
from runtime.answer import Answer
from runtime.errors import ContextFullError, QueueFullError
from runtime.loading import EngineOptions, choose_engine_threads, discard_disproved_threads, load, open_runner
from runtime.machine.fit import Fit
from runtime.request import Completion, Event, OnEvent, Request
from runtime.sampling.sampler import Sampling
from runtime.sampling.speculative import Drafter, DraftModel, PromptLookup
from runtime.scheduling.admission import Admission
from runtime.scheduling.engine_thread import EngineThread
from runtime.scheduling.generation import Generation, Vocabulary
from runtime.scheduling.jobs import GenerateJob
from runtime.scheduling.sequences import Task
from runtime.scoring import AnswerLoss, Scorer
from runtime.text.prompt import prompt_tokens, scored_tokens
from runtime.text.reasoning_splitter import Piece
from runtime.text.turn_end import find_turn_end
from runtime.trust.provenance import Provenance

if TYPE_CHECKING:
    from runtime.grammars.grammar import Constraint, GrammarCompiler

__all__ = [
    "Answer", "AnswerLoss", "Completion", "ContextFullError", "Engine", "EngineOptions", "Piece", "QueueFullError",
    "Request", "Sampling",
]  # fmt: skip

POLL_S = 0.05  # how soon a `cancelled` that turns true is noticed
T = TypeVar("T")


class Engine:
    """A model ready to answer. Close it, or use it in a `with` block. Any thread may use it."""

    def __init__(self, path: Path, options: EngineOptions | None = None) -> None:
        """Raises ArtifactError for a file that is not a usable chat model, ConfigError for sizes out of range."""
        self.options = options or EngineOptions()
        begin_s = time.perf_counter()
        loaded = self._loaded = load(path, self.options)
        self.model, self.context = loaded.model, loaded.context
        self.context_tokens = loaded.limits.context_tokens
        self._scales = tuple(lora.scale for lora in self.options.loras)
        self.answer_stop = ""  # the text that ends an answer, where the template has no token for that
        markers = UNMARKED
        if loaded.template is not None:
            markers = find_markers(loaded.template.source)
            token, self.answer_stop = find_turn_end(self.model, loaded.template, markers)
            self.model.end_tokens |= set() if token is None else {token}
        self._vocabulary = Vocabulary(self.model, markers, self.answer_stop)
        self._draft_sequences = list(range(self.options.slots))
        self._grammars: GrammarCompiler | None = None
        self._grammars_lock = threading.Lock()
        self._runner = open_runner(loaded)
        self._thread = EngineThread(self._runner)
        self._admission = Admission(self._thread, self.options.slots + self.options.queue)
        self._scorer = Scorer(self._runner, self._admission, self._scales)
        try:
            self.threads = self.run(lambda context: choose_engine_threads(context, self.options))
        except BaseException:
            self.close()
            raise
        self.load_s = time.perf_counter() - begin_s

    @property
    def fit(self) -> Fit:
        """How the model was fitted to the machine."""
        return self._loaded.fit

    @property
    def template(self) -> GuardedTemplate:
        """The chat template. Raises UnsupportedError for an engine opened with `EngineOptions.raw`."""
        if self._loaded.template is None:
            raise UnsupportedError("an engine for raw text has no chat template: it takes no messages.")
        return self._loaded.template

    @property
    def provenance(self) -> Provenance:
        """What the manifest beside the file says about it."""
        return self._loaded.provenance

    def close(self) -> None:
        """End all requests and free everything. Closing twice is harmless."""
        if not self._thread.closing:
            self._thread.close(self.context.abort)
            discard_disproved_threads(self.context)
            self._loaded.stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def prompt_tokens(self, messages: Sequence[Message], tools: Sequence[str] = ()) -> list[int]:
        """Tokens of the turns, up to where the answer begins. Text that spells a control token stays text.

        `tools` are definitions as JSON texts. Raises DataError for turns and tools that the template cannot render.
        """
        return prompt_tokens(self.model, self.template, messages, tools)

    def text_tokens(self, text: str, *, special: bool = True) -> list[int]:
        """Tokens of a text without a template, with BOS where the vocabulary adds it and, for an encoder, EOS.

        With `special`, text that spells a special token becomes that token, for templates written by hand. Raises
        DataError for text that is not Unicode.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError("the text contains a lone surrogate, which is not valid Unicode.") from None
        return self.model.add_bos_eos(self.model.tokenize(text, parse_special=special))

    def submit(self, request: Request, on_event: OnEvent | None = None) -> Answer:
        """Queue a request. Without `on_event`, iterate over the answer; the engine's thread calls `on_event`.

        `on_event` must return quickly, for all requests wait meanwhile. Raises ContextFullError if the prompt and one
        token of an answer do not fit the context, QueueFullError if too many requests wait, ConfigError for settings
        out of range, UnsupportedError for what this kind of model cannot do.
        """
        self.check_room(len(request.tokens), answer_tokens=1)
        adapters = self._scales if request.adapters is None else request.adapters
        if len(adapters) != len(self._scales):
            raise ConfigError(f"{len(adapters)} scales for {len(self._scales)} adapters.")
        self._runner.check(request)
        constraint = self._constraint(request)
        answer = Answer(lambda: self._thread.cancel(task))
        listener = self._admission.counted(on_event or answer.put)
        generation = Generation(self._vocabulary, request, self.context_tokens, listener, constraint)
        task = Task(generation.tokens, request.priority, adapters)
        job = GenerateJob(generation, task, self._new_drafter())

        def start() -> None:
            generation.open()
            if not generation.ended:  # closing the reasoning can use up a limit of a few tokens
                self._runner.submit(job)

        try:
            self._admission.enter(start, generation.fail)
        except BaseException:
            generation.close()
            raise
        return answer

    def _constraint(self, request: Request) -> "Constraint | None":
        if request.grammar is None:
            return None
        from runtime.grammars.grammar import GrammarCompiler

        with self._grammars_lock:
            self._grammars = self._grammars or GrammarCompiler(self.model)
        return self._grammars.compile(request.grammar)

    def complete(
        self,
        tokens: list[int],
        sampling: Sampling,
        on_piece: Callable[[Piece], None] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Completion:
        """Continue the tokens and wait for the completion, as `answer` does."""
        return self.answer(Request(tokens, sampling), on_piece, cancelled)

    def answer(
        self,
        request: Request,
        on_piece: Callable[[Piece], None] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Completion:
        """Answer a request and wait. The engine's thread calls `on_piece`; `cancelled` is polled every 50 ms.

        Raises what `submit` raises, and what `on_piece` raises. An exception of `on_piece`, or Ctrl-C, ends this answer
        only; the engine stays usable.
        """
        end: Future[Completion] = Future()

        def on_event(event: Event) -> None:
            if isinstance(event, Completion):
                end.set_result(event)
            elif not isinstance(event, Piece):
                end.set_exception(event)
            elif on_piece is not None:
                on_piece(event)

        # waking this thread for each piece would take CPU time from the threads that compute: 3 % of the tokens
        answer = self.submit(request, on_event)
        try:
            while True:
                if cancelled():
                    answer.cancel()
                try:
                    return end.result(POLL_S)
                except TimeoutError:
                    continue
        except BaseException:
            answer.cancel()
            raise

    def answer_loss(self, messages: Sequence[Message], tools: Sequence[str] = ()) -> AnswerLoss:
        """The loss of the last turn, an answer, given the turns before it.

        Raises DataError if the last turn is not the assistant's, and what `score` raises.
        """
        prompt, answer = scored_tokens(self.model, self.template, messages, tools)
        if not prompt or not answer:
            raise DataError("the chat template renders an empty prompt or an empty answer: nothing can be scored.")
        return self.score(prompt, [answer])[0]

    def score(self, prompt: list[int], continuations: Sequence[list[int]]) -> list[AnswerLoss]:
        """The loss of each continuation of a prompt, by teacher forcing; the prompt is evaluated once.

        Scoring starts from an empty cache, so earlier requests do not change the result. Raises ContextFullError if a
        continuation does not fit, DataError if one is empty.
        """
        for continuation in continuations:
            self.check_room(len(prompt), answer_tokens=len(continuation))
            if not continuation:
                raise DataError("a continuation without a token has no probability.")
        return self._scorer.losses(prompt, continuations)

    def logits(self, tokens: list[int], consume: Callable[[int, npt.NDArray[np.float32]], None]) -> None:
        """Call `consume(position, rows)` with the logits of all tokens, in order, from an empty cache.

        `rows` (N, V) float32 is a view that the next call overwrites. The engine's thread calls `consume`. Raises
        UnsupportedError for an encoder-decoder model, ContextFullError if the tokens do not fit.
        """
        if self.model.has_encoder:
            raise UnsupportedError(f"{self.model.path.name} has an encoder: its decoder reads no text of its own.")
        self.check_room(len(tokens), answer_tokens=0)
        self._scorer.logits(tokens, consume)

    def run(self, work: Callable[[Context], T]) -> T:
        """Call `work` in the engine's thread, with an empty cache, while no request runs; returns its result."""
        future: Future[T] = Future()

        def alone() -> None:
            self._empty()
            try:
                future.set_result(work(self.context))
            except BaseException as error:  # noqa: BLE001 - the caller raises it
                future.set_exception(error)
            finally:
                self._empty()

        self._thread.post_alone(alone, future.set_exception)
        return future.result()

    def clear_cache(self) -> None:
        """Evict all cached prefixes: the next prompt is evaluated whole."""
        done: Future[None] = Future()

        def forget() -> None:
            self._runner.evict_all()
            done.set_result(None)

        self._thread.post(forget, done.set_exception)
        done.result()

    @property
    def open_requests(self) -> int:
        """Requests that run or wait."""
        return self._admission.open

    @property
    def evaluated_tokens(self) -> int:
        """Tokens that the model has evaluated since the engine was opened."""
        return self._runner.evaluated_tokens

    def check_room(self, prompt_tokens: int, answer_tokens: int) -> None:
        """Raises ContextFullError if prompt and answer do not fit the context, DataError for an empty prompt."""
        if not prompt_tokens:
            raise DataError("the prompt is empty: there is nothing to continue.")
        needed = max(prompt_tokens, answer_tokens) if self.model.has_encoder else prompt_tokens + answer_tokens
        if needed > self.context_tokens:
            raise ContextFullError(
                f"the prompt of {prompt_tokens:,} tokens and at least {answer_tokens:,} for the answer do not fit the "
                f"context of {self.context_tokens:,} tokens. Shorten it, or take a larger context: "
                f"the model was trained for {self.model.context_tokens:,}."
            )

    def _new_drafter(self) -> Drafter | None:
        if self._loaded.draft is not None:
            return DraftModel(self._loaded.draft, self._draft_sequences)
        return PromptLookup() if self.options.lookup else None

    def _empty(self) -> None:
        self._runner.evict_all()
        self.context.clear()
