"""A process that has imported everything and forks one child a job: hundreds of kills a minute.

`Jobs` is the side of the tests; `python -m tests.faults.forkserver` the other. A job is a line of
JSON on the server's standard input, its result one on the standard output.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """How a job ended."""

    code: int
    """As of `subprocess`: negative for a signal."""
    points: list[str]
    """The points it passed, the last one being where it was struck."""
    output: str


class Jobs:
    """Runs jobs, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
            "NUMBA_THREADING_LAYER": "workqueue",  # the only one that survives a fork
        }  # fmt: skip
        self._folder = folder
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forkserver"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip

    def run(
        self,
        work: str,
        arguments: Sequence[str],
        cache: Path,
        watched: Sequence[Path] = (),
        at: int = 0,
        fault: str = "kill",
        environment: Mapping[str, str] | None = None,
    ) -> Result:
        """Run one job.

        Args:
            work: name of a function in `tests.faults.work`.
            arguments: that it is called with.
            cache: `NEWLLM_CACHE` of the process.
            watched: folders whose changes are points.
            at: the point at which the fault comes; 0 for none.
            fault: see :class:`Injector`; or `moment`: killed after `at` milliseconds.
            environment: variables that the process has besides.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        output, points = self._folder / "output", self._folder / "points"
        job = {
            "work": work, "arguments": list(arguments), "cache": str(cache), "at": at,
            "watched": [str(folder) for folder in watched], "fault": fault,
            "output": str(output), "points": str(points), "environment": dict(environment or {}),
        }  # fmt: skip
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the server of the jobs is gone"
        text = output.read_text(encoding="utf-8", errors="replace")
        return Result(json.loads(answer), points.read_text().splitlines(), text)

    def load(self, modules: Sequence[str]) -> None:
        """Import modules in the server, once for all jobs that follow."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps({"load": list(modules)}) + "\n")
        self._server.stdin.flush()

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(30)


def with_own_lock() -> None:
    """In a forked process: a lock of its own for numba's start of threads.

    It is a semaphore that forked processes share: one that is killed while it holds it would lock
    out all that come after.
    """
    from numba.np.ufunc import parallel

    parallel._set_init_process_lock()


def _child(job: dict[str, Any]) -> int:
    """What happens in the forked process; returns its exit code."""
    from tests.faults import work
    from tests.faults.inject import Injector

    with_own_lock()
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    points = os.open(job["points"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.environ |= {"NEWLLM_CACHE": job["cache"], **job["environment"]}
    if job["fault"] == "moment":
        signal.setitimer(signal.ITIMER_REAL, job["at"] / 1000)  # SIGALRM, which nobody handles
    elif job["watched"]:

        def record(name: str) -> None:
            os.write(points, f"{name}\n".encode())

        Injector(job["watched"], job["at"], job["fault"], record).install()
    return getattr(work, job["work"])(*job["arguments"])


def _serve() -> None:
    from tests.faults import work

    work.warm()
    gc.collect()
    gc.freeze()  # else the first collection of every child copies all that it looks at
    channel = os.dup(1)
    for line in sys.stdin:
        job = json.loads(line)
        if "load" in job:
            for module in job["load"]:
                importlib.import_module(module)
            continue
        process = os.fork()
        if process == 0:
            code = 70
            try:
                code = _child(job)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(process, 0)
        os.write(channel, f"{os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    _serve()
