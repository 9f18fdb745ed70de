"""Compile the GPU's kernels for a compute capability, down to machine code; needs no GPU. Prints what was made.

python tests/support/arrays/compile_for_gpu.py 87
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from paging import numbers, page
from weightpager.kernels.torch import DeviceWeight, gpu
from weightpager.kernels.torch import gpu as kernels
from weightpager.page_dtype import ENCODINGS

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int16: "*i16"}


class Call:
    """Stands in for a kernel: keeps how it is called."""

    def __getitem__(self, grid: object) -> Call:
        return self

    def __call__(self, *operands: Any, **constants: Any) -> None:
        self.operands, self.constants = operands, constants


def compiled(kernel: str, capability: int, *call: Any) -> dict[str, Any]:
    """What `gpu`'s function of this kernel would launch, compiled."""
    function, seen = getattr(kernels, kernel), Call()
    setattr(kernels, kernel, seen)
    getattr(gpu, f"paged_{kernel}")(*call)
    setattr(kernels, kernel, function)
    options = {"num_stages": seen.constants.pop("num_stages")}
    kinds = [POINTERS[of.dtype] if isinstance(of, torch.Tensor) else "i32" for of in seen.operands]
    signature = dict(zip(function.arg_names, kinds, strict=False)) | dict.fromkeys(seen.constants, "constexpr")
    source = ASTSource(fn=function, signature=signature, constexprs=seen.constants)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, stack = resources(made.asm["cubin"])
    return {
        "kernel": kernel,
        "matrix": seen.constants["MATRIX"],
        "bfloat16": seen.constants["BFLOAT16"],
        "uses": ["mma"] if "mma" in made.asm["ptx"] else [],
        "shared": made.metadata.shared,
        "registers": registers,
        "stack": stack,
    }


def resources(machine_code: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack, where registers go that it has no room for."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    (found,) = re.findall(r"REG:(\d+) STACK:(\d+)", told)
    return int(found[0]), int(found[1])


def main() -> None:
    capability, made = int(sys.argv[1]), []
    for dtype in (each for each in ENCODINGS if each in gpu.READS):
        ones = numbers(torch.ones(64, 128), dtype)
        weight = DeviceWeight.of(page(ones, torch.ones(4, 4) > 0, 16, 32, trailer=64, dtype=dtype))
        few, many = torch.ones(1, 128), torch.ones(64, 128)
        calls = [(x, weight, torch.ones(64)) for x in (few, few.bfloat16(), many, many.bfloat16())]
        made += [compiled("linear", capability, *call) for call in calls]
    made += [compiled("gated", capability, x, weight, weight, "silu", (None, None)) for x in (few, many.bfloat16())]
    print(json.dumps(made))  # noqa: T201 - what it is for


if __name__ == "__main__":
    main()
