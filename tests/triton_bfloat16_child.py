"""A kernel in bfloat16 through triton's interpreter, beside torch: prints how many numbers differ."""

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

from scripts.interpreter import interpreter_folder  # type: ignore[import-not-found,unused-ignore]

sys.path.append(str(interpreter_folder()))

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]

from tests.triton_bfloat16 import compute_bfloat16

SIZE = 1024


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def kernel(left, right, product, larger, size: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, size)
    one, other = tl.load(left + at), tl.load(right + at)
    tl.store(product + at, one * other - one)
    tl.store(larger + at, tl.where(one > other, one, (one.to(tl.float32) / 3).to(tl.bfloat16)))


def main() -> None:
    torch.manual_seed(0)
    one, other = (torch.randn(SIZE).bfloat16() for _ in range(2))
    product, larger = torch.zeros_like(one), torch.zeros_like(one)
    compute_bfloat16()
    kernel[(1,)](one, other, product, larger, SIZE)
    wanted = torch.where(one > other, one, (one.float() / 3).bfloat16())
    print(int((product != one * other - one).sum()), int((larger != wanted).sum()))


if __name__ == "__main__":
    main()
