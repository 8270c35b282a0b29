"""Scalar building blocks of the numba kernels: bfloat16, `exp` and random numbers, all of which
LLVM vectorises (numba's wheels have no vector `exp`, and numba knows no bfloat16).

A bfloat16 tensor enters a kernel as its 16-bit patterns (`as_array`); `to_fp32` and `from_fp32`
convert one element, and do nothing where the array is fp32: one kernel serves both.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import numba
import numpy as np
import torch
from llvmlite import binding, ir
from numba import types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.codegen import JITCodeLibrary
from numba.core.registry import cpu_target
from numba.core.runtime.nrt import rtsys
from numba.extending import intrinsic
from torch import Tensor

FAST = {"reassoc", "contract", "arcp", "nsz"}
"""Freedoms of the floating-point code: sums may be reordered; NaN and infinity keep their
meaning."""

ONE, ZERO, HALF = np.float32(1), np.float32(0), np.float32(0.5)

_I16, _I32, _F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()
_MOST_THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
_instruction: Any = intrinsic


_LONGEST_COMPILATION = 300.0
"""Seconds for which a process waits for another one to compile a kernel."""


@functools.cache
def _sources() -> str:
    """Digest of the files that kernels are made of: what is inlined may be another file's."""
    package, digest = Path(__file__).parents[2], hashlib.sha256()
    for folder in ("model", "inference"):
        for file in sorted((package / folder).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


class _CompiledOnce(FunctionCache):
    """Machine code that one process compiles while the others wait for it.

    numba's own cache lets all that come at once compile, and two that compile one function for
    different arguments can name their files alike: what is found later is then the wrong code.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        name, stamp = self._impl.filename_base, self._impl.locator.get_source_stamp()
        self._cache_file = IndexDataCacheFile(self._cache_path, name, (stamp, _sources()))
        file = Path(self._cache_path) / f"{name}.lock"
        self._compiling = filelock.FileLock(file, timeout=_LONGEST_COMPILATION)
        self._keep = True

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The code for these arguments; None: this process is to compile it and save it."""
        found = self._found(sig, target_context)
        if found is not None:
            return found
        self._keep = False
        with contextlib.suppress(OSError, filelock.Timeout):  # then it is compiled for itself alone
            self._impl.locator.ensure_cache_path()
            self._compiling.acquire()
            self._keep = True
            found = self._found(sig, target_context)
            if found is not None:
                self._compiling.release()
        return found

    def _found(self, sig: Any, target_context: Any) -> Any:
        """What is kept, without all that numba knows for compiling: 0.3 seconds of a start."""
        rtsys.initialize(target_context)  # kernels take memory
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled, and let the others go on."""
        try:
            if self._keep:
                with contextlib.suppress(OSError):  # a full disk: it runs all the same
                    super().save_overload(sig, data)
        finally:
            self._compiling.release()


class _SelfContained(JITCodeLibrary):
    """Machine code that calls nothing but its own copies of what it is made of.

    numba compiles the body of a `prange` by itself, and then a copy of it as a part of its kernel,
    where it is optimised once more and may add in another order. Both are one linker symbol: the
    process that compiles runs the first, one that loads the kernel from the cache has only the
    copy, and their sums differ in the last bit. With internal linkage both run the copy.
    """

    def _optimize_final_module(self) -> None:
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage == binding.Linkage.linkonce_odr:
                function.linkage = binding.Linkage.internal
        super()._optimize_final_module()


_context: Any = cpu_target.target_context
_context.codegen()._library_class = _SelfContained


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """Compile a function, and keep that for later processes where there is a folder to write in."""
    options |= {"error_model": "numpy", "fastmath": FAST}
    dispatcher: Any = numba.njit(**options)(function)
    with contextlib.suppress(RuntimeError):  # neither beside the source nor at home
        dispatcher._cache = _CompiledOnce(function)
    return dispatcher


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel whose outer loop (`prange`) runs in parallel."""
    return compiled(function, parallel=True)


def one_thread(function: Callable[..., Any]) -> Any:
    """Compile a function that lets other threads run."""
    return compiled(function, nogil=True)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a scalar function that is inlined into the kernels."""
    return numba.njit(inline="always", error_model="numpy", fastmath=FAST)(function)


class _Memory:
    """A tensor's memory as numpy takes it in, and the tensor, so that it stays."""

    __slots__ = ("__array_interface__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        strides = None
        if not tensor.is_contiguous():
            size = tensor.element_size()
            strides = tuple(size * stride for stride in tensor.stride())
        self.__array_interface__ = {
            "version": 3,
            "data": (tensor.data_ptr(), False),
            "shape": tuple(tensor.shape),
            "strides": strides,
            "typestr": _PATTERNS.get(tensor.dtype) or _array_type(tensor.dtype),
        }


_PATTERNS = {torch.float32: "<f4", torch.bfloat16: "<u2"}


def _array_type(dtype: torch.dtype) -> str:
    return torch.empty(0, dtype=dtype).numpy().dtype.str


def as_array(tensor: Tensor) -> np.ndarray:
    """The memory of a CPU tensor as a numpy array; bfloat16 as its 16-bit patterns.

    `Tensor.numpy` forbids torch for good to resize the memory, which is how FSDP2 frees gathered
    weights. This does not, and takes as long.
    """
    return np.asarray(_Memory(tensor))


def use_torch_threads() -> None:
    """Follow torch's thread count, so that one setting governs both."""
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, _MOST_THREADS))
    # The first call starts numba's threads, which sets the number of OpenMP's, torch's with them.
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@_instruction
def to_fp32(typing_context: Any, x: Any) -> Any:
    """Element of an array (bfloat16 pattern or fp32) -> fp32."""
    if x == types.float32:
        return types.float32(x), lambda context, builder, signature, args: args[0]

    def from_bfloat16(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = builder.shl(builder.zext(args[0], _I32), ir.Constant(_I32, 16))
        return builder.bitcast(wide, _F32)

    return types.float32(types.uint16), from_bfloat16


@_instruction
def from_fp32(typing_context: Any, x: Any, array: Any) -> Any:
    """fp32 -> what `array` holds, rounded to the nearest even bfloat16; NaN stays NaN."""
    if array.dtype == types.float32:
        return types.float32(types.float32, array), lambda c, builder, s, args: args[0]

    def to_bfloat16(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def constant(value: int) -> Any:
            return ir.Constant(_I32, value)

        bits = builder.bitcast(args[0], _I32)
        odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
        rounded = builder.add(builder.add(bits, constant(0x7FFF)), odd)
        rounded = builder.lshr(rounded, constant(16))
        is_nan = builder.fcmp_unordered("uno", args[0], args[0])
        return builder.trunc(builder.select(is_nan, constant(0x7FC0), rounded), _I16)

    return types.uint16(types.float32, array), to_bfloat16


@_instruction
def _power_of_two(typing_context: Any, exponent: Any) -> Any:
    """2 ** exponent, for a whole fp32 `exponent` in -126..127."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        biased = builder.add(builder.fptosi(args[0], _I32), ir.Constant(_I32, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(_I32, 23)), _F32)

    return types.float32(types.float32), build


@_instruction
def _floor(typing_context: Any, x: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.call(builder.module.declare_intrinsic("llvm.floor", [_F32]), [args[0]])

    return types.float32(types.float32), build


@_instruction
def _clamp_exponent(typing_context: Any, x: Any) -> Any:
    """x within -87..88, where exp(x) is a normal fp32 number; NaN stays NaN."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        low, high = ir.Constant(_F32, -87.0), ir.Constant(_F32, 88.0)
        x = builder.select(builder.fcmp_ordered("<", args[0], low), low, args[0])
        return builder.select(builder.fcmp_ordered(">", x, high), high, x)

    return types.float32(types.float32), build


_LOG2_E = np.float32(1.4426950408889634)
_LN_2_HIGH, _LN_2_LOW = np.float32(0.693145751953125), np.float32(1.428606765330187e-06)
_C6, _C5, _C4, _C3 = (np.float32(1 / divisor) for divisor in (720, 120, 24, 6))


@inlined
def exp(x):
    """exp(x) within 2e-7 relative error, x clamped to -87..88: 2^k times a Taylor polynomial."""
    x = _clamp_exponent(x)
    k = _floor(x * _LOG2_E + HALF)
    r = x - k * _LN_2_HIGH
    r = r - k * _LN_2_LOW
    p = ((((_C6 * r + _C5) * r + _C4) * r + _C3) * r + HALF) * r + ONE
    return (p * r + ONE) * _power_of_two(k)


@inlined
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return ONE / (ONE + exp(-x))


@inlined
def random_byte(counter, key, second_key):
    """The top byte of a 32-bit mix of `counter` (uint32) and two keys: as in `model/dropout.py`."""
    # Without a cast after every operation numba would go on with 64 bits.
    x = np.uint32(counter + key)
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32((x ^ (x >> np.uint32(15))) + second_key)
    x = np.uint32((x ^ (x >> np.uint32(13))) * np.uint32(0x846CA68B))
    return x >> np.uint32(24)
