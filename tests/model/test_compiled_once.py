"""Machine code is kept by one process for all: they compute alike, and none finds another's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MODULE = '''
import sys, time
from pathlib import Path

import numba
from numba.core.caching import IndexDataCacheFile
from newllm.model.kernels.numerics import compiled

COMPILERS = {"own": compiled, "plain": numba.njit(cache=True)}
compiler, order, *groups = sys.argv[1:]
here = Path(__file__).parent
save_index, save_data = IndexDataCacheFile._save_index, IndexDataCacheFile._save_data

def meet(said, awaited):
    """Wait for the other process, which may be waiting for this one: for a while."""
    (here / said).touch()
    deadline = time.monotonic() + 4
    while not (here / awaited).exists() and time.monotonic() < deadline:
        time.sleep(0.01)

def index(self, *arguments):  # both have looked for a free name by now; the second one waits more
    if order == "first":
        meet("1 looked", "2 looked")
    elif order == "second":
        meet("2 looked", "1 named")
    save_index(self, *arguments)

def data(self, *arguments):
    if order == "first":
        meet("1 named", "2 saved")
    save_data(self, *arguments)
    if order == "second":
        (here / "2 saved").touch()

IndexDataCacheFile._save_index, IndexDataCacheFile._save_data = index, data

def make(group):
    def times(x):
        return x * group
    return COMPILERS[compiler](times)

for group in map(int, groups):
    function = make(group)
    print(group, function(1.0), sum(function.stats.cache_misses.values()))
'''


def run_together(folder: Path, compiler: str) -> str:
    """Two processes that compile one function for two constants; what a third one gets then."""
    folder.mkdir()
    (folder / "made.py").write_text(MODULE)

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(folder / "made.py"), compiler, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    both = [(start("first", "2"), 2), (start("second", "3"), 3)]
    for process, group in both:
        assert process.communicate(timeout=300)[0] == f"{group} {group}.0 1\n"
    return start("alone", "2", "3").communicate(timeout=300)[0]


@pytest.mark.slow
def test_no_process_finds_the_code_of_another_constant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "code"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    assert run_together(tmp_path / "own", "own") == "2 2.0 0\n3 3.0 0\n"
    # What it is for: numba alone gives the third process 2 where it asked for 3, or compiles again.
    assert run_together(tmp_path / "plain", "plain") != "2 2.0 0\n3 3.0 0\n"


NORM = """
import hashlib

import torch

from newllm.model.kernels import cpu

numbers = torch.Generator().manual_seed(0)
x, stream, d_stream, d_normed = (torch.randn(8, 96, 64, generator=numbers) for _ in range(4))
weight = torch.randn(64, generator=numbers)
for leaf in (x, stream, weight):
    leaf.requires_grad_()
torch.autograd.backward(cpu.add_norm(stream, x, weight, torch.float32), [d_stream, d_normed])
(code,) = (found.library for found in cpu._add_norm_backward.overloads.values())
text = "" if cpu._add_norm_backward.stats.cache_hits else code.get_llvm_str()
print(sum(cpu._add_norm_backward.stats.cache_hits.values()), "linkonce" in text,
      *(hashlib.sha256(leaf.grad.numpy()).hexdigest() for leaf in (x, stream, weight)))
"""


@pytest.mark.slow
def test_the_process_that_compiles_computes_as_those_that_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numba alone runs another copy of a loop where it was compiled, which may add otherwise."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "code"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    command = [sys.executable, "-c", NORM]
    said = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
    (hits, shared, *first), (hits_then, _, *second) = (run.stdout.split() for run in said)
    assert (hits, hits_then, shared) == ("0", "1", "False")
    assert first == second
