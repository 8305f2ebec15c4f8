"""Fit a model to the machine: layers on the GPU, context, batch and cache type for the memory that is free.

Preferences, in this order: the requested context, the first cache type, all layers on a GPU, a full batch. What the
user set is kept, or refused with an error; unset sizes shrink only as far as they must, and the reason reports it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from gladstone.chat.messages import CHAT_CONTEXT_TOKENS
from gladstone.errors import ConfigError, UnsupportedError
from gladstone.gguf.header import GgufHeader
from gladstone.llamacpp.context import CACHE_TYPES
from gladstone.machine.host import available_memory_bytes, mapped_file_bytes
from gladstone.machine.huge_pages import has_huge_pages
from runtime.machine.memory_model import (
    BLOCKS,
    CELLS,
    ContextSettings,
    MemoryModel,
    buffer_bytes,
    cache_bytes,
    input_bytes,
    read_memory_model,
)

if TYPE_CHECKING:
    from gladstone.llamacpp.devices import Device

BATCHES = (512, 256, 128)  # above 512 prefill gains little; below 128 it loses a lot
LEAST_CONTEXT_TOKENS = 512
# besides what llama.cpp logs: the driver's context, the matrix library's workspace, conversions of quantised weights
GPU_MARGIN_BYTES = 512 << 20
MEMORY_MARGIN_BYTES = 128 << 20  # Python's own growth, threads' stacks, llama.cpp's graph


@dataclass(frozen=True)
class Gpu:
    """A device for layers. `shares_memory` is True if it uses the memory of the CPU, as integrated graphics do.

    `name` is for the user, `device` is llama.cpp's name: several GPUs of one kind differ only in the latter.
    """

    name: str
    free_bytes: int
    total_bytes: int
    shares_memory: bool = False
    device: str = ""


@dataclass(frozen=True)
class Machine:
    """Free memory of the CPU and of each GPU, in llama.cpp's order."""

    memory_bytes: int
    gpus: tuple[Gpu, ...] = ()
    huge_pages: bool = False


@dataclass(frozen=True)
class FitConstraints:
    """What the fit must respect; None and "auto" leave a size to the fit.

    `context_tokens` is for all sequences together. `kv_types` are in order of preference; no other type is used.
    `outputs` is the number of tokens of a batch whose logits may be read, by default all. `reserved_bytes` stay free in
    memory and on each GPU, for a model that is loaded later. `mapped` weights are mapped from their file; else they are
    copied, by default if they get huge pages and leave half of the memory free.
    """

    gpu_layers: int | Literal["auto"] = "auto"
    context_tokens: int | None = None
    batch_tokens: int | None = None
    kv_types: tuple[str, ...] = ("f16",)
    flash_attention: bool = True
    sequences: int = 1
    outputs: int | None = None
    unified: bool = True
    full_window: bool = True
    kv_offload: bool = True
    cache_contexts: int = 1
    reserved_bytes: int = 0
    mapped: bool | None = None


@dataclass(frozen=True)
class DeviceMemory:
    """What a device will hold, margin included, and its free memory."""

    name: str
    layers: int
    needed_bytes: int
    free_bytes: int
    device: str = ""


@dataclass(frozen=True)
class Fit:
    """How to load a model and make its context.

    `gpu_layers` and `all_layers` count the output as a layer, as llama.cpp does; `tensor_split` is the number of layers
    on each GPU. `devices` lists the CPU's memory first, then every GPU. `reason` is one line for the user.
    """

    gpu_layers: int
    all_layers: int
    settings: ContextSettings
    tensor_split: tuple[int, ...]
    devices: tuple[DeviceMemory, ...]
    cache_bytes: int
    mapped: bool = True
    reason: str = ""

    @property
    def placement(self) -> dict[str, Any]:
        """Arguments of `Model` that place the weights so; a GPU without layers is not used."""
        used = [share for share in self.devices[1:] if share.layers]
        return {
            "mapped": self.mapped,
            "gpu_layers": self.gpu_layers,
            "tensor_split": tuple(share.layers for share in used),
            "devices": tuple(share.device for share in used),
        }

    @property
    def context_tokens(self) -> int:
        return self.settings.context_tokens

    @property
    def batch_tokens(self) -> int:
        return self.settings.batch_tokens

    @property
    def kv_type(self) -> str:
        return self.settings.kv_type

    @property
    def flash_attention(self) -> bool:
        return self.settings.flash_attention


