"""Models of earlier formats are read, and say what they said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from newllm.errors import UserError
from newllm.train import checkpoint
from newllm.trained import TrainedModel

FORMATS = Path(__file__).parent / "formats"
"""Files that earlier versions wrote, two layers of a few numbers each."""

LOGITS = {
    1: [-0.03789, -0.03128, -0.0609, 0.03009, -0.06241, -0.15878, 0.06957, 0.06809],
    2: [0.04284, -0.02198, 0.02588, 0.06811, -0.0425, 0.03109, -0.04637, 0.06669],
}
"""Format -> the first logits after tokens 4 to 35, as the version that wrote the file had them."""


def test_every_earlier_format_is_here() -> None:
    assert list(checkpoint.MIGRATIONS) == list(LOGITS) == list(range(1, checkpoint.FORMAT_VERSION))


@pytest.mark.parametrize("version", LOGITS)
def test_a_model_of_an_earlier_format_says_what_it_said(version: int) -> None:
    model = TrainedModel.load(FORMATS / f"format{version}.pt", "cpu").model
    hidden, _ = model(torch.arange(4, 36)[None])
    logits = model.logits(hidden)[0, -1, : len(LOGITS[version])]
    torch.testing.assert_close(logits, torch.tensor(LOGITS[version]), atol=2e-5, rtol=0)


def test_an_earlier_resume_file_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 1)
    checkpoint.save(tmp_path / "resume.pt", {"kind": "resume"})
    monkeypatch.undo()
    with pytest.raises(UserError, match="checkpoint format 1, but this version reads"):
        checkpoint.load(tmp_path / "resume.pt")


def test_a_damaged_file_is_not_migrated(tmp_path: Path) -> None:
    path = tmp_path / "format1.pt"
    shutil.copy(FORMATS / "format1.pt", path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"damaged|cut off"):
        checkpoint.load(path)
