"""The one line that a missing package ends in."""

from __future__ import annotations

import re

import pytest

from newllm.errors import UserError, require_packages
from newllm.evaluate.skills import require_skills


def test_a_missing_package_is_named_with_its_extra() -> None:
    require_packages("--plot", "json", extra="report")
    line = '--plot: needs no-such-package and no-other: pip install -e ".[report]"'
    with pytest.raises(UserError, match=f"^{re.escape(line)}$"):
        require_packages("--plot", "no_such_package", "json", "no_other", extra="report")


def test_math_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs math-verify"):
        require_skills("math")
