"""Keeps the matrices of a model's layers as they are stored, and widens them while a layer computes.

Names torch, bitsandbytes. Stored matrices are mapped from their files: they take no memory that the system could not
reclaim.
"""

from collections.abc import Callable, Container, Iterator
from functools import partial
from typing import Any

Read = Callable[[], Any]


class LayerWeights:
    """The matrices of all layers, taken out of a model and put back in float32, at once or layer by layer.

    The results equal those of the whole model in float32: the same operations on the same values.
    """

    def __init__(self, model: Any, spared: Container[str] = ()) -> None:
        """Put placeholders of the same shapes in the layers and widen every other parameter.

        `spared` names modules (by their last name) whose matrices are widened too, since an adapter copies them.
        """
        unpacked = _unpack_4bit(model)
        self._layers = [
            (layer, {matrix: unpacked.get(matrix) or _reading(matrix.data) for matrix in _matrices(layer, spared)})
            for layer in layers_of(model)
        ]
        taken = {parameter for _, matrices in self._layers for parameter in matrices}
        for parameter in model.parameters():
            parameter.data = _placeholder(parameter.shape) if parameter in taken else _widened(parameter.data)

    def put_back(self, model: Any, device: str, *, streamed: bool) -> None:
        """Move `model`, which may have got an adapter, to a device; the layers' matrices now, or when a layer runs."""
        taken = {parameter for _, matrices in self._layers for parameter in matrices}
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                if parameter not in taken:
                    parameter.data = _widened(parameter.data, device)
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(device)
        for layer, matrices in self._layers:
            if streamed:
                layer.register_forward_pre_hook(_widening(matrices, device))
                layer.register_forward_hook(_narrowing(matrices), always_call=True)
            else:
                _widening(matrices, device)()


def layers_of(model: Any) -> list[Any]:
    """The layers of every stack: the items of the outermost module lists."""
    import torch

    found = []
    for child in model.children():
        found += list(child) if isinstance(child, torch.nn.ModuleList) else layers_of(child)
    return found


def _matrices(layer: Any, spared: Container[str]) -> Iterator[Any]:
    for name, parameter in layer.named_parameters():
        if parameter.dim() > 1 and not any(part in spared for part in name.split(".")):
            yield parameter


def _reading(stored: Any) -> Read:
    return lambda: stored


def _placeholder(shape: Any) -> Any:
    """A float32 tensor of this shape in the memory of one number."""
    import torch

    return torch.zeros(()).expand(shape)


def _widened(data: Any, device: str = "cpu") -> Any:
    """Data on a device, floating point as float32. It is moved before it is widened: that moves half of the bytes."""
    import torch

    data = data.to(device)
    return data.to(torch.float32) if data.is_floating_point() else data


def _widening(matrices: dict[Any, Read], device: str) -> Callable[..., None]:
    import torch

    def widen(*_: Any) -> None:
        with torch.inference_mode(mode=False), torch.no_grad():
            for parameter, read in matrices.items():
                parameter.data = _widened(read(), device)

    return widen


def _narrowing(matrices: dict[Any, Read]) -> Callable[..., None]:
    def narrow(*_: Any) -> None:
        for parameter in matrices:
            parameter.data = _placeholder(parameter.shape)

    return narrow


def _unpack_4bit(model: Any) -> dict[Any, Read]:
    """Replace modules in NF4 by plain ones without weights; returns how their weights are dequantised.

    Training computes with the dequantised weights; in evaluation bitsandbytes takes a kernel that rounds to bfloat16
    on processors that have it, whatever type is requested.
    """
    import torch

    found: dict[Any, Read] = {}
    if not getattr(model, "is_loaded_in_4bit", False):
        return found
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    for name, module in list(model.named_modules()):
        if not isinstance(module, Linear4bit):
            continue
        with torch.device("meta"):
            plain = torch.nn.Linear(module.in_features, module.out_features, bias=False)
        plain.weight = torch.nn.Parameter(_placeholder(plain.weight.shape), requires_grad=False)
        plain.bias = module.bias
        packed, state = module.weight.data, module.weight.quant_state
        found[plain.weight] = partial(dequantize_4bit, packed, state)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, plain)
    model.is_loaded_in_4bit = False
    return found
