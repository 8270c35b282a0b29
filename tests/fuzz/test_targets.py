"""Every reader on damaged and hostile bytes: a few here, far more with `make fuzz`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import targets

make = cache(targets.make)


@pytest.fixture(scope="module", autouse=True)
def _clean_up():
    yield
    targets.clean_up()


@pytest.mark.parametrize("name", targets.NAMES)
def test_what_is_meant_is_read(name: str) -> None:
    target, seeds = make(name)
    for seed in seeds:
        target(seed)


@pytest.mark.parametrize("name", targets.NAMES)
@given(data=st.data())
@settings(max_examples=20)
def test_anything_else_is_refused_or_read(name: str, data: st.DataObject) -> None:
    target, seeds = make(name)
    content = bytearray(data.draw(st.sampled_from(seeds)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content)))
        length = data.draw(st.integers(0, 8))
        content[place : place + length] = data.draw(st.binary(max_size=8))
    target(bytes(content))


def test_make_fuzz_tries_every_target() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    listed = makefile.split("FUZZ_TARGETS :=")[1].split("\n\n")[0].replace("\\\n", " ").split()
    assert sorted(listed) == sorted(targets.NAMES)