def read_machine() -> Machine:
    """Free memory at this moment, without the pages of files that this process maps, such as a model's weights.

    The system counts those pages as free, since it could drop them; but a loaded model reads them for each token.
    """
    from gladstone.llamacpp.devices import layer_devices, read_devices

    gpus = tuple(
        Gpu(device.description, device.free_bytes, device.total_bytes, _shares_memory(device), device.name)
        for device in layer_devices(read_devices())
    )
    return Machine(max(0, available_memory_bytes() - mapped_file_bytes()), gpus, has_huge_pages())


def _shares_memory(device: "Device") -> bool:
    """True for integrated graphics, and for Apple's (MTL0), which llama.cpp lists as a GPU."""
    return device.kind == "igpu" or device.name.startswith("MTL")


def plan_fit(headers: Sequence[GgufHeader], machine: Machine, constraints: FitConstraints) -> Fit:
    """The best fit. Raises ConfigError for constraints out of range, UnsupportedError if memory is too small."""
    model = read_memory_model(headers)
    _check(model, machine, constraints)
    machine = _reserve(machine, constraints.reserved_bytes)
    for settings in _candidate_settings(model, constraints):
        fit = _best_layers(model, machine, settings, constraints)
        if fit is not None:
            fit = replace(fit, mapped=_should_map(fit, machine, constraints))
            return replace(fit, reason=_reason(fit, model, machine, constraints))
    raise _refusal(model, machine, constraints)


def _candidate_settings(model: MemoryModel, constraints: FitConstraints) -> Iterator[ContextSettings]:
    """Contexts and cache types to try, the best first, with a full batch."""
    for context in _contexts(model, constraints):
        for kv_type in constraints.kv_types:
            batch = context if model.has_encoder else min(constraints.batch_tokens or BATCHES[0], context)
            yield ContextSettings(
                context_tokens=context,
                batch_tokens=batch,
                sequences=constraints.sequences,
                outputs=constraints.outputs or batch,
                kv_type=kv_type,
                flash_attention=constraints.flash_attention,
                # with an encoder, a separate cache for each sequence makes llama.cpp abort
                unified=constraints.unified or (model.has_encoder and constraints.sequences > 1),
                full_window=constraints.full_window,
                kv_offload=constraints.kv_offload,
                cache_contexts=constraints.cache_contexts,
            )


