"""The files of a run, all named after it in one folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from newllm.files import previous_path


@dataclass(frozen=True)
class RunFiles:
    """Every file of a run, by the run's name."""

    folder: Path
    name: str

    @property
    def best(self) -> Path:
        return self.folder / f"best_{self.name}.pt"

    @property
    def final(self) -> Path:
        return self.folder / f"{self.name}_final.pt"

    @property
    def resume(self) -> Path:
        return self.folder / f"{self.name}_resume.pt"

    @property
    def metrics(self) -> Path:
        return self.folder / f"{self.name}.metrics.jsonl"

    @property
    def answers(self) -> Path:
        return self.folder / f"{self.name}.answers.jsonl"

    @property
    def settings(self) -> Path:
        return self.folder / f"{self.name}.yaml"

    @property
    def summary(self) -> Path:
        return self.folder / f"{self.name}.summary.json"

    @property
    def curves(self) -> Path:
        """Folder of TensorBoard's files."""
        return self.folder / "tensorboard" / self.name

    def existing(self) -> list[Path]:
        """Those files that are there, the resume file's predecessor included."""
        files = (self.best, self.final, self.resume, previous_path(self.resume), self.metrics,
                 self.answers, self.settings, self.summary, self.curves)  # fmt: skip
        return [path for path in files if path.exists()]


def set_aside(files: RunFiles, note: Callable[[str], None]) -> None:
    """Move an earlier run of the same name out of the way, rather than over-writing it."""
    existing = files.existing()
    if not existing:
        return
    folder = files.folder / "replaced" / f"{files.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    number = 1
    while folder.exists():
        folder, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    folder.mkdir(parents=True)
    for path in existing:
        path.rename(folder / path.name)
    note(f"An earlier run of this name was moved to {folder} (--resume would have gone on)")
