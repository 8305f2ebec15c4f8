"""Child process that computes an importance matrix while llama.cpp evaluates a text.

It counts what llama-imatrix counts: matrix products with a block's weight in batches of at least 16 rows, and each
expert's share in mixture-of-experts products. Names llama_cpp.
"""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.quantise.imatrix import COUNTS, SUMS
from gladstone.errors import UnsupportedError
from gladstone.gguf.types import TENSOR_TYPE_NUMBERS
from gladstone.llamacpp.context import Context
from gladstone.llamacpp.library import library
from gladstone.llamacpp.model import Model
from gladstone.process.child_main import send_fraction, serve

FEWEST_ROWS = 16
TENSOR_PADDING, OPERATIONS = 32, 200


class GgmlTensor(ctypes.Structure):
    """ggml.h's struct ggml_tensor, as far as it is read here; checked against the library by `Ggml`."""


GgmlTensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(GgmlTensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]


class Ggml:
    """The ggml functions in use; checks that the structure above matches the library."""

    def __init__(self) -> None:
        self._lib = library()._lib
        for name, result in (("ggml_tensor_overhead", ctypes.c_size_t), ("ggml_nbytes", ctypes.c_size_t),
                             ("ggml_op_name", ctypes.c_char_p), ("ggml_get_name", ctypes.c_void_p)):  # fmt: skip
            getattr(self._lib, name).restype = result
        self._lib.ggml_op_name.argtypes = [ctypes.c_int]
        self._lib.ggml_backend_tensor_get.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_size_t,
        ]
        self._lib.ggml_backend_tensor_get.restype = None
        probe = GgmlTensor()
        name_offset = self._lib.ggml_get_name(ctypes.byref(probe)) - ctypes.addressof(probe)
        size = ctypes.sizeof(GgmlTensor)
        if size + TENSOR_PADDING != self._lib.ggml_tensor_overhead() or name_offset != GgmlTensor.name.offset:
            raise UnsupportedError("importance matrices need the tensor layout of llama-cpp-python 0.3.36.")
        names = {self._lib.ggml_op_name(number): number for number in range(self._operations())}
        self.product, self.expert_product = names[b"MUL_MAT"], names[b"MUL_MAT_ID"]

    def _operations(self) -> int:
        """Number of operations; ggml reads past its table beyond the last."""
        for number in range(OPERATIONS):
            if self._lib.ggml_op_name(number) == b"GLU":  # the last of ggml.h's enum
                return number + 1
        raise UnsupportedError("importance matrices need the operations of llama-cpp-python 0.3.36.")

    def values(self, tensor: GgmlTensor, dtype: str) -> npt.NDArray[Any]:
        """A copy of the tensor's values, (ne3, ne2, ne1, ne0), from any device."""
        size = self._lib.ggml_nbytes(ctypes.byref(tensor))
        data = np.empty(size, np.uint8)
        self._lib.ggml_backend_tensor_get(ctypes.byref(tensor), data.ctypes.data, 0, size)
        return np.lib.stride_tricks.as_strided(data.view(dtype), tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1])