def _contexts(model: MemoryModel, constraints: FitConstraints) -> list[int]:
    if constraints.context_tokens is not None:
        return [constraints.context_tokens]
    context = min(model.trained_tokens, CHAT_CONTEXT_TOKENS) * constraints.sequences
    smaller = [context]
    while context > LEAST_CONTEXT_TOKENS * constraints.sequences:
        context = max(LEAST_CONTEXT_TOKENS * constraints.sequences, context // 2 // CELLS * CELLS)
        smaller.append(context)
    return smaller


def _best_layers(
    model: MemoryModel, machine: Machine, settings: ContextSettings, constraints: FitConstraints
) -> Fit | None:
    """The fit with most layers on GPUs; a smaller batch only if all layers fit with it, or nothing fits without."""
    batches = [settings.batch_tokens]
    if constraints.batch_tokens is None and not model.has_encoder:
        batches += [batch for batch in BATCHES if batch < settings.batch_tokens]
    all_layers = len(model.layers) + 1 if machine.gpus else 0
    asked = all_layers if constraints.gpu_layers == "auto" else min(constraints.gpu_layers, all_layers)
    least = 0 if constraints.gpu_layers == "auto" else asked
    trials = [(asked, batch) for batch in batches]
    trials += [(count, batch) for batch in batches for count in range(asked - 1, least - 1, -1)]
    fits = (_place_layers(model, machine, replace(settings, batch_tokens=batch), count) for count, batch in trials)
    return next((fit for fit in fits if fit is not None), None)


def _place_layers(model: MemoryModel, machine: Machine, settings: ContextSettings, gpu_layers: int) -> Fit | None:
    """Place the last `gpu_layers` layers on the GPUs, one GPU after the other; None if there is not enough memory."""
    caches = [cache_bytes(layer, settings) for layer in model.layers]
    beside = caches if settings.kv_offload else [0] * len(caches)  # on the device of the layer
    weights = [layer.weight_bytes for layer in model.layers]
    sizes = [weight + cache for weight, cache in zip(weights, beside, strict=True)] + [model.output_bytes]
    first = len(sizes) - gpu_layers
    buffers = buffer_bytes(model, settings)
    # for a long prompt llama.cpp copies the weights of layers in CPU memory to the GPU, one tensor at a time
    lent = 2 * model.largest_bytes if first > 0 else 0
    lent += (
        3 * input_bytes(model, settings) if len(machine.gpus) > 1 else 0
    )  # batches follow each other through the GPUs
    devices, counts, shared_bytes = [], [], 0
    at = first
    for gpu in machine.gpus:
        needed, count = buffers + lent + GPU_MARGIN_BYTES, 0
        while at < len(sizes) and needed + sizes[at] <= gpu.free_bytes:
            needed, at, count = needed + sizes[at], at + 1, count + 1
        counts.append(count)
        devices.append(DeviceMemory(gpu.name, count, needed if count else 0, gpu.free_bytes, gpu.device))
        shared_bytes += needed if count and gpu.shares_memory else 0
    if at < len(sizes):
        return None
    memory = _memory_bytes(model, sizes, first) + sum(caches) - sum(beside) + buffers + MEMORY_MARGIN_BYTES
    if memory + shared_bytes > machine.memory_bytes:
        return None
    own = DeviceMemory("memory", first, memory, machine.memory_bytes - shared_bytes)
    return Fit(gpu_layers, len(sizes), settings, tuple(counts), (own, *devices), sum(caches))


def _memory_bytes(model: MemoryModel, sizes: Sequence[int], first: int) -> int:
    """Bytes of weights and cache in CPU memory: the layers before `first`, and the embedding, which is on no GPU."""
    held = model.input_bytes + sum(sizes[:first])
    output_here = first == len(sizes)
    return held - (model.embedding_bytes if output_here and model.shares_embedding else 0)


def _should_map(fit: Fit, machine: Machine, constraints: FitConstraints) -> bool:
    """Whether to map the weights. Copies are faster, but the system cannot drop them, so half of memory stays free."""
    if constraints.mapped is not None:
        return constraints.mapped
    return not machine.huge_pages or fit.gpu_layers > 0 or 2 * fit.devices[0].needed_bytes > machine.memory_bytes


def _reserve(machine: Machine, reserved_bytes: int) -> Machine:
    gpus = (replace(gpu, free_bytes=max(0, gpu.free_bytes - reserved_bytes)) for gpu in machine.gpus)
    return replace(machine, memory_bytes=max(0, machine.memory_bytes - reserved_bytes), gpus=tuple(gpus))


def _check(model: MemoryModel, machine: Machine, constraints: FitConstraints) -> None:
    """Raises ConfigError or UnsupportedError for constraints that no amount of memory can meet."""
    if constraints.sequences < 1 or constraints.reserved_bytes < 0 or (constraints.batch_tokens or 1) < 1:
        raise ConfigError("sequences and batch must be 1 or more, and the reserved memory 0 bytes or more.")
    most = model.trained_tokens * constraints.sequences
    if constraints.context_tokens is not None and not 1 <= constraints.context_tokens <= most:
        raise ConfigError(f"a context of {constraints.context_tokens:,} tokens: expected 1 to {most:,}.")
    for kv_type in constraints.kv_types or ("none",):
        if kv_type not in CACHE_TYPES:
            raise ConfigError(f"cache type {kv_type!r}: expected one of {', '.join(CACHE_TYPES)}.")
        _check_kv_type(model, kv_type, constraints)
    if constraints.gpu_layers == "auto":
        return
    if constraints.gpu_layers < 0:
        raise ConfigError(f"{constraints.gpu_layers} GPU layers: expected 0 or more, or auto.")
    if constraints.gpu_layers and not machine.gpus:
        raise UnsupportedError(
            f"{constraints.gpu_layers} GPU layers: llama.cpp sees no GPU here. `runtime doctor` names the build "
            "that this machine needs."
        )


def _check_kv_type(model: MemoryModel, kv_type: str, constraints: FitConstraints) -> None:
    """Raises UnsupportedError for a cache type that makes llama.cpp refuse the context or abort."""
    block = BLOCKS[kv_type][0]
    if block == 1:
        return
    if not constraints.flash_attention or model.has_encoder:
        why = "models with an encoder have none" if model.has_encoder else "flash attention is off"
        raise UnsupportedError(f"a cache of type {kv_type} needs flash attention, and {why}. Take f16.")
    widths = {width for layer in model.layers for width in (layer.key_head_width, layer.value_head_width)}
    odd = sorted(width for width in widths if width % block)
    if odd:
        raise UnsupportedError(
            f"a cache of type {kv_type} has blocks of {block} values, and this model's heads have {odd[0]}. Take f16."
        )


def _refusal(model: MemoryModel, machine: Machine, constraints: FitConstraints) -> UnsupportedError:
    """The error for a model that does not fit: what it needs, what is free, and what would fit."""
    smallest = list(_candidate_settings(model, constraints))[-1]
    if constraints.batch_tokens is None and not model.has_encoder:
        smallest = replace(smallest, batch_tokens=min(BATCHES[-1], smallest.batch_tokens))
    cached = sum(cache_bytes(layer, smallest) for layer in model.layers)
    buffers = buffer_bytes(model, smallest)
    free = ", ".join(f"{_gb(gpu.free_bytes)} on {gpu.name}" for gpu in machine.gpus)
    layers = "" if constraints.gpu_layers == "auto" else f"{constraints.gpu_layers} GPU layers and "
    even = "" if constraints.context_tokens else "even "
    return UnsupportedError(
        f"not enough memory for {layers}{even}a context of {smallest.context_tokens:,} tokens: weights "
        f"{_gb(model.weight_bytes)}, {smallest.kv_type} cache {_gb(cached)}, buffers at most {_gb(buffers)}; free: "
        f"{_gb(machine.memory_bytes)}{f' and {free}' if free else ''}. {_instead(model, machine, constraints)}"
    )


def _instead(model: MemoryModel, machine: Machine, constraints: FitConstraints) -> str:
    """What of this model would fit; if nothing, what to do."""
    free_layers = replace(constraints, gpu_layers="auto")
    looser = [free_layers] if constraints.gpu_layers != "auto" else []
    looser.append(replace(free_layers, context_tokens=None, batch_tokens=None))
    smallest = replace(looser[-1], sequences=1, outputs=None)
    if constraints.sequences > 1:
        looser.append(smallest)
    for relaxed in looser:
        for settings in _candidate_settings(model, relaxed):
            fit = _best_layers(model, machine, settings, relaxed)
            if fit is not None:
                many = f", {relaxed.sequences} sequences" if constraints.sequences > 1 else ""
                layers = f"{fit.gpu_layers} of {fit.all_layers} GPU layers and " if machine.gpus else ""
                return f"What fits: {layers}a context of {settings.context_tokens:,} tokens{many}."
    return "No context of this model fits: use a smaller quantisation, or free some memory."


def _reason(fit: Fit, model: MemoryModel, machine: Machine, constraints: FitConstraints) -> str:
    """The fit in one line."""
    own, *gpus = fit.devices
    on = ", ".join(_filled(share) for share in gpus if share.layers)
    if not machine.gpus:
        layers = f"no GPU backend ({_of(own)} free)"
    elif on:
        layers = f"gpu layers {fit.gpu_layers} of {fit.all_layers} ({on})"
    else:
        layers = f"gpu layers 0 of {fit.all_layers} ({_of(own)} free in memory)"
    where = " in memory" if on and not fit.settings.kv_offload else ""
    context = f"context {fit.context_tokens:,} ({fit.kv_type} cache {_gb(fit.cache_bytes)}{where})"
    preferred = _contexts(model, constraints)[0]
    if fit.context_tokens < preferred:
        context += f" instead of {preferred:,}, to fit the memory"
    elif constraints.context_tokens is None and model.trained_tokens * constraints.sequences > preferred:
        context += f" of at most {model.trained_tokens:,} (--context)"
    flash = "on" if fit.flash_attention and not model.has_encoder else "off"
    weights = "mapped" if fit.mapped else "copied into huge pages" if machine.huge_pages else "copied"
    return f"{layers}, weights {weights}, {context}, batch {fit.batch_tokens:,}, flash attention {flash}"


def _filled(share: DeviceMemory) -> str:
    return f"{_of(share)} free on {share.name}"


def _of(share: DeviceMemory) -> str:
    return f"{share.needed_bytes / 1e9:.1f} of {_gb(share.free_bytes, 1)}"


def _gb(count: int, digits: int = 2) -> str:
    return f"{count / 1e9:.{digits}f} GB"
