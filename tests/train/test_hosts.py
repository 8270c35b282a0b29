"""Two network namespaces joined by a virtual cable, as two hosts: torchrun over both.

Skipped where a test may not make namespaces: they need Linux, iproute2 and root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_distributed import FLAGS as LONGER
from test_distributed import TOLERANCE, records

from newllm.train.run import train

ADDRESS = "10.77.0.{}"
FLAGS = {**LONGER, "epochs": 1}
ROOT = Path(__file__).resolve().parents[2]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[str, str]]:
    """Names of two namespaces; each has its end of the cable, of its own name."""
    first, second = (f"newllm{os.getpid()}{end}" for end in "ab")
    if shutil.which("ip") is None:
        pytest.skip("no iproute2")
    try:
        try:
            for name in (first, second):
                _ip("netns", "add", name)
            cable = "cable", "type", "veth", "peer", "cable", "netns", second
            _ip("-n", first, "link", "add", *cable)
            for number, name in enumerate((first, second), start=1):
                _ip("-n", name, "address", "add", f"{ADDRESS.format(number)}/24", "dev", "cable")
                for device in ("lo", "cable"):
                    _ip("-n", name, "link", "set", device, "up")
                _ip("netns", "exec", name, "true")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces: {error.stderr.decode().strip()}")
        yield first, second
    finally:
        for name in (first, second):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def train_on(
    hosts: tuple[str, str], data: Path, outs: tuple[Path, Path], *more: str, each: int = 1
) -> list[str]:
    """Train in so many processes on each host; what both printed.

    Raises:
        AssertionError: one of them failed.
    """
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in FLAGS.items()]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    started = []
    for rank, (host, out) in enumerate(zip(hosts, outs, strict=True)):
        command = [
            "ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run",
            "--nnodes=2", f"--node-rank={rank}", f"--nproc-per-node={each}",
            f"--master-addr={ADDRESS.format(1)}", "--master-port=29511",
            str(Path(__file__).with_name("launched.py")), "train", "dolly", *flags,
            "--data", str(data), "--out", str(out), *more,
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "cable"}
        started.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        printed = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(printed)
    return printed


def assert_alike(one: Path, other: Path) -> None:
    for mine, theirs in zip(records(one), records(other), strict=True):
        assert mine["trained_tokens"] == theirs["trained_tokens"]
        for name in ("train_loss", "loss", "bpb"):
            assert mine[name] == pytest.approx(theirs[name], rel=TOLERANCE), name


@pytest.fixture(scope="module")
def alone(shared_dolly_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process leaves."""
    out = tmp_path_factory.mktemp("alone") / "out"
    train("dolly", {**FLAGS, "data": str(shared_dolly_folder), "out": str(out)})
    return out


@pytest.mark.slow
def test_two_hosts_train_as_one_process(
    hosts: tuple[str, str], alone: Path, shared_dolly_folder: Path, tmp_path: Path
) -> None:
    """Each host has a folder of its own; files are written on the first alone."""
    outs = tmp_path / "first", tmp_path / "second"
    first, second = train_on(hosts, shared_dolly_folder, outs)
    assert "2 processes" in first
    assert "Epoch" not in second
    assert_alike(outs[0], alone)
    assert {path.name for path in outs[0].iterdir()} == {path.name for path in alone.iterdir()}
    assert not outs[1].exists() or not list(outs[1].iterdir())


@pytest.mark.slow
def test_two_hosts_share_a_model(
    hosts: tuple[str, str], alone: Path, shared_dolly_folder: Path, tmp_path: Path
) -> None:
    """Two processes on each, and a folder that both see."""
    outs = tmp_path / "out", tmp_path / "out"
    first, _ = train_on(hosts, shared_dolly_folder, outs, "--shard", "--save-minutes=9", each=2)
    assert "4 processes, sharded" in first
    assert_alike(outs[0], alone)
