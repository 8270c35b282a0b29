"""What the command line runs in: standard streams that no text can break, variables it cannot have,
a start without needless searches for garbage.

A pipe on Japanese Windows takes cp932, a C locale ASCII, and a service may have no streams at all:
what cannot be written is replaced, what is not there reads as empty and writes to nowhere.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import gc
import io
import os
import sys

from newllm.errors import UserError

_OBJECTS = 50_000
"""New objects after which garbage is looked for; Python's own 700 cost a fifth of the imports."""

_REPLACE = "newllm.replace"


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    """A question mark; of a path's byte that is no text, the byte itself."""
    if not isinstance(error, UnicodeEncodeError):
        return "\ufffd", error.end  # type: ignore[attr-defined]
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return "?", error.start + 1


def prepare_streams() -> None:
    """Make standard input, output and error safe to use, whatever they are connected to."""
    codecs.register_error(_REPLACE, _replaced)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed: its descriptor is taken, or a file would get it
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            # What was read from already (by a program that calls `main`) stays as it is.
            with contextlib.suppress(io.UnsupportedOperation):
                if mode == "w":
                    stream.reconfigure(errors=_REPLACE)
                elif codecs.lookup(stream.encoding).name == "ascii":  # a C locale says nothing
                    stream.reconfigure(encoding="utf-8", errors="replace")
                else:
                    stream.reconfigure(errors="replace")


def rarely_collect_garbage() -> None:
    """Look for cycles of objects a seventieth as often: torch's import makes 200,000 that stay.

    And not at the end, where the process gives back its memory anyway (0.3 seconds).
    """
    gc.set_threshold(_OBJECTS, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)


def refuse_variables() -> None:
    """Look at the variables without which numba is not even imported, or compiles nothing.

    Raises:
        UserError: one is set to such a value.
    """
    jit, threads = (os.environ.get(f"NUMBA_{name}", "") for name in ("DISABLE_JIT", "NUM_THREADS"))
    for name, value, wrong in (
        ("NUMBA_DISABLE_JIT", jit, jit.strip() not in ("", "0")),
        ("NUMBA_NUM_THREADS", threads, threads.strip().lstrip("+-0") == "" or "-" in threads),
    ):
        if value and wrong:
            raise UserError(f"{name}={value}: the kernels cannot run so; unset it")
