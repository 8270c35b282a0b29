"""A preparation that is not complete: which shards are finished, and where to go on.

The folder `KEY.partial` beside the one it becomes holds finished shards and `progress.json`, which
is replaced after each shard. Whatever ends the process, the next one with the same rows and
settings goes on after the last finished shard and writes the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import filelock

from newllm.data.encode import Accounting
from newllm.data.shards import SplitWriter, describe_file, intact
from newllm.errors import UserError
from newllm.files import DISK_ERRORS, write_text


@dataclass
class SplitState:
    """How far a split is: what is in its finished shards."""

    shards: int = 0
    finished: bool = False
    accounting: Accounting = field(default_factory=Accounting)


class Partial:
    """A folder in the making; use it through `taken_up`."""

    def __init__(self, folder: Path, becomes: Path) -> None:
        self.folder, self._becomes = folder, becomes
        self.files: dict[str, dict[str, Any]] = {}
        """Size and SHA-256 of every finished file."""
        self._splits: dict[str, SplitState] = {}
        self._read()

    @classmethod
    @contextlib.contextmanager
    def taken_up(cls, becomes: Path) -> Iterator[Partial]:
        """What an interrupted preparation left of the folder `becomes`, or nothing yet.

        Raises:
            UserError: the disk is full; what is finished is kept.
        """
        partial = cls(becomes.with_name(f"{becomes.name}.partial"), becomes)
        try:
            yield partial
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            raise UserError(
                f"{error.filename or partial.folder}: {error.strerror} while rows were encoded; "
                f"{partial.describe()} kept: free space there, or set NEWLLM_CACHE to another "
                "folder, and give the same command again"
            ) from None

    def describe(self) -> str:
        """`3 shards are`."""
        count = sum(state.shards for state in self._splits.values())
        return f"{count} finished shard{' is' if count == 1 else 's are'}"

    def split(self, name: str) -> SplitState:
        """How far a split is; to be changed, then kept by `save_shard`."""
        return self._splits.setdefault(name, SplitState())

    def save_shard(self, writer: SplitWriter) -> None:
        """Write what is pending, and from here on go on after it."""
        writer.finish_shard()
        self.split(writer.split).shards = writer.shards
        self.files |= writer.files
        self._save()

    def tokenizer(self) -> dict[str, Any] | None:
        """The vocabulary that the finished shards are written in."""
        if "tokenizer.json" not in self.files:
            return None
        return json.loads((self.folder / "tokenizer.json").read_text(encoding="utf-8"))

    def save_tokenizer(self, stored: dict[str, Any]) -> None:
        """Write the vocabulary."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "tokenizer.json"
        write_text(path, json.dumps(stored, ensure_ascii=False))
        self.files[path.name] = describe_file(path)
        self._save()

    def finish(self, manifest: str) -> None:
        """The folder is complete: give it its name, in place of a damaged one."""
        write_text(self.folder / "manifest.json", manifest)
        self._progress.unlink()
        shutil.rmtree(self._becomes, ignore_errors=True)
        self.folder.rename(self._becomes)

    def discard(self) -> None:
        """Nothing here is of use."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _progress(self) -> Path:
        return self.folder / "progress.json"

    def _save(self) -> None:
        splits = {name: asdict(state) for name, state in self._splits.items()}
        write_text(self._progress, json.dumps({"files": self.files, "splits": splits}))

    def _read(self) -> None:
        try:
            stored = json.loads(self._progress.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.discard()
            return
        if not intact(self.folder, stored["files"]):
            print("An interrupted preparation is damaged; starting afresh.", file=sys.stderr)
            self.discard()
            return
        self.files = stored["files"]
        for name, state in stored["splits"].items():
            accounting = Accounting(**state.pop("accounting"))
            self._splits[name] = SplitState(accounting=accounting, **state)
        if any(state.shards for state in self._splits.values()):
            rows = sum(state.accounting.rows for state in self._splits.values())
            print(f"Going on with an interrupted preparation: {rows:,} rows are encoded.",
                  file=sys.stderr)  # fmt: skip


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Let no two processes make the same folder; a second one waits and then finds it made.

    Some network folders cannot lock files: there it is for the user to start only one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print("Waiting for another process that encodes the same rows.", file=sys.stderr)
        lock.acquire()
    except NotImplementedError:
        print(f"{folder.parent} cannot lock files: let no second process encode these rows.",
              file=sys.stderr)  # fmt: skip
    try:
        yield
    finally:
        lock.release()
