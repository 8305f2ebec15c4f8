"""From a file and options to a model that is ready: fitted to the machine, its context open, its threads measured."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gladstone.chat.guarded_template import GuardedTemplate, TemplateProcess
from gladstone.chat.named_templates import NamedTemplate
from gladstone.errors import ConfigError
from gladstone.gguf.header import GgufHeader, info_of, read_writer
from gladstone.llamacpp.backends import backend_mark
from gladstone.llamacpp.context import Context
from gladstone.llamacpp.lora import Lora
from gladstone.llamacpp.model import Model
from gladstone.machine.thread_tuner import InitialThreads, KeepInitial, make_thread_tuner
from runtime.machine.fit import Fit, Wishes, plan_fit, read_machine
from runtime.machine.threads import PREFILL_TOKENS, Threads, Trial, choose_threads, forget_threads
from runtime.sampling.sampler import MAX_BEAMS
from runtime.sampling.speculative import MAX_DRAFT_TOKENS, check_draft
from runtime.scheduling.batch_runner import BatchRunner
from runtime.scheduling.encoder_decoder_runner import SCORED_AT_ONCE, EncoderDecoderRunner
from runtime.scheduling.jobs import Runner
from runtime.scheduling.sequences import Limits
from runtime.text.prompt import check_template, load_template
from runtime.trust.provenance import Provenance, verify

KEPT_SEQUENCES = 3  # earlier conversations that can be taken up again, beside those at work
BEAM_CONTEXTS = 4  # room for the answers of several beams, in contexts


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is set up.

    The context of each request is as large as the model was trained for, but 4,096 tokens unless more is asked for.
    `slots` requests are at work at a time and share `cache_tokens`, by default enough for all of them. `mmap` maps the
    weights' file, in place of a copy in memory. What is not said is fitted to the memory that is free; threads are
    measured, and follow what else the machine does. `steady` keeps the number that single tokens begin with where
    another changes the last bits (llama.cpp's flash attention, behind 256 tokens). Adapters can be laid over the model.
    Guesses come from a `draft` model, or with `lookup` from the text.

    `chat_template` takes the place of the file's own; `template_arguments` are JSON values that it reads by name. With
    `raw` there is no template: texts are continued as they are.
    """

    context_tokens: int | None = None
    slots: int = 1
    cache_tokens: int | None = None
    queue: int = 1024
    threads: int | None = None
    prefill_threads: int | None = None
    batch_tokens: int | None = None
    gpu_layers: int | Literal["auto"] = "auto"
    cache_type: str = "f16"
    flash_attention: bool | None = None
    mmap: bool | None = None
    loras: tuple[Lora, ...] = ()
    draft: Path | None = None
    lookup: bool = False
    steady: bool = False
    chat_template: NamedTemplate | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    raw: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for numbers below 1."""
        for name in ("slots", "cache_tokens", "queue", "threads", "prefill_threads", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}, expected 1 or more.")

    @property
    def outputs(self) -> int:
        """Tokens of a batch whose logits may be wanted: what is scored, and what each slot writes and guesses."""
        return SCORED_AT_ONCE + self.slots * (1 + MAX_DRAFT_TOKENS)


@dataclass(frozen=True)
class Loaded:
    """A model with all that answers need of it; `stack` frees it."""

    stack: ExitStack
    model: Model
    template: GuardedTemplate | None  # None with EngineOptions.raw
    context: Context
    limits: Limits
    fit: Fit
    draft: Context | None
    provenance: Provenance


def load(path: Path, options: EngineOptions) -> Loaded:
    """Raises ArtifactError for a file that is no usable chat model, ConfigError for sizes that cannot be.

    A file that its manifest does not vouch for is first tried in a child process.
    """
    with ExitStack() as stack:
        templates = None if options.raw else TemplateProcess()  # starts while the model is loaded
        if templates is not None:
            stack.callback(templates.close)
        headers = read_writer(path)
        provenance = verify(path)
        if not options.raw and options.chat_template is None:
            check_template(headers)
        fit = plan_fit(headers, read_machine(), _wishes(headers, options))
        model = Model(
            path,
            mapped=fit.mapped,
            gpu_layers=fit.gpu_layers,
            tensor_split=fit.tensor_split,
            loras=options.loras,
            headers=headers,
        )
        stack.callback(model.close)
        template = _open_template(model, templates, options)
        limits = _limits(model, fit, options)
        context = _open_context(model, limits, options)
        stack.callback(context.close)
        draft = _load_draft(model, fit, limits, options, stack)
        return Loaded(stack.pop_all(), model, template, context, limits, fit, draft, provenance)


def _open_template(model: Model, process: TemplateProcess | None, options: EngineOptions) -> GuardedTemplate | None:
    if process is None:
        return None
    template = load_template(model, process, options.chat_template)
    template.set_arguments(options.template_arguments)
    return template


def _wishes(headers: Sequence[GgufHeader], options: EngineOptions) -> Wishes:
    """What the options ask of the machine. Raises ConfigError for a context that the model was not trained for."""
    asked, trained = options.context_tokens, info_of(headers).context_tokens
    if asked is not None and not 1 <= asked <= trained:
        raise ConfigError(
            f"a context of {asked:,} tokens: expected 1 to {trained:,}, which {headers[0].path.name} was trained for."
        )
    others = [lora.path for lora in options.loras] + ([options.draft] if options.draft else [])
    return Wishes(
        gpu_layers=options.gpu_layers,
        context_tokens=options.cache_tokens or (asked * options.slots if asked else None),
        batch_tokens=options.batch_tokens,
        kv_types=(options.cache_type,),
        flash_attention=options.flash_attention is not False,
        sequences=options.slots,
        outputs=options.outputs,
        reserved_bytes=sum(path.stat().st_size for path in others if path.is_file()),
        mapped=options.mmap,
    )


def _limits(model: Model, fit: Fit, options: EngineOptions) -> Limits:
    context_tokens = options.context_tokens or min(model.context_tokens, fit.context_tokens // options.slots)
    cells = options.cache_tokens or context_tokens * options.slots
    if cells < context_tokens:
        raise ConfigError(
            f"cache_tokens is {cells:,}, expected the context of {context_tokens:,} of a request or more."
        )
    return Limits(
        cells=cells,
        context_tokens=context_tokens,
        slots=options.slots,
        sequences=options.slots + KEPT_SEQUENCES,
        batch_tokens=min(max(fit.batch_tokens, options.slots), cells),
        outputs=SCORED_AT_ONCE,
        queue=options.queue + options.slots,  # those that start next wait there too
        can_truncate=model.can_truncate,
    )


def plan_context(headers: Sequence[GgufHeader], options: EngineOptions) -> int:
    """The context that a request gets where the model is loaded with these options on this machine as it is.

    Raises ConfigError for one that cannot be, UnsupportedError if memory is too small.
    """
    fit = plan_fit(headers, read_machine(), _wishes(headers, options))
    return options.context_tokens or min(info_of(headers).context_tokens, fit.context_tokens // options.slots)


def _open_context(model: Model, limits: Limits, options: EngineOptions) -> Context:
    if model.has_encoder:  # with a cache of 16 bit 5 of 288 searches in beams found another answer
        return Context(
            model,
            limits.context_tokens * BEAM_CONTEXTS,
            batch_tokens=limits.context_tokens,
            sequences=MAX_BEAMS,
            threads=options.threads,
            prefill_threads=options.prefill_threads,
            cache_type="f32",
            flash_attention=False,
        )
    return Context(
        model,
        limits.cells,
        batch_tokens=limits.batch_tokens,
        sequences=limits.sequences,
        threads=options.threads,
        prefill_threads=options.prefill_threads,
        cache_type=options.cache_type,
        flash_attention=options.flash_attention,
        outputs=options.outputs,
    )


def open_runner(loaded: Loaded) -> Runner:
    """What evaluates requests, for the kind of the model."""
    if loaded.model.has_encoder:
        return EncoderDecoderRunner(loaded.context)
    return BatchRunner(loaded.context, loaded.limits)


def choose_engine_threads(context: Context, options: EngineOptions) -> Threads:
    """Measure them, unless the options say them, and let them follow what is seen later.

    To be called by the thread that will compute.

    OpenMP gives each thread that computes workers of its own, and slows all of them once they are more than processors.
    """
    if options.threads is not None:
        return Threads(options.threads, options.prefill_threads or options.threads)

    def evaluate(tokens: int) -> None:
        if context.model.has_encoder:
            context.encode([context.model.eos] * tokens)
        else:
            context.decode([0] * tokens, 0)
            context.logits()  # waits for the end
            context.clear()

    prompt_tokens = min(PREFILL_TOKENS, context.batch_tokens)
    trial = Trial(context.use_threads, lambda: evaluate(1), lambda: evaluate(prompt_tokens))
    threads = choose_threads(info_of(context.model.headers), backend_mark(), trial)
    held: KeepInitial = "always" if options.steady else "quiet" if threads.steady else "never"
    context.adapt(make_thread_tuner(InitialThreads(threads.decode, threads.prefill, held)))
    return threads


def doubt_engine_threads(context: Context) -> None:
    """Forget the remembered number if a better one was found since, on a quiet machine."""
    if context.thread_tuner is not None and context.thread_tuner.better_count is not None:
        forget_threads(info_of(context.model.headers), backend_mark())


def _load_draft(model: Model, fit: Fit, limits: Limits, options: EngineOptions, stack: ExitStack) -> Context | None:
    """The context of the model that guesses. Raises ConfigError if its vocabulary is another one."""
    if options.draft is None:
        return None
    draft = Model(options.draft, mapped=fit.mapped)
    stack.callback(draft.close)
    check_draft(*([each.token_text(token) for token in range(each.vocab_size)] for each in (model, draft)))
    context = Context(draft, limits.cells, sequences=options.slots, threads=options.threads)
    stack.callback(context.close)
    return context
