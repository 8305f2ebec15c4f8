"""The engine under chat, ask, server and bench: one model, many requests at a time, one thread that computes.

    with Engine(Path("model.gguf"), EngineOptions(slots=4)) as engine:
        tokens = engine.prompt_tokens([Message("user", "What is anaemia?")])
        answer = engine.submit(Request(tokens))
        for piece in answer:
            print(piece.text, end="")
        print(answer.result().stop_reason)
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
import numpy.typing as npt

from gladstone.chat import CHAT_CONTEXT_TOKENS, Message
from gladstone.errors import ConfigError, DataError, UnsupportedError
from gladstone.guarded_template import TemplateProcess
from gladstone.llama import Context, Model
from gladstone.lora import Lora
from runtime.batching import BatchRunner, ReadingJob, WritingJob
from runtime.beams import Beams
from runtime.prompt import load_template, prompt_tokens, scored_tokens
from runtime.reasoning import Piece, markers_of
from runtime.request import Completion, ContextFullError, Event, OnEvent, Request
from runtime.sampler import MAX_BEAMS, Sampling
from runtime.scheduler import Limits, QueueFullError, Task
from runtime.serial import Reply, SerialRunner, Teaching
from runtime.speculation import DraftModel, Guesser, PromptLookup, check_draft
from runtime.writer import Vocabulary, Writer, log_softmax

if TYPE_CHECKING:
    from runtime.grammar import Constraint, GrammarCompiler

__all__ = [
    "Answer", "AnswerLoss", "Completion", "ContextFullError", "Engine", "EngineOptions", "Piece", "QueueFullError",
    "Request", "Sampling",
]  # fmt: skip

KEPT_SEQUENCES = 3  # earlier conversations that can be taken up again, beside those at work
BEAM_CONTEXTS = 4  # room for the answers of several beams, in contexts
POLL_S = 0.05  # how soon a `cancelled` that turns true is noticed
T = TypeVar("T")
_Work = tuple[Callable[[], None], Callable[[BaseException], None]]


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is set up.

    The context of each request is as large as the model was trained for, but 4,096 tokens unless more is asked for.
    `slots` requests are at work at a time and share `cache_tokens`, by default enough for all of them. Adapters can be
    laid over the model. Guesses come from a `draft` model, or with `lookup` from the text itself.
    """

    context_tokens: int | None = None
    slots: int = 1
    cache_tokens: int | None = None
    queue: int = 1024
    threads: int | None = None
    prefill_threads: int | None = None
    batch_tokens: int = 512
    gpu_layers: int = 0
    cache_type: str = "f16"
    flash_attention: bool | None = None
    loras: tuple[Lora, ...] = ()
    draft: Path | None = None
    lookup: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for numbers below 1."""
        for name in ("slots", "cache_tokens", "queue", "threads", "prefill_threads", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}, expected 1 or more.")


@dataclass(frozen=True)
class AnswerLoss:
    """-log p of an answer, summed over its tokens, the end of the turn included."""

    nats: float
    tokens: int


class Answer:
    """An answer that is being written: iterate over its pieces, or wait for the whole. Any thread may use it."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._end: Completion | BaseException | None = None

    def put(self, event: Event) -> None:
        """Called by the engine."""
        self._events.put(event)

    def __iter__(self) -> Iterator[Piece]:
        """The pieces as they come. Raises what ended the answer, if that was an error."""
        while (piece := self.next()) is not None:
            yield piece

    def next(self, timeout_s: float | None = None) -> Piece | None:
        """The next piece; None at the end. Raises queue.Empty if none came in time, and what ended the answer."""
        if self._end is None:
            event = self._events.get(timeout=timeout_s)
            if isinstance(event, Piece):
                return event
            self._end = event
        if isinstance(self._end, BaseException):
            raise self._end
        return None

    def result(self) -> Completion:
        """Wait for the end."""
        for _ in self:
            pass
        assert isinstance(self._end, Completion)  # noqa: S101 - `next` raised otherwise
        return self._end

    def cancel(self) -> None:
        """End it, also in the middle of a long prompt: the completion comes with what is there."""
        self._cancel()


