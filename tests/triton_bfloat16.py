"""Arithmetic in bfloat16 for triton's interpreter, which takes the bits of such numbers for whole ones: numpy lacks it."""

import importlib
from typing import Any


def compute_bfloat16() -> None:
    """Let this process's interpreter widen to float32, compute, and round to the nearest, ties to even, as GPUs do."""
    import numpy as np

    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    language: Any = importlib.import_module("triton.language")
    builder, handle, half = interpreter.InterpreterBuilder, interpreter.TensorHandle, language.bfloat16
    binary, unary, cast = builder.binary_op, builder.unary_op, builder.cast_impl

    def widened(value: Any) -> Any:
        if value.dtype.scalar != half:
            return value
        return handle((value.data.astype(np.uint32) << 16).view(np.float32), language.float32)

    def rounded(value: Any) -> Any:
        if value.data.dtype != np.float32:  # the truth of a comparison
            return handle(value.data, half)
        bits = np.ascontiguousarray(value.data).view(np.uint32)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return handle(np.where(np.isnan(value.data), 0x7FC0, nearest).astype(np.uint16), half)

    def binary_op(self: Any, left: Any, right: Any, operation: Any) -> Any:
        if left.dtype.scalar != half:
            return binary(self, left, right, operation)
        return rounded(binary(self, widened(left), widened(right), operation))

    def unary_op(self: Any, value: Any, operation: Any) -> Any:
        if value.dtype.scalar != half:
            return unary(self, value, operation)
        return rounded(unary(self, widened(value), operation))

    def cast_impl(self: Any, value: Any, kind: Any) -> Any:
        if kind.scalar != half:
            return cast(self, widened(value), kind)
        return value if value.dtype.scalar == half else rounded(cast(self, value, language.float32))

    builder.binary_op, builder.unary_op, builder.cast_impl = binary_op, unary_op, cast_impl
