"""What the processes do that are struck: small, and the same every time."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import io
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import newllm.cli
from newllm.chat.session import ChatSession
from newllm.cli import main
from newllm.curriculum import practise as practice
from newllm.curriculum.climb import climb
from newllm.errors import UserError
from newllm.inference.sampling import Sampling
from newllm.results.climb import ClimbConfig
from newllm.results.marks import Mark, add_marks
from newllm.results.stages import Practice
from newllm.serve.schemas import ApiError
from newllm.serve.store import Session, SessionStore
from newllm.train.trainer import Trainer
from newllm.trained import TrainedModel
from tests.faults.scenarios import SCENARIOS, best, write_rows
from tests.train.launched import with_mishaps


def warm() -> None:
    """Do once what the forked processes will do: then every kernel is loaded."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        os.environ["NEWLLM_CACHE"] = str(folder / "cache")
        rows = write_rows(folder / "rows")
        assert command(*SCENARIOS["train"].arguments(rows, folder)) == 0
        shutil.move(folder / "out", folder / "model")
        assert session(best(folder), str(folder / "a.session")) == 0


def command(*arguments: str) -> int:
    """A command line; what it prints goes where a terminal would show it."""
    sys.argv = ["newllm", *arguments]
    return main(arguments)


def _as_command(verb: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """What such a work raises becomes what the command line makes of it, of that verb."""

    def decorate(work: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(work)
        def run(*arguments: str) -> int:
            with unittest.mock.patch.object(
                newllm.cli, "_run", side_effect=lambda _: work(*arguments)
            ):
                return main([verb])

        return run

    return decorate


@_as_command("chat")
def session(checkpoint: str, file: str) -> int:
    """One turn more of a conversation, saved over the one before."""
    model = TrainedModel.load(checkpoint, "cpu")
    path = Path(file)
    chat = model.resume_chat(path) if path.exists() else model.chat(Sampling(seed=1))
    chat.say("hello", 4)
    chat.save(path)
    return 0


@_as_command("climb")
def climbed(rows: str, out: str, *resume: str) -> int:
    """One model through two levels; it grows on the way."""
    settings = {
        "context_dim": 64, "embed_dim": 16, "hidden_dim": 24, "pair_rows": 16, "vocab_size": 320,
        "batch_size": 8, "max_seq_length": 32, "epochs": 1, "device": "cpu",
    }  # fmt: skip
    climb(ClimbConfig(["dolly", "ultrachat"], rows, out, settings), bool(resume))
    return 0


@_as_command("practise")
def practised(file: str, rows: str, out: str, *resume: str) -> int:
    """A round of shown sums and one of practice, with rows of before among them."""
    replay = f"dolly={rows}/dolly"
    plan = Practice(
        file, shown=4, rounds=1, problems=2, samples=1, tested=2, replay=replay, out=out,
        device="cpu",
    )  # fmt: skip
    setattr(practice, "_SHOWN_EPOCHS", 2)  # noqa: B010 (in this process alone)
    practice.practise(plan, bool(resume))
    return 0


def sharded(*arguments: str) -> int:
    """A command in two processes that share a model; of process 0, which this one is, the other
    one's end is its end, as a launcher sees to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "RANK": "0", "LOCAL_RANK": "0"}  # fmt: skip
    main_process = os.getpid()
    other = os.fork()
    if other == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != main_process:
            os._exit(1)
        os.environ |= {"RANK": "1", "LOCAL_RANK": "1"}
        code = 70
        try:
            code = command(*arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            os._exit(code)
    ended_well = False
    try:
        code = command(*arguments)
        ended_well = code == 0
        return code
    finally:
        if not ended_well:  # what this process has open is open still: the other would wait for it
            os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)


def killed(steps: str, seconds: str, *arguments: str) -> int:
    """A command that is killed from outside, so many seconds after so many steps of its own."""
    original: Any = Trainer._timed_step
    victim, left = os.getpid(), int(steps)

    def struck(self: Trainer, *rest: Any) -> None:
        nonlocal left
        original(self, *rest)
        left -= 1
        if left == 0 and os.fork() == 0:
            os.closerange(0, 1024)  # the lock of the run, too
            time.sleep(float(seconds))
            if os.getppid() == victim:
                os.kill(victim, signal.SIGKILL)
            os._exit(0)

    setattr(Trainer, "_timed_step", struck)  # noqa: B010 (a method, in this process alone)
    return command(*arguments)


def launched(processes: str, *arguments: str) -> int:
    """A command in so many processes, under the agent that `torchrun` runs, which forks here."""
    signal.alarm(_LONGEST_LAUNCH)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=int(processes), run_id="test",
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, start_method="fork",
    )  # fmt: skip
    try:
        elastic_launch(config, _one_of_several)(*arguments)
    except ChildFailedError as error:
        print(error)
        return 1
    return 0


def _one_of_several(*arguments: str) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # which the agent handles
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with_mishaps()
    sys.exit(command(*arguments))


_LONGEST_LAUNCH = 300
"""Seconds."""
_PR_SET_PDEATHSIG = 1
TURNS = 3
"""Turns of the conversation that `served` keeps."""


@_as_command("serve")
def served(checkpoint: str, folder: str) -> int:
    """A server's store: one conversation gets its turns, another is begun, undone and deleted.

    What was said to be written is noted beside the folder, and has to be there at the next start.
    """
    model = TrainedModel.load(checkpoint, "cpu")
    noted = Path(folder).with_name("noted")
    try:
        return asyncio.run(_served(model, Path(folder), noted))
    except ApiError as error:  # which a client is told
        raise UserError(str(error)) from error


async def _served(model: TrainedModel, folder: Path, noted: Path) -> int:
    store = SessionStore({model.fingerprint: ("tiny", model)}, 4, 4, folder)
    store.start()

    async def say(session: Session, text: str) -> None:
        dialogue = store.get(session.id)[1]
        chat = ChatSession(model.decoder, model.renderer, dialogue.sampling)
        chat.dialogue = dialogue
        chat.say(text, 4)
        await changed(session)

    async def changed(session: Session) -> None:
        store.changed(session)
        while store.unsaved:
            if store.failure:
                raise UserError(store.failure)
            await asyncio.sleep(0.0005)

    try:
        kept: Session | None = None
        for session in (await store.page(9, None, ""))[0]:
            if session.facts["title"] == "turn 0":
                kept = session
            else:  # begun, and nothing was said to be written
                await store.delete(session.id)
        promised = int(noted.read_text()) if noted.exists() else 0
        turns = kept.facts["messages"] // 2 if kept else 0
        if turns < promised:
            print(f"{promised} turns were written, {turns} are there")
            return 1
        kept = kept or store.add("tiny", model.chat(Sampling(seed=1)).dialogue)
        for number in range(turns, TURNS):
            await say(kept, f"turn {number}")
            noted.write_text(str(number + 1))
        other = store.add("tiny", model.chat(Sampling(seed=2)).dialogue)
        await say(other, "another")
        store.get(other.id)[1].undo()
        await changed(other)
        await store.delete(other.id)
        return 0
    finally:
        await store.stop()


@_as_command("measure-marks")
def marks(dataset: str) -> int:
    """One measured mark more."""
    mark = Mark(dataset, "rows", 1.5, 1000, 1.0, {"0.001": 1.5}, "here", "today", "command")
    add_marks([mark])
    return 0


def terminated_twice(step: str, *arguments: str) -> int:
    """A command that gets SIGTERM twice within one step of its training."""
    original: Any = Trainer._timed_step

    def struck(self: Trainer, *rest: Any) -> None:
        if self.progress.total_steps == int(step):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        original(self, *rest)

    setattr(Trainer, "_timed_step", struck)  # noqa: B010 (a method, in this process alone)
    return command(*arguments)