class Engine:
    """A model ready to answer. Close it, or use it in a `with` block. Any thread may use it."""

    def __init__(self, path: Path, options: EngineOptions | None = None) -> None:
        """Raises ArtifactError for a file that is no usable chat model, ConfigError for sizes that cannot be."""
        options = options or EngineOptions()
        begin_s = time.perf_counter()
        self._closers: list[Callable[[], None]] = []
        try:
            self._load(path, options)
        except BaseException:
            self._free()
            raise
        self.load_s = time.perf_counter() - begin_s
        self._inbox: queue.SimpleQueue[_Work] = queue.SimpleQueue()  # what to do, and whom to tell if it cannot be
        self._lock = threading.Lock()
        self._open = 0  # requests that have not ended
        self._cancelled: list[Task] = []
        self._broken: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="gladstone engine", daemon=True)
        self._thread.start()

    def _load(self, path: Path, options: EngineOptions) -> None:
        self.options = options
        templates = TemplateProcess()  # starts while the model is loaded
        self._closers.append(templates.close)
        self.model = Model(path, gpu_layers=options.gpu_layers, loras=options.loras)
        self._closers.append(self.model.close)
        self.template = load_template(self.model, templates)
        self.context_tokens = _context_size(self.model, options.context_tokens)
        limits = self._limits(options)
        self.context = self._open_context(options, limits)
        self._closers.append(self.context.close)
        self._vocabulary = Vocabulary(self.model, markers_of(self.template.source))
        self._strengths = tuple(lora.scale for lora in options.loras)
        self._runner: BatchRunner | SerialRunner
        self._runner = SerialRunner(self.context) if self.model.has_encoder else BatchRunner(self.context, limits)
        self._drafts = self._load_draft(options)
        self._draft_sequences = list(range(options.slots))
        self._grammars: GrammarCompiler | None = None

    def _open_context(self, options: EngineOptions, limits: Limits) -> Context:
        if self.model.has_encoder:  # by a cache of 16 bit 5 of 288 searches in beams found another answer
            return Context(
                self.model,
                self.context_tokens * BEAM_CONTEXTS,
                batch_tokens=self.context_tokens,
                sequences=MAX_BEAMS,
                threads=options.threads,
                prefill_threads=options.prefill_threads,
                cache_type="f32",
                flash_attention=False,
            )
        return Context(
            self.model,
            limits.cells,
            batch_tokens=options.batch_tokens,
            sequences=limits.sequences,
            threads=options.threads,
            prefill_threads=options.prefill_threads,
            cache_type=options.cache_type,
            flash_attention=options.flash_attention,
        )

    def _limits(self, options: EngineOptions) -> Limits:
        cells = options.cache_tokens or self.context_tokens * options.slots
        if cells < self.context_tokens:
            raise ConfigError(
                f"cache_tokens is {cells:,}, expected the context of {self.context_tokens:,} of a request or more."
            )
        return Limits(
            cells=cells,
            context_tokens=self.context_tokens,
            slots=options.slots,
            sequences=options.slots + KEPT_SEQUENCES,
            batch_tokens=min(max(options.batch_tokens, options.slots), cells),
            queue=options.queue + options.slots,  # whom nobody let in yet wait too
            can_cut=self.model.can_cut,
        )

    def _load_draft(self, options: EngineOptions) -> Context | None:
        if options.draft is None:
            return None
        model = Model(options.draft)
        self._closers.append(model.close)
        check_draft(
            [self.model.token_text(token) for token in range(self.model.vocab_size)],
            [model.token_text(token) for token in range(model.vocab_size)],
        )
        slots = options.slots
        draft = Context(model, self.context_tokens * slots, sequences=slots, threads=options.threads)
        self._closers.append(draft.close)
        return draft

    def close(self) -> None:
        """End what is under way and free everything. Closing twice is harmless."""
        if not self._closing:
            self._closing = True
            self.context.abort()
            self._inbox.put((lambda: None, lambda _error: None))
            self._thread.join()
            self._give_up(UnsupportedError("the engine was closed."))  # what came in the meantime
            self._free()

    def _free(self) -> None:
        while self._closers:
            self._closers.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def prompt_tokens(self, messages: Sequence[Message]) -> list[int]:
        """The turns up to where the answer begins; text of control tokens inside a message stays text."""
        return prompt_tokens(self.model, self.template, messages)

    def submit(self, request: Request, on_event: OnEvent | None = None) -> Answer:
        """Begin an answer. `on_event`, if given, is called by the engine's thread and must be quick; else iterate.

        Raises ContextFullError if the prompt and one token of an answer do not fit the context, QueueFullError if too
        many requests wait, ConfigError for settings that cannot be.
        """
        self.check_room(len(request.tokens), answer_tokens=1)
        adapters = self._strengths if request.adapters is None else request.adapters
        if len(adapters) != len(self._strengths):
            raise ConfigError(f"{len(adapters)} strengths for {len(self._strengths)} adapters.")
        beams = self._beams(request.sampling)
        answer = Answer(lambda: self._cancel(task))
        writer = Writer(self._vocabulary, request, self.context_tokens, self._counted(on_event or answer.put))
        task = Task(writer.tokens, request.priority, adapters)
        writer.prepare(self._constraint(request))
        runner = self._runner
        if isinstance(runner, SerialRunner):
            reply = Reply(task, writer, request.tokens, beams)
            self._enter(lambda: runner.submit(reply), writer.fail)
        else:
            job = WritingJob(writer, task, self._guesser())
            self._enter(lambda: runner.submit(task, job), writer.fail)
        return answer

    def _beams(self, sampling: Sampling) -> Beams | None:
        if not self.model.has_encoder and (sampling.beams > 1 or sampling.no_repeat_ngram):
            raise UnsupportedError(
                f"{self.model.path.name} has no encoder: beams and no_repeat_ngram are for models as T5. "
                "Take a repeat penalty or DRY against repetitions."
            )
        if sampling.beams == 1:
            return None
        return Beams(
            sampling.beams,
            sampling.length_penalty,
            sampling.early_stopping,
            sampling.no_repeat_ngram,
            sampling.repeat_penalty,
        )

    def _constraint(self, request: Request) -> "Constraint | None":
        if request.grammar is None:
            return None
        if request.sampling.beams > 1:
            raise UnsupportedError("a grammar and beams at a time: take one of them.")
        from runtime.grammar import GrammarCompiler

        with self._lock:
            self._grammars = self._grammars or GrammarCompiler(self.model)
        return self._grammars.compile(request.grammar)

    def complete(
        self,
        tokens: list[int],
        sampling: Sampling,
        on_piece: Callable[[Piece], None] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Completion:
        """Continue the tokens and wait. `on_piece` is called by this thread; `cancelled` is asked now and then.

        Raises as `submit` does. Whatever leaves a callback, or Ctrl-C, ends the answer and leaves the engine usable.
        """
        if cancelled():
            self.check_room(len(tokens), answer_tokens=1)
            return Completion("", None, "cancelled", len(tokens), 0, 0, 0, 0.0, 0.0, 0.0, 0.0)
        answer = self.submit(Request(tokens, sampling))
        try:
            while True:
                try:
                    piece = answer.next(POLL_S)
                except queue.Empty:
                    if cancelled():
                        answer.cancel()
                    continue
                if piece is None:
                    return answer.result()
                if on_piece is not None:
                    on_piece(piece)
                if cancelled():
                    answer.cancel()
        except BaseException:
            answer.cancel()
            raise

    def answer_nats(self, messages: Sequence[Message]) -> AnswerLoss:
        """How unexpected the last turn is. Always from an empty cache: the order of calls changes nothing."""
        prompt, answer = scored_tokens(self.model, self.template, messages)
        if not prompt or not answer:
            raise DataError("the chat template renders an empty prompt or an empty answer: nothing can be scored.")
        return self.score(prompt, [answer])[0]

    def score(self, prompt: list[int], continuations: Sequence[list[int]]) -> list[AnswerLoss]:
        """How unexpected each continuation of a prompt is. The prompt is read once, for all of them.

        Always from an empty cache: what was asked before changes nothing. Raises ContextFullError if one does not fit.
        """
        for continuation in continuations:
            self.check_room(len(prompt), answer_tokens=len(continuation))
        if self.model.has_encoder:
            return [self._taught(prompt, continuation) for continuation in continuations]
        group = object()
        losses = [_Loss(continuation, len(prompt) - 1) for continuation in continuations]
        futures = [
            self._read(prompt + loss.continuation[:-1], len(prompt) - 1, loss.consume, group) for loss in losses
        ]
        for future in futures:
            future.result()
        return [AnswerLoss(loss.nats, len(loss.continuation)) for loss in losses]

    def _taught(self, prompt: list[int], answer: list[int]) -> AnswerLoss:
        """The loss of an answer to what an encoder reads."""
        loss, future = _Loss(answer, 0), Future[None]()
        runner = self._runner
        assert isinstance(runner, SerialRunner)  # noqa: S101 - the model has an encoder
        work = Teaching(Task([]), prompt, answer[:-1], loss.consume, self._finishing(future))
        self._enter(lambda: runner.submit(work), work.done)
        future.result()
        return AnswerLoss(loss.nats, len(answer))

    def _finishing(self, future: "Future[None]") -> Callable[[BaseException | None], None]:
        def done(error: BaseException | None) -> None:
            self._left()
            future.set_exception(error) if error else future.set_result(None)

        return done

    def logits(self, tokens: list[int], consume: Callable[[int, npt.NDArray[np.float32]], None]) -> None:
        """Hand the logits of every token to `consume(position, rows)`, rows (N, V) at a time, from an empty cache.

        The rows are a view of llama.cpp's memory that the next ones overwrite; the engine's thread calls.
        """
        self.check_room(len(tokens), answer_tokens=0)
        self._read(tokens, 0, consume, object()).result()

    def run(self, work: Callable[[Context], T]) -> T:
        """Let the engine's thread do something with the context alone, from an empty cache, when nothing else runs."""
        future: Future[T] = Future()

        def alone() -> None:
            if not self._runner.idle:
                self._inbox.put((alone, future.set_exception))
                return
            self._empty()
            try:
                future.set_result(work(self.context))
            except BaseException as error:  # noqa: BLE001 - it goes to who waits
                future.set_exception(error)
            finally:
                self._empty()

        self._post(alone, future.set_exception)
        return future.result()

    def forget(self) -> None:
        """Empty the cache of all that nobody works with: the next prompt is evaluated whole."""
        done: Future[None] = Future()

        def forget() -> None:
            self._runner.forget()
            done.set_result(None)

        self._post(forget, done.set_exception)
        done.result()

    @property
    def evaluated_tokens(self) -> int:
        """Tokens that went through the model since the engine began."""
        return self._runner.evaluated_tokens

    def check_room(self, prompt_tokens: int, answer_tokens: int) -> None:
        """Raises ContextFullError if they do not fit the context, DataError for an empty prompt."""
        if not prompt_tokens:
            raise DataError("the prompt is empty: there is nothing to continue.")
        needed = max(prompt_tokens, answer_tokens) if self.model.has_encoder else prompt_tokens + answer_tokens
        if needed > self.context_tokens:
            raise ContextFullError(
                f"the prompt of {prompt_tokens:,} tokens and at least {answer_tokens:,} for the answer do not fit the "
                f"context of {self.context_tokens:,} tokens. Shorten it, or take a larger context: "
                f"the model was trained for {self.model.context_tokens:,}."
            )

    def _guesser(self) -> Guesser | None:
        if self._drafts is not None:
            return DraftModel(self._drafts, self._draft_sequences)
        return PromptLookup() if self.options.lookup else None

    def _read(
        self, tokens: list[int], first: int, consume: Callable[[int, npt.NDArray[np.float32]], None], group: object
    ) -> "Future[None]":
        """Outputs from the position `first` on."""
        runner = self._runner
        if isinstance(runner, SerialRunner):
            raise UnsupportedError(f"{self.model.path.name} has an encoder: its decoder reads no text of its own.")
        future: Future[None] = Future()
        task = Task(tokens, 0, self._strengths, outputs_from=first, group=group)
        job = ReadingJob(task, consume, self._finishing(future))
        self._enter(lambda: runner.submit(task, job), job.fail)
        return future

    def _counted(self, on_event: OnEvent) -> OnEvent:
        def tell(event: Event) -> None:
            if not isinstance(event, Piece):
                self._left()
            on_event(event)

        return tell

    def _left(self) -> None:
        with self._lock:
            self._open -= 1

    def _enter(self, submit: Callable[[], None], fail: Callable[[BaseException], None]) -> None:
        with self._lock:
            if self._open >= self.options.slots + self.options.queue:
                raise QueueFullError(f"{self._open:,} requests are under way or wait already: ask again later.")
            self._open += 1

        self._post(submit, fail)

    def _post(self, work: Callable[[], None], fail: Callable[[BaseException], None]) -> None:
        if self._broken is not None:
            raise self._broken
        if self._closing:
            raise UnsupportedError("the engine is closed.")
        self._inbox.put((work, fail))

    def _cancel(self, task: Task) -> None:
        self._cancelled.append(task)
        self._inbox.put((lambda: self._cancel_now(task), lambda _error: None))
        self._runner.interrupt(self._cancelled)

    def _cancel_now(self, task: Task) -> None:
        self._cancelled.remove(task)
        self._runner.cancel(task)

    def _serve(self) -> None:
        """The engine's thread: take in what was asked, evaluate a step, and so on."""
        try:
            while not self._closing:
                self._take_in()
                self._runner.step()
            self._give_up(UnsupportedError("the engine was closed."))
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            self._broken = error
            self._give_up(error)

    def _take_in(self) -> None:
        wait = self._runner.idle
        while not self._closing:
            try:
                work, _fail = self._inbox.get(block=wait)
            except queue.Empty:
                return
            work()
            wait = False

    def _give_up(self, error: BaseException) -> None:
        self._runner.fail_all(error)
        while not self._inbox.empty():
            _work, fail = self._inbox.get()
            fail(error)

    def _empty(self) -> None:
        self._runner.forget()
        self.context.clear()


class _Loss:
    """Adds up -log p of a continuation whose first token is predicted at position `first`."""

    def __init__(self, continuation: list[int], first: int) -> None:
        self.continuation, self._first = continuation, first
        self.nats = 0.0

    def consume(self, position: int, rows: npt.NDArray[np.float32]) -> None:
        begin = position - self._first
        wanted = self.continuation[begin : begin + len(rows)]
        self.nats -= float(log_softmax(rows)[np.arange(len(wanted)), wanted].sum())


def _context_size(model: Model, asked: int | None) -> int:
    trained = model.context_tokens
    if asked is None:
        return min(trained, CHAT_CONTEXT_TOKENS)
    if not 1 <= asked <= trained:
        raise ConfigError(
            f"a context of {asked:,} tokens: expected 1 to {trained:,}, which {model.path.name} was trained for."
        )
    return asked
