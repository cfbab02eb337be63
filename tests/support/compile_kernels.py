"""Compiles every Triton kernel for GPUs that are not here, down to their machine code.

    python -m support.compile_kernels

Triton brings LLVM and NVIDIA's assembler along, so types, layouts and shared memory are
checked where no device is. Prints a JSON list. Run it in a process of its own: one that
interprets kernels cannot compile them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lorry.model import paged
from lorry_adapters.lora.kernels import triton_kernels

TARGETS = ((80, "bf16"), (90, "bf16"), (90, "fp16"), (90, "fp32"))
"""Compute capability of an A100 and of an H100, and the type of the activations."""

SIZE = {"bf16": 2, "fp16": 2, "fp32": 4}


def main() -> None:
    found = []
    for capability, dtype in TARGETS:
        for name, kernel, pointers, constants in kernels(dtype):
            made = compiled(kernel, pointers, constants, GPUTarget("cuda", capability, 32))
            found.append(
                {
                    "kernel": name,
                    "capability": capability,
                    "dtype": dtype,
                    "shared": made.metadata.shared,
                    "matrix units": made.asm["ptx"].count("mma.sync"),
                    "bytes": len(made.asm["cubin"]),
                }
            )
    json.dump(found, sys.stdout)


def kernels(dtype: str) -> Iterator[tuple[str, Any, Mapping[str, str], Mapping[str, Any]]]:
    """(name, kernel, types of its pointers, constants)."""
    tables = {"tiles_X3": "i32", "token_P": "i32", "rank_S": "i32", "h_CPR": "fp32"}
    fixed = {"TILE": triton_kernels.TILE, "BLOCK_R": triton_kernels.BLOCK_R, "INTERPRETED": False}
    yield (
        "shrink",
        triton_kernels._shrink,
        {**tables, "x_TI": dtype, "a_SRI": dtype},
        {**fixed, "BLOCK_I": triton_kernels.BLOCK_I},
    )
    yield (
        "expand",
        triton_kernels._expand,
        {**tables, "y_TO": dtype, "b_SRO": dtype, "scale_P": "fp32"},
        {**fixed, "BLOCK_O": triton_kernels.BLOCK_O, "CUTS": 4},
    )
    parts = {"sum_BQZV": "fp32", "top_BQZ": "fp32", "mass_BQZ": "fp32", "length_B": "i32"}
    for size in (64, 128, 256):
        yield (
            f"part, heads of {size}",
            paged._weigh_part,
            {**parts, "table_BW": "i32", "q_BQD": dtype, "k_NHD": dtype, "v_NHD": dtype},
            {
                "G": 4,
                "D": size,
                "V": size,
                "CAPPED": size == 256,
                "BLOCK": 16,
                "SPAN": paged.SPAN,
                "GROUP": paged.GROUP,
                "WIDE_D": size,
                "WIDE_V": size,
                "L": paged.keys_at_once(size * SIZE[dtype]),
                "INTERPRETED": False,
            },
        )
    yield (
        "merge",
        paged._merge_parts,
        {**parts, "out_BQV": dtype},
        {"V": 128, "SPAN": paged.SPAN, "WIDE_V": 128, "INTERPRETED": False},
    )


def compiled(
    kernel: Any, pointers: Mapping[str, str], constants: Mapping[str, Any], target: GPUTarget
) -> Any:
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = f"*{pointers[name]}"
        else:
            signature[name] = "fp32" if name in ("scale", "cap") else "i32"
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    return triton.compile(ASTSource(kernel, signature, places), target=target)


if __name__ == "__main__":
    main()
