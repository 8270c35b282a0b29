"""A server killed at random moments of talk: what was said two seconds before is on disk.

Two seconds in which it has a processor: see `RunDelay`.

Told to stop (SIGTERM, SIGHUP, Ctrl-C, also twice), it loses nothing that any client has heard. The
next server goes on from the same folder. `--all-faults` kills a thousand times, else a few.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from newllm.datasets.conversations import Conversation, Message
from newllm.trained import TrainedModel
from tests.faults.talk import PROMISED, Client, Talk, Turn, transcript
from tests.faults.talk_server import RunDelay, Servers
from tests.serve.serving import tiny_model
from tests.untrained import save_model

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the harness forks")

FOLDERS, CLIENTS = 4, 3
ENDS, QUICK = 1000, 20
LIFE = 3.5
"""Seconds of talk before the end, at most."""

KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
TOLD = [[TERM], [INT], [signal.SIGHUP], [TERM, TERM], [INT, INT]]
"""Signals that tell the server to stop."""
STRUCK = [[signal.SIGQUIT], [signal.SIGABRT], [signal.SIGSEGV], [KILL], [TERM, KILL]]
"""Signals that end it where it is; the last one while it is stopping."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(save_model(tiny_model(), tmp_path_factory.mktemp("model") / "tiny.pt"))
    yield servers
    servers.close()


@pytest.mark.slow
def test_killed_while_there_is_talk(
    servers: Servers, tmp_path: Path, tried: Callable[[str], None], request: pytest.FixtureRequest
) -> None:
    count = ENDS if request.config.getoption("--all-faults") else QUICK
    kinds = [*STRUCK, *TOLD]
    ends = [[KILL] if n % 2 else kinds[n // 2 % len(kinds)] for n in range(count)]
    random.Random(0).shuffle(ends)
    stop = threading.Event()
    with ThreadPoolExecutor(FOLDERS) as pool:
        parts = [ends[n::FOLDERS] for n in range(FOLDERS)]
        work = [
            pool.submit(many_ends, servers, tmp_path / str(n), part, n, tried, stop)
            for n, part in enumerate(parts)
        ]
        done, _ = wait(work, return_when=FIRST_EXCEPTION)
        stop.set()
        for each in done:
            each.result()
    turns = sum(each.result() for each in work)
    assert turns > count, "hardly anything was said"
    for _ in range(turns):
        tried("turns heard to their end")


def many_ends(
    servers: Servers, folder: Path, ends: list[list[signal.Signals]], seed: int,
    tried: Callable[[str], None], stop: threading.Event,
) -> int:  # fmt: skip
    """Servers on one folder, each ended by some signals, until told to stop.

    Returns:
        how many turns were heard.
    """
    folder.mkdir()
    model, chance = TrainedModel.load(servers.checkpoint, "cpu"), random.Random(seed)
    clients = [Client(random.Random(100 * seed + n)) for n in range(CLIENTS)]
    for numbers in ends:
        if stop.is_set():
            break
        server = servers.start(folder / "sessions", folder / "output")
        talking = [client.talk(server.url) for client in clients]
        delay = RunDelay(server.process)
        delay.watch(chance.uniform(0, LIFE))
        until = delay.moment_before(PROMISED)
        os.kill(server.process, numbers[0])
        for number in numbers[1:]:
            delay.watch(chance.uniform(0, 1))
            if servers.ended(server) is None:
                until = delay.moment_before(PROMISED)
                os.kill(server.process, number)
        code = servers.wait(server)
        for thread in talking:
            thread.join(60)
            assert not thread.is_alive()
        name = " ".join(number.name for number in numbers)
        where = f"{name}, exit code {code}\n{server.output.read_text(errors='replace')}"
        for client in clients:
            assert client.error is None, f"{where}\n{client.error!r}"
        # One that was told to stop has saved all that anyone heard, until its last moment.
        if code > 0:
            until = time.monotonic()
        faults = [f for client in clients for f in client.look(folder / "sessions", model, until)]
        assert not faults, where + "\n".join(faults)
        for file in (folder / "sessions").glob("*.session"):
            transcript(file, model)  # also those of which no client knows
        expected = {128 + numbers[0]} if numbers[0] in (TERM, INT, signal.SIGHUP) else set()
        assert code in expected | ({-numbers[-1]} if numbers in STRUCK else set()), where
        assert "Traceback" not in where, where
        tried(f"ends by {name}")
        if code < 0 and delay.looks[-1][0] - until > PROMISED + 0.5:
            tried("ends of servers that had waited for a processor for half a second or more")
    return sum(client.turns for client in clients)


def test_what_counts_as_lost() -> None:
    """An answer heard at 1.0 and 3.0, ended at 4.0; on disk has to be what was heard until then."""
    asked: Message = {"role": "user", "content": "say 1"}
    heard = [(1.0, "ab"), (3.0, "abcd")]

    def found(answer: str) -> Conversation:
        return [asked, {"role": "assistant", "content": answer}]

    ended = Talk("x", [(0.0, []), (4.0, found("abcde"))], turns=[Turn([], "say 1", heard, 4.0)])
    writing = Talk("x", [(0.0, [])], doing="saying", question="say 1", heard=heard)
    for talk in (ended, writing):
        assert talk.fault(found("abc"), until=2.0) is None
        assert talk.fault(found("abcde"), until=3.5) is None
        assert talk.fault(found("abc"), until=3.5)
        assert talk.fault(found("x"), until=2.0)
        assert talk.fault([], until=2.0)
    assert ended.fault([], until=0.5) is None
    assert ended.fault(found("abcd"), until=5.0)


def test_moments_without_a_processor_are_not_counted() -> None:
    delay = RunDelay(os.getpid())
    delay.looks = [(0.0, {"1": 5.0, "2": 0.0}), (4.0, {"1": 5.0, "2": 0.0})]
    assert delay.moment_before(2) == 2
    delay.looks += [(6.0, {"1": 5.5, "2": 1.0, "3": 0.5})]  # it had one second of these two
    assert delay.moment_before(0.5) == 5
    assert delay.moment_before(2) == 3
    assert delay.moment_before(7) == -2
    delay.looks += [(7.0, {"1": 6.5, "2": 1.0, "3": 0.5})]  # none of this one
    assert delay.moment_before(0.5) == 5


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="a kernel without counts")
def test_the_seconds_a_process_waits_are_seen() -> None:
    """Two processes that want the whole of one processor each get half of it."""
    both = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        for process in both:
            os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
        delay = RunDelay(both[0].pid)
        delay.watch(1)
        assert delay.looks[-1][0] - delay.moment_before(0.1) > 0.15
    finally:
        for process in both:
            process.kill()
            process.wait()
