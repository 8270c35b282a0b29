"""Every package that New-LLM asks for stands in the list of licences, and every data set."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from newllm.datasets import DATASETS

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "LICENCES.md").read_text(encoding="utf-8")


def test_every_package_is_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(p for e in extras if e != "dev" for p in extras[e])]
    names = {re.split(r"[<>=!;\[ ]", one)[0] for one in asked}
    listed = set(re.findall(r"[\w-]+", TEXT))
    assert names <= listed


def test_every_data_set_is_listed_as_a_model_card_has_it() -> None:
    for dataset in DATASETS.values():
        if not dataset.hub:  # one's own rows
            continue
        licence = dataset.licence
        assert licence.split(" (")[0].split(",")[0] in TEXT
