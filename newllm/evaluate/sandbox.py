"""Runs an untrusted program, a model's answer, in a sandboxed process.

Every program gets a fresh Python process, without site packages and without this one's environment
variables, in an empty temporary folder that is deleted afterwards. It ends by itself or is killed.

What the Linux kernel keeps it from (`sandbox_child.py`; x86-64, Linux 6.2 or newer, no privileges
needed, as root too):

* other processes: it can start none, so there is no fork bomb and nothing is left behind (threads
  are processes to the kernel: there are none either), and it can send no signal;
* the network, and every other socket;
* files: it reads Python's and the system's libraries and its own folder, writes and deletes in its
  folder alone, one megabyte a file, some dozens of files, no folders in it;
* time, memory, output: killed at the limit, refused beyond it.

What it does not protect from: faults of the kernel itself or of the processor; a program that
takes its share of processor time and memory up to the limits; and an answer that sets out to cheat:
the checks run in its own process, so it could look at them, or report success by itself. It is
made for what small models write by accident, not for what an attacker writes on purpose: for that,
use a virtual machine.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import secrets
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from newllm.errors import UserError

PROTECTED_FROM = (
    "each answer ran in a process of its own, without network, other processes or files outside an "
    "empty folder, with limits of time, memory and output"
)
NOT_PROTECTED_FROM = "faults of the Linux kernel; answers made to fake their own checks"
"""What the commands say beside results; the whole of it is above."""

_CHILD = Path(__file__).with_name("sandbox_child.py")
_WATCH_SECONDS = 0.05
_START_SECONDS = 60.0
"""Until the process has sandboxed itself; only then the program's own time begins."""


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    seconds: float = 5.0
    """From its start to its end; it never has more than one thread, so processor time is less."""
    memory_bytes: int = 512 * 1024**2
    """Of address space; an allocation beyond it fails with MemoryError."""
    file_bytes: int = 1024**2
    """Of one file."""
    files: int = 64
    """In its folder; killed soon after there are more."""
    output_bytes: int = 64 * 1024
    """Printed; killed beyond it."""


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    ran: bool
    """It came to its end, or to sys.exit(0), without an error and within its limits."""
    passed: int
    """Checks that held."""
    error: str | None
    """Why it did not run to its end: the exception, or the limit it met."""
    output: str
    """What it printed, up to the limit (stdout alone)."""


def require_sandbox() -> None:
    """Make sure that programs can be sandboxed on this machine.

    Raises:
        UserError: they cannot; nothing was run.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        system = f"{platform.system()} on {platform.machine()}"
        raise UserError(
            f"--run-code: answers can be shut in on Linux on x86-64 alone, and this is {system}; "
            "leave --run-code out (whether they parse is checked everywhere)"
        )
    run_program("")


def run_program(program: str, checks: Sequence[str] = (), limits: Limits | None = None) -> Outcome:
    """Run Python source, then statements that should hold after it, sandboxed.

    Args:
        program: source; stdin is empty, the standard library is all there is to import.
        checks: statements (asserts), each run in the program's namespace once it has run.
        limits: what it may use.

    Raises:
        UserError: the kernel cannot shut it in; it was not run.
    """
    limits = limits or Limits()
    token = secrets.token_hex(16)
    reader, writer = os.pipe()
    with (
        tempfile.TemporaryDirectory(prefix="newllm-answer-") as folder,
        open(reader, "rb", buffering=0) as reports,
    ):
        try:
            process = _start(folder, writer)
        finally:
            os.close(writer)
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            request = {
                "program": program,
                "checks": list(checks),
                "token": token,
                "report": writer,
                "limits": {
                    "RLIMIT_AS": limits.memory_bytes,
                    "RLIMIT_FSIZE": limits.file_bytes,
                    "RLIMIT_NOFILE": 32,
                    "RLIMIT_CORE": 0,
                    "RLIMIT_CPU": math.ceil(limits.seconds) + 2,  # in case this process has ended
                },
            }
            watch = _Watch(process, process.stdout, reports, token)
            try:
                with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
                    stdin.write(json.dumps(request).encode())
                stopped = watch.until_the_end(folder, limits)
            finally:
                process.kill()  # it is alone: there is nothing else to end
    return watch.outcome(stopped, limits)


def _start(folder: str, report: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        # Not -I: it would ignore PYTHONHASHSEED, and the same answer could run in two ways. The
        # rest of it is here: no site packages, none of our variables, and the script takes its own
        # folder from sys.path.
        [sys.executable, "-s", "-S", "-B", str(_CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        pass_fds=[report],
        start_new_session=True,
        cwd=folder,
        env={"PYTHONHASHSEED": "0", "TMPDIR": folder, "HOME": folder, "LC_ALL": "C.UTF-8"},
    )


class _Watch:
    """Reads what a process prints and reports, until it ends or meets a limit."""

    def __init__(
        self, process: subprocess.Popen[bytes], output: IO[bytes], reports: IO[bytes], token: str
    ) -> None:
        self._process, self._token = process, token
        self._open = selectors.DefaultSelector()
        self._received: dict[str, bytearray] = {"output": bytearray(), "report": bytearray()}
        self._open.register(output, selectors.EVENT_READ, "output")
        self._open.register(reports, selectors.EVENT_READ, "report")

    def until_the_end(self, folder: str, limits: Limits) -> str | None:
        """Wait for the end of the process; the limit it met, or None. It may still be alive."""
        with self._open:
            deadline, ready = time.monotonic() + _START_SECONDS, False
            while self._open.get_map() or self._process.poll() is None:
                if not ready and self._facts():
                    deadline, ready = time.monotonic() + limits.seconds, True
                left = deadline - time.monotonic()
                if left <= 0:
                    return f"time limit ({limits.seconds:g} s)"
                self._read(min(left, _WATCH_SECONDS))
                if len(self._received["output"]) > limits.output_bytes:
                    return f"output limit ({limits.output_bytes:,} bytes)"
                if len(self._received["report"]) > limits.output_bytes:
                    return "wrote where it has nothing to write"
                if len(os.listdir(folder)) > limits.files:
                    return f"file limit ({limits.files} files)"
        return None

    def _read(self, seconds: float) -> None:
        if not self._open.get_map():  # it closed its ends, but lives on
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        for key, _ in self._open.select(seconds):
            part = os.read(key.fd, 65536)
            if part:
                self._received[key.data] += part
            else:
                self._open.unregister(key.fileobj)

    def _facts(self) -> dict[str, Any]:
        """All that was reported so far, by lines that carry the token."""
        facts: dict[str, Any] = {}
        for line in bytes(self._received["report"]).split(b"\n")[:-1]:
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                if isinstance(said, dict) and said.pop("token", None) == self._token:
                    facts |= said
        return facts

    def outcome(self, stopped: str | None, limits: Limits) -> Outcome:
        """What the reports say, or what ended the process without one."""
        facts = self._facts()
        if "ready" not in facts:
            reason = facts.get("refused") or stopped or f"exit code {self._process.returncode}"
            raise UserError(
                f"--run-code: answers cannot be shut in on this machine ({reason}); leave "
                "--run-code out (whether they parse is checked everywhere)"
            )
        code = self._process.returncode
        died = f"killed by signal {-code}" if code < 0 else f"ended by itself with code {code}"
        error = stopped or (facts["error"] if "ran" in facts else died)
        text = bytes(self._received["output"][: limits.output_bytes])
        return Outcome(
            ran=stopped is None and facts.get("ran") is True,
            passed=facts.get("passed", 0) if stopped is None else 0,
            error=error,
            output=text.decode("utf-8", errors="replace"),
        )