class Collector:
    """Sums of squared inputs of each weight, (experts, columns) float64, and row counts, (experts,) float64."""

    def __init__(self) -> None:
        self.sums: dict[str, npt.NDArray[np.float64]] = {}
        self.counts: dict[str, npt.NDArray[np.float64]] = {}
        self.error: BaseException | None = None
        self._ggml = Ggml()

    def watch(self, address: int, ask: bool, _data: object) -> bool:
        """Callback: select an operation (`ask`) or record its inputs. Errors are kept: ctypes would drop them."""
        tensor = ctypes.cast(address, ctypes.POINTER(GgmlTensor)).contents
        try:
            if ask:
                return self._wanted(tensor)
            self._take(tensor)
        except BaseException as error:  # noqa: BLE001 - raised again by `check`
            self.error = error
            return False
        return True

    def check(self) -> None:
        """Raise an error kept by `watch`."""
        if self.error is not None:
            raise self.error

    def _wanted(self, tensor: GgmlTensor) -> bool:
        if tensor.op == self._ggml.expert_product:
            return True
        if tensor.op != self._ggml.product:
            return False
        inputs = tensor.src[1].contents
        return bool(
            inputs.ne[1] >= FEWEST_ROWS
            and inputs.type == TENSOR_TYPE_NUMBERS["F32"]
            and _name(tensor.src[0]).startswith("blk.")
        )

    def _take(self, tensor: GgmlTensor) -> None:
        name, weight, inputs = _name(tensor.src[0]), tensor.src[0].contents, tensor.src[1].contents
        rows = self._ggml.values(inputs, "<f4").astype(np.float64)
        if tensor.op == self._ggml.expert_product:
            experts = self._ggml.values(tensor.src[2].contents, "<i4")[0, 0]  # (tokens, used)
            squares = rows[0] ** 2  # (tokens, used or 1, columns)
            squares = np.broadcast_to(squares, (*experts.shape, squares.shape[-1]))
            sums = np.zeros((weight.ne[2], squares.shape[-1]))
            np.add.at(sums, experts.ravel(), squares.reshape(-1, squares.shape[-1]))
            counts = np.bincount(experts.ravel(), minlength=weight.ne[2]).astype(np.float64)
        else:
            squares = (rows**2).sum(axis=2)  # (ne3, ne2, columns)
            sums = np.zeros((weight.ne[3], weight.ne[2], squares.shape[-1]))
            for index in np.ndindex(squares.shape[:2]):
                sums[index[0] % weight.ne[3], index[1] % weight.ne[2]] += squares[index]
            sums = sums.reshape(-1, squares.shape[-1])
            counts = np.array([rows.size / rows.shape[-1] / len(sums)])
        if not np.isfinite(sums).all():
            raise UnsupportedError(f"the inputs of {name} are not finite: the model computes nonsense on this text.")
        self.sums[name] = self.sums.get(name, 0) + sums
        self.counts[name] = self.counts.get(name, 0) + counts


def _name(pointer: Any) -> str:
    """A weight's name; some devices wrap it as `DEVICE#blk.0.attn_k.weight#0`."""
    name: str = pointer.contents.name.decode("utf-8", "replace")
    return name.split("#")[1] if "#" in name else name


def evaluate(job: dict[str, Any]) -> tuple[Collector, int]:
    """Evaluate the text in independent chunks; `job["gpu_layers"]` lie on a GPU, by default none.

    Raises UnsupportedError if the text is shorter than a chunk.
    """
    lib, size = library(), int(job["chunk_tokens"])
    collector = Collector()
    watch = lib.ggml_backend_sched_eval_callback(collector.watch)
    opened = Model(Path(job["model"]), gpu_layers=int(job.get("gpu_layers", 0)))
    with opened as model, Context(model, size, batch_tokens=size, watch=watch) as context:
        tokens = model.tokenize(job["text"], add_special=True, parse_special=True)
        chunks = min(int(job["chunks"]), len(tokens) // size)
        if not chunks:
            raise UnsupportedError(
                f"{job['name']}: {len(tokens):,} tokens, an importance matrix needs at least {size:,}."
            )
        for number in range(chunks):
            chunk = tokens[number * size : (number + 1) * size]
            if model.adds_bos:
                chunk[0] = model.bos
            context.forget()
            context.decode(chunk, 0, all_logits=True)  # otherwise the last layer sees only the last token
            collector.check()
            send_fraction((number + 1) / chunks)
    return collector, chunks


def write(collector: Collector, chunks: int, job: dict[str, Any]) -> None:
    """Write the file in llama-imatrix's format."""
    import gguf

    writer = gguf.GGUFWriter(job["out"], arch="imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [job["name"]])
    writer.add_uint32("imatrix.chunk_count", chunks)
    writer.add_uint32("imatrix.chunk_size", int(job["chunk_tokens"]))
    for name in sorted(collector.sums):
        writer.add_tensor(name + SUMS, collector.sums[name].astype(np.float32))
        writer.add_tensor(name + COUNTS, collector.counts[name].astype(np.float32)[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compute(job: dict[str, Any]) -> None:
    """Write `job["out"]`, the importance matrix of the model `job["model"]` on a text."""
    write(*evaluate(job), job)


if __name__ == "__main__":
    serve(compute)
