"""What a Triton kernel computes a product and a rounding with, on a GPU and interpreted.

Triton's interpreter (TRITON_INTERPRET=1) runs a kernel on a CPU, but it keeps bfloat16 as
integers: its `tl.dot` multiplies those, and its cast cuts digits off where a GPU rounds to
nearest. Its products are a BLAS library's besides, whose sums change their order with the
place of a row in the matrix. `INTERPRETED`, a constant of every kernel, takes the way around:
operands are widened, which changes no product, sums are made in one order, and rounding is
done by hand.
"""

from __future__ import annotations

import triton
import triton.language as tl


def interpreted() -> bool:
    """Whether kernels run in the interpreter; to be passed to them as `INTERPRETED`."""
    return bool(triton.knobs.runtime.interpret)


@triton.jit  # type: ignore[untyped-decorator]
def dot(left, right, total, INTERPRETED: tl.constexpr):  # type: ignore[no-untyped-def]
    """total + left right, summed in fp32; never in tf32."""
    if INTERPRETED:
        products = left.to(tl.float32)[:, :, None] * right.to(tl.float32)[None, :, :]
        return total + tl.sum(products, axis=1)
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit  # type: ignore[untyped-decorator]
def rounded(value, dtype: tl.constexpr, INTERPRETED: tl.constexpr):  # type: ignore[no-untyped-def]
    """fp32 to the nearest `dtype`, of two as near the even one."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        value = bits.to(tl.float32, bitcast=True)
    return value.to(dtype)
