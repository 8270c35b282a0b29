"""Forks servers of a tiny model, each on a folder of conversations: one starts in milliseconds.

`Servers` is the side of the tests; `python -m tests.faults.talk_server` the other. The model takes
a few milliseconds a token, as larger ones do, so that an answer can be cut off at any moment.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

TOKEN_SECONDS = 0.004
IN_MEMORY = 4
"""Conversations in memory: the others go to the folder and come back while there is talk."""


@dataclass
class Started:
    """A server that answers."""

    process: int
    url: str
    output: Path
    """What it prints."""
    code: int | None = None
    """How it ended, once that is known."""


class Servers:
    """Starts them; may be used by several threads."""

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint
        """The model that they serve."""
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1",
            "NUMBA_THREADING_LAYER": "workqueue",  # the only one that survives a fork
        }  # fmt: skip
        self._lock = threading.Lock()
        self._started: list[Started] = []
        self._forking = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.talk_server", self.checkpoint],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip

    def start(self, folder: Path, output: Path) -> Started:
        """A server on this folder, which answers when this returns."""
        output.write_bytes(b"")
        process = self._ask({"folder": str(folder), "output": str(output)})
        deadline = time.monotonic() + 60
        while " at http" not in (told := output.read_text(errors="replace")):
            assert time.monotonic() < deadline, told
            assert self._ask({"ended": process}) is None, told
            time.sleep(0.005)
        self._started.append(Started(process, told.split(" at ")[1].split()[0], output))
        return self._started[-1]

    def ended(self, server: Started) -> int | None:
        """Its exit code, as `subprocess` says it; None if it has not ended."""
        if server.code is None:
            server.code = self._ask({"ended": server.process})
        return server.code

    def wait(self, server: Started) -> int:
        """The same when it has ended."""
        deadline = time.monotonic() + 60
        while (code := self.ended(server)) is None:
            assert time.monotonic() < deadline, server.output.read_text(errors="replace")
            time.sleep(0.005)
        return code

    def close(self) -> None:
        """Start none any more, and end those that a failed test has left."""
        for server in self._started:
            if server.code is None:
                with suppress(ProcessLookupError):
                    os.kill(server.process, signal.SIGKILL)
        assert self._forking.stdin is not None
        self._forking.stdin.close()
        self._forking.wait(30)

    def _ask(self, what: dict[str, Any]) -> Any:
        assert self._forking.stdin is not None
        assert self._forking.stdout is not None
        with self._lock:
            self._forking.stdin.write(json.dumps(what) + "\n")
            self._forking.stdin.flush()
            answer = self._forking.stdout.readline()
        assert answer, "the process that forks is gone"
        return json.loads(answer)


class RunDelay:
    """How long the threads of a process waited for a processor: Linux's run delay (`schedstat`).

    A server that is given none writes nothing either: such moments are not counted in what is
    promised.
    """

    def __init__(self, process: int) -> None:
        self._tasks = Path(f"/proc/{process}/task")
        self.looks: list[tuple[float, dict[str, float]]] = []
        """When it was looked, and the seconds that each thread had waited until then."""
        self._look()

    def watch(self, seconds: float) -> None:
        """Go on looking for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
            self._look()

    def moment_before(self, seconds: float) -> float:
        """The moment since which the process had so many seconds, without those it waited.

        Those of the thread that waited longest, between one look and the next. If it had fewer
        since the first look: so many seconds before that one.
        """
        had = 0.0
        for (begin, before), (end, after) in reversed(list(pairwise(self.looks))):
            waited = max((now - before.get(t, 0.0) for t, now in after.items()), default=0.0)
            ran = max(0.0, end - begin - waited)
            if had + ran >= seconds:
                return end - (seconds - had) * (end - begin) / ran
            had += ran
        return self.looks[0][0] - (seconds - had)

    def _look(self) -> None:
        waited = {}
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread has ended, or all have
            for task in self._tasks.iterdir():
                with suppress(FileNotFoundError, ProcessLookupError):
                    waited[task.name] = int((task / "schedstat").read_text().split()[1]) / 1e9
        self.looks.append((time.monotonic(), waited))


def _serve(asked: dict[str, Any], checkpoint: str) -> int:
    """What happens in the forked process; returns its exit code."""
    import resource

    from newllm.cli import main
    from newllm.inference.engine import Engine
    from tests.faults.forkserver import with_own_lock

    with_own_lock()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGHUP, signal.SIGQUIT):  # ignored below nohup, and behind a shell's &
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output = os.open(asked["output"], os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(output, stream)
    at_once = Engine._write

    def slowly(self: Engine) -> None:
        at_once(self)
        time.sleep(TOKEN_SECONDS)

    setattr(Engine, "_write", slowly)  # noqa: B010 (a method, in this process alone)
    limits = ["--max-sessions", str(IN_MEMORY), "--device", "cpu", "--port", "0"]
    return main(["serve", checkpoint, "--sessions-dir", asked["folder"], *limits])


def _fork() -> None:
    import torch

    import newllm.serve.app  # noqa: F401 (once for all that are forked)
    from newllm.inference.sampling import Sampling
    from newllm.trained import TrainedModel

    torch.set_num_threads(1)
    checkpoint = sys.argv[1]
    TrainedModel.load(checkpoint, "cpu").chat(Sampling(0)).say("a", 2)
    channel = os.dup(1)
    for line in sys.stdin:
        asked = json.loads(line)
        answer: int | None = None
        if "folder" in asked:
            answer = os.fork()
            if answer == 0:
                code = 70
                try:
                    code = _serve(asked, checkpoint)
                except BaseException:
                    import traceback

                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    os._exit(code)
        else:
            process, status = os.waitpid(asked["ended"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if process else None
        os.write(channel, f"{json.dumps(answer)}\n".encode())


if __name__ == "__main__":
    _fork()
