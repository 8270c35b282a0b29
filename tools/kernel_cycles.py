"""What a token costs in the Triton kernels of `context_read`, read from their machine code.

    python -m tools.kernel_cycles

Compiles both for four GPUs, which needs none, and prints a thread's registers, the bytes that stand
in for registers, and the cycles a token takes in a crude model of one warp that issues in order and
waits for what it needs: a way to compare two forms of one kernel, not a time. Only the loop over
the text is counted. What a GPU with many programs at once hides of the waiting is not modelled: its
instructions are printed beside.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from newllm.model.context.reference import group_size
from newllm.model.kernels.reference import EPSILON

LATENCIES = {
    "SHFL": 24, "MUFU": 24, "LDS": 26, "LDG": 250, "LDL": 40, "STS": 4, "BAR": 30, "I2F": 16,
    "F2I": 16, "F2F": 14, "S2R": 20, "VOTE": 10, "LDC": 30,
}  # fmt: skip
"""Cycles until a result can be used, by the instruction's beginning; those of arithmetic: 5.
About those that microbenchmarks of Turing to Hopper report."""

GPUS = {"T4": (75, "fp16"), "A100": (80, "bf16"), "L4": (89, "bf16"), "H100": (90, "bf16")}
"""Compute capability and the type of its products."""

_NO_RESULT = ("ST", "BRA", "BAR", "RED", "EXIT", "BSYNC", "BSSY", "WARPSYNC", "NOP", "CALL", "RET")
_TWO_RESULTS = ("ISETP", "FSETP", "SHFL", "PLOP", "UISETP")


class Compiled(NamedTuple):
    """A kernel as a GPU would run it."""

    registers: int
    """Of a thread."""
    spilled: int
    """Bytes of memory that stand in for a thread's registers."""
    shared: int
    """Bytes that a program asks for the exchange between its warps."""
    code: str
    """As `nvdisasm` writes it."""

    def loop(self) -> list[_Instruction]:
        """Of the longest loop, which is that over the text."""
        return _longest_loop(self.code)


class _Instruction(NamedTuple):
    code: str
    reads: frozenset[str]
    writes: frozenset[str]
    jumps_to: str | None


def constants_of(kernel: Any, tile: int) -> dict[str, Any]:
    """Of a kernel of `context_read` for 256 channels; the forward reads `tile` tokens at a time."""
    tiled = {"TILE": tile} if "TILE" in kernel.arg_names else {}
    return {"EPSILON": EPSILON, "CHANNELS": 256, "GROUP": group_size(256), **tiled}


def types_of(kernel: Any, dtype: str, constants: dict[str, Any]) -> dict[str, str]:
    """Of the arguments of a kernel of `context_read`, where this is the type of the stream."""
    types = dict.fromkeys(kernel.arg_names, "*fp32")
    types |= {"time": "i32", "reset": "*i1", "lengths": "*i64"}
    types |= dict.fromkeys({"projected", "read", "d_read", "d_projected"} & set(types), f"*{dtype}")
    return types | dict.fromkeys(constants, "constexpr")


def compile_for(
    capability: int, kernel: Any, types: dict[str, str], constants: dict[str, Any], **options: int
) -> Compiled:
    """Compile a kernel for a GPU, which takes none, on tensors that begin where torch puts them."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if types[name].startswith("*")
    }
    made = triton.compile(
        ASTSource(kernel, types, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )
    assert f".target sm_{capability}" in made.asm["ptx"]
    programs = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(made.asm["cubin"])
        said = subprocess.check_output([programs / "cuobjdump", "-res-usage", binary], text=True)
        code = subprocess.check_output(
            [programs / "nvdisasm", "-c", binary], text=True, stderr=subprocess.DEVNULL
        )
    used = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    return Compiled(used["REG"], used["STACK"] + used["LOCAL"], made.metadata.shared, code)


def _parse(line: str) -> _Instruction | None:
    found = re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+\{?\s*(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?);", line)
    if found is None:
        return None
    predicate, code, arguments = found[1] or "", found[2], found[3].split(",")
    results = 0 if code.startswith(_NO_RESULT) else 2 if code.startswith(_TWO_RESULTS) else 1
    results = min(results, max(1, len(arguments) - 1)) if results else 0
    written = _registers(",".join(arguments[:results]))
    width = 4 if ".128" in code else 2 if ".64" in code or "WIDE" in code else 1
    for name in written[:1]:  # of a wide result only the first register is named
        kind, number = re.match(r"(U?R|U?P)(\d+)", name).groups()  # type: ignore[union-attr]
        written += [f"{kind}{int(number) + more}" for more in range(1, width)]
    target = re.search(r"\.L\w*", found[3]) if code.startswith("BRA") else None
    return _Instruction(
        code,
        frozenset(_registers(predicate + ",".join(arguments[results:]))),
        frozenset(written),
        target and target[0],
    )


def _registers(text: str) -> list[str]:
    return re.findall(r"\bU?R\d+\b|\bU?P\d\b", text)


def _longest_loop(code: str) -> list[_Instruction]:
    instructions: list[_Instruction] = []
    labels: dict[str, int] = {}
    loops = []
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L\w*):", line):
            labels[label[1]] = len(instructions)
        elif instruction := _parse(line):
            instructions.append(instruction)
            start = labels.get(instruction.jumps_to or "")
            if start is not None and start < len(instructions):
                loops.append(instructions[start:])
    return max(loops, key=len)


def cycles(loop: list[_Instruction]) -> int:
    """Of a turn of the loop once it runs: the third turn's end to the fourth's."""
    ready: dict[str, int] = {}
    now, ends = 0, []
    for _ in range(4):
        for instruction in loop:
            now = max([now + 1, *(ready.get(name, 0) for name in instruction.reads)])
            latency = next((n for k, n in LATENCIES.items() if instruction.code.startswith(k)), 5)
            ready |= dict.fromkeys(instruction.writes, now + latency)
            now += LATENCIES["BAR"] if instruction.code.startswith("BAR") else 0
        ends.append(now)
    return ends[-1] - ends[-2]


def main() -> None:
    """Print the table."""
    from newllm.model.context import gpu

    print("| kernel | tile | GPU | registers x warps | spilt bytes | cycles | instructions |")
    print("|---|---|---|---|---|---|---|")
    forms = (gpu._forward, gpu._TILE, gpu._TILE_WARPS), (gpu._forward, 1, 1), (gpu._backward, 1, 1)
    for kernel, tile, warps in forms:
        for device, (capability, dtype) in GPUS.items():
            constants = constants_of(kernel, tile)
            types = types_of(kernel, dtype, constants)
            made = compile_for(capability, kernel, types, constants, num_warps=warps)
            loop = made.loop()
            print(
                f"| {kernel.__name__[1:]} | {tile} | {device} | {made.registers} x {warps} |"
                f" {made.spilled} | {cycles(loop) / tile:.0f} | {len(loop) * warps / tile:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
