"""What Triton's compiler and ptxas make of a kernel for an H100; neither needs a GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

SHARED_BYTES = 227 << 10
"""That one program can have."""


@dataclass(frozen=True)
class Compiled:
    """One kernel for one shape.

    Attributes:
        shared: bytes of shared memory.
        registers: of a thread.
        spilled: bytes of registers that went to memory.
        copies: widths in bytes of the copies into shared memory that nobody waits for.
        columns: of the instructions that a whole warp group multiplies with; empty without any.
        under_way: how many products of theirs need not have ended when the next round of a loop begins.
    """

    shared: int
    registers: int
    spilled: int
    copies: frozenset[int]
    columns: frozenset[int]
    under_way: int


def compiled(
    kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any], *, warps: int = 4, stages: int = 3
) -> Compiled:
    """Compile; addresses, and numbers called i16, are multiples of 16.

    Args:
        types: of each argument that is no constant: ``*bf16``, ``*i32``, ``i32``, ``i16``, …
    """
    names, sixteen = kernel.arg_names, [["tt.divisibility", 16]]
    whole = {name for name, type_ in types.items() if type_ == "i16" or type_[0] == "*"}
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr").replace("i16", "i32") for name in names},
        constexprs=dict(constants),
        attrs={(at,): sixteen for at, name in enumerate(names) if name in whole},
    )
    options = {"num_warps": warps, "num_stages": stages}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    ptx = made.asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [get_ptxas(90).path, "-v", "--gpu-name=sm_90a", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return Compiled(
        made.metadata.shared,
        int(_found(r"Used (\d+) registers", said)),
        int(_found(r"(\d+) bytes spill stores", said)),
        frozenset(int(width, 16) for width in re.findall(r"cp\.async\.c\w\..*?\], (0x\w+)", ptx)),
        frozenset(int(columns) for columns in re.findall(r"wgmma\.mma_async\.\S*?m64n(\d+)", ptx)),
        max((int(left) for left in re.findall(r"dot_wait .*pendings = (\d+)", made.asm["ttgir"])), default=0),
    )


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match, text
    return match[1]
