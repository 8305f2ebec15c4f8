"""Load a model for an engine: fit it to the machine, open its context, choose its threads and its runner."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gladstone.chat.guarded_template import GuardedTemplate, TemplateProcess
from gladstone.chat.named_templates import NamedTemplate
from gladstone.errors import ConfigError, UnsupportedError
from gladstone.gguf.header import GgufHeader, read_generative_model, summarize_model
from gladstone.llamacpp.backends import backend_id
from gladstone.llamacpp.context import Context
from gladstone.llamacpp.lora import Lora
from gladstone.llamacpp.model import Model
from gladstone.machine.thread_tuner import InitialThreads, KeepInitial, make_thread_tuner
from runtime.machine.fit import Fit, FitConstraints, plan_fit, read_machine
from runtime.machine.memory_model import has_encoder
from runtime.machine.threads import PREFILL_TOKENS, ThreadBenchmark, Threads, choose_threads, discard_threads
from runtime.sampling.sampler import MAX_BEAMS
from runtime.sampling.speculative import MAX_DRAFT_TOKENS, check_draft
from runtime.scheduling.batch_runner import BatchRunner
from runtime.scheduling.encoder_decoder_runner import SCORED_AT_ONCE, EncoderDecoderRunner
from runtime.scheduling.jobs import Runner
from runtime.scheduling.sequences import Limits
from runtime.text.prompt import check_template, load_template
from runtime.trust.provenance import Provenance, verify

CACHED_SEQUENCES = 3  # earlier conversations whose prefixes stay cached, besides those of running requests
BEAM_CONTEXTS = 4  # cells for the answers of all beams, in contexts
BEAM_CACHE_TYPE = "f32"  # with a 16-bit cache 5 of 288 beam searches found another answer


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is set up.

    The context of a request defaults to what the model was trained for, at most 4,096 tokens. `slots` requests run at a
    time and share a cache of `cache_tokens`, by default enough for all of them. `kv_offload` False keeps it in memory
    where layers are on a GPU. `mmap` maps the file of weights instead of copying it. Unset sizes are fitted to the free
    memory; unset thread counts are measured, and adapt to other work on the machine. `steady` keeps the first decode
    count where another would change the last bits of the logits (llama.cpp's flash attention, after 256 tokens).
    `loras` are adapters with their scales. Draft tokens come from a `draft` model or, with `lookup`, from the text.

    `chat_template` replaces the file's own; `template_arguments` are its variables, as JSON values. `raw` opens the
    engine without a template, for text that is continued as it is.
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
    kv_offload: bool = True
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
        """Most rows of logits in a batch: those that are scored, and those of each slot's token and draft."""
        return SCORED_AT_ONCE + self.slots * (1 + MAX_DRAFT_TOKENS)


@dataclass(frozen=True)
class Loaded:
    """A loaded model with what an engine needs; closing `stack` frees all of it."""

    stack: ExitStack
    model: Model
    template: GuardedTemplate | None  # None with EngineOptions.raw
    context: Context
    limits: Limits
    fit: Fit
    draft: Context | None
    provenance: Provenance


def load(path: Path, options: EngineOptions) -> Loaded:
    """Load a model. A file that no manifest lists is first checked in a child process.

    Raises ArtifactError for a file that is not a usable chat model, ConfigError for sizes out of range.
    """
    with ExitStack() as stack:
        templates = None if options.raw else TemplateProcess()  # starts while the model is loaded
        if templates is not None:
            stack.callback(templates.close)
        headers = read_generative_model(path)
        provenance = verify(path)
        if not options.raw and options.chat_template is None:
            check_template(headers)
        fit = plan_fit(headers, read_machine(), _fit_constraints(headers, options))
        model = Model(path, **fit.placement, loras=options.loras, headers=headers)
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


def _fit_constraints(headers: Sequence[GgufHeader], options: EngineOptions) -> FitConstraints:
    """What the options require of the fit. Raises ConfigError for a context that the model was not trained for."""
    asked, trained = options.context_tokens, summarize_model(headers).context_tokens
    if asked is not None and not 1 <= asked <= trained:
        raise ConfigError(
            f"a context of {asked:,} tokens: expected 1 to {trained:,}, which {headers[0].path.name} was trained for."
        )
    others = [lora.path for lora in options.loras] + ([options.draft] if options.draft else [])
    searches = has_encoder(headers)
    return FitConstraints(
        gpu_layers=options.gpu_layers,
        context_tokens=options.cache_tokens or (asked * options.slots if asked else None),
        batch_tokens=options.batch_tokens,
        kv_types=(BEAM_CACHE_TYPE if searches and options.cache_type == "f16" else options.cache_type,),
        cache_contexts=BEAM_CONTEXTS if searches else 1,
        flash_attention=options.flash_attention is not False,
        sequences=options.slots,
        outputs=options.outputs,
        kv_offload=options.kv_offload,
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
        sequences=options.slots + CACHED_SEQUENCES,
        batch_tokens=min(max(fit.batch_tokens, options.slots), cells),
        outputs=SCORED_AT_ONCE,
        queue=options.queue + options.slots,  # those that start next wait there too
        can_truncate=model.can_truncate,
    )


