"""What the targets of fuzzing share: where they write, and what a refusal has to be."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from newllm.errors import UserError

Target = Callable[[bytes], None]

_MEMORY = Path("/dev/shm")
FOLDER = Path(tempfile.mkdtemp(prefix="newllm-fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None))
"""In memory where that is possible: a disk would be most of what an input costs."""

torch.set_num_threads(1)


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """What is read here may be refused, in one line."""
    try:
        yield
    except UserError as error:
        assert len(str(error).splitlines()) == 1, "a complaint of several lines"


def refusing(read: Callable[[Path], object], name: str) -> Target:
    """Whoever reads a file may refuse it, in one line that names it."""
    path = FOLDER / name

    def target(content: bytes) -> None:
        path.write_bytes(content)
        try:
            read(path)
        except UserError as error:
            assert len(str(error).splitlines()) == 1, "a complaint of several lines"
            assert str(path) in str(error), "a complaint that names no file"

    return target


def clean_up() -> None:
    """Remove what the targets wrote."""
    shutil.rmtree(FOLDER, ignore_errors=True)