def plan_context(headers: Sequence[GgufHeader], options: EngineOptions) -> int:
    """The context, in tokens, that a request gets if the model is loaded with these options on this machine.

    Raises ConfigError for a context out of range, UnsupportedError if there is not enough memory.
    """
    fit = plan_fit(headers, read_machine(), _fit_constraints(headers, options))
    return options.context_tokens or min(summarize_model(headers).context_tokens, fit.context_tokens // options.slots)


def _open_context(model: Model, limits: Limits, options: EngineOptions) -> Context:
    if model.has_encoder:
        return Context(
            model,
            limits.context_tokens * BEAM_CONTEXTS,
            batch_tokens=limits.context_tokens,
            sequences=MAX_BEAMS,
            threads=options.threads,
            prefill_threads=options.prefill_threads,
            cache_type=BEAM_CACHE_TYPE,
            flash_attention=False,
            kv_offload=options.kv_offload,
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
        kv_offload=options.kv_offload,
        outputs=options.outputs,
    )


def open_runner(loaded: Loaded) -> Runner:
    """The runner for the kind of model that was loaded."""
    if loaded.model.has_encoder:
        return EncoderDecoderRunner(loaded.context)
    return BatchRunner(loaded.context, loaded.limits)


def choose_engine_threads(context: Context, options: EngineOptions) -> Threads:
    """Choose the thread counts of a context by measurement, unless the options set them, and let them adapt later.

    Call it from the thread that will compute: OpenMP gives every calling thread its own workers, and more workers than
    CPUs slow each other down.
    """
    if options.threads is not None:
        return Threads(options.threads, options.prefill_threads or options.threads)

    def evaluate(tokens: int) -> None:
        if context.model.has_encoder:
            context.encode([context.model.eos] * tokens)
        else:
            context.decode([0] * tokens, 0)
            context.logits()  # waits for the evaluation
            context.clear()

    prompt_tokens = min(PREFILL_TOKENS, context.batch_tokens)
    benchmark = ThreadBenchmark(context.use_threads, lambda: evaluate(1), lambda: evaluate(prompt_tokens))
    model = context.model
    threads = choose_threads(summarize_model(model.headers), backend_id(model.gpu_layers), benchmark)
    held: KeepInitial = "always" if options.steady else "quiet" if threads.steady else "never"
    context.adapt(make_thread_tuner(InitialThreads(threads.decode, threads.prefill, held)))
    return threads


def discard_disproved_threads(context: Context) -> None:
    """Discard the stored thread count if a quiet machine showed a better one since."""
    if context.thread_tuner is not None and context.thread_tuner.better_count is not None:
        discard_threads(summarize_model(context.model.headers), backend_id(context.model.gpu_layers))


def _load_draft(model: Model, fit: Fit, limits: Limits, options: EngineOptions, stack: ExitStack) -> Context | None:
    """The context of the draft model. Raises ConfigError if its vocabulary differs from the model's."""
    if options.draft is None:
        return None
    draft = Model(options.draft, **_fit_draft(options.draft, fit, limits, options))
    stack.callback(draft.close)
    check_draft(*([one.token_text(token) for token in range(one.vocab_size)] for one in (model, draft)))
    context = Context(draft, limits.cells, sequences=options.slots, threads=options.threads)
    stack.callback(context.close)
    return context


def _fit_draft(path: Path, fit: Fit, limits: Limits, options: EngineOptions) -> dict[str, Any]:
    """Where the draft model lies: on a GPU if the model does and has left room for all of it, else in memory."""
    in_memory = {"mapped": fit.mapped}
    if not fit.gpu_layers:
        return in_memory
    headers = read_generative_model(path)
    trained = summarize_model(headers).context_tokens * options.slots
    constraints = FitConstraints(context_tokens=min(limits.cells, trained), sequences=options.slots)
    try:
        own = plan_fit(headers, read_machine(), constraints)
    except UnsupportedError:
        return in_memory
    return own.placement if own.gpu_layers == own.all_layers else in_memory
