"""Programs that misbehave, one of each kind: none gets further than its own folder and time."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from newllm.errors import UserError
from newllm.evaluate import sandbox
from newllm.evaluate.sandbox import Limits, require_sandbox, run_program

PATIENT = Limits(seconds=30, memory_bytes=128 * 1024**2)  # a busy machine imports for seconds
SHORT = replace(PATIENT, seconds=0.5)
FORBIDDEN = "PermissionError"
EVERY_DESCRIPTOR = """import os
{1}
    for fd in range(3, 99):
        try:
            os.write(fd, {0})
        except OSError:
            pass
os._exit(0)
"""


@pytest.fixture(scope="module", autouse=True)
def _shut_in() -> None:
    try:
        require_sandbox()
    except UserError as reason:
        pytest.skip(str(reason))


def test_a_program_runs_and_is_checked() -> None:
    program = "def double(x):\n    return 2 * x\nprint(double(2))"
    outcome = run_program(program, ["assert double(3) == 6", "assert double(3) == 7", "double()"])
    assert (outcome.ran, outcome.passed, outcome.error) == (True, 1, None)
    assert outcome.output == "4\n"


@pytest.mark.parametrize(
    "program",
    [
        "",
        "if __name__ == '__main__':\n    import sys\n    sys.exit(0)",
        "import collections, csv, datetime, decimal, hashlib, heapq, itertools, json, math, random",
        (
            "import sqlite3, zoneinfo\nsqlite3.connect(':memory:').execute('create table t (x)')\n"
            "zoneinfo.ZoneInfo('Europe/Berlin')"
        ),
        (
            "from __future__ import annotations\nfrom dataclasses import dataclass\n"
            "@dataclass\nclass Point:\n    x: int = 1\nassert Point().x == 1"
        ),
        (
            "with open('a.txt', 'w') as file:\n    file.write('one')\n"
            "import os\nassert open('a.txt').read() == 'one'\nos.rename('a.txt', 'b.txt')\n"
            "assert os.listdir('.') == ['b.txt']\nos.remove('b.txt')"
        ),
        "import tempfile\nwith tempfile.NamedTemporaryFile('w') as file:\n    file.write('x')",
        "print({'a', 'b', 'c'}, file=open('/dev/null', 'w'))",
    ],
)
def test_what_plain_programs_do_is_allowed(program: str) -> None:
    outcome = run_program(program)
    assert outcome.ran, outcome.error


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("def f(:", "SyntaxError"),
        ("x = '\0'", "SyntaxError" if sys.version_info >= (3, 11, 4) else "ValueError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("input()", "EOFError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import os\nos._exit(0)", "ended by itself with code 0"),
        ("import numpy", "ModuleNotFoundError"),
        ("import newllm", "ModuleNotFoundError"),
        ("import sandbox", "ModuleNotFoundError"),
        # time
        ("while True:\n    pass", "time limit (0.5 s)"),
        ("import time\ntime.sleep(60)", "time limit"),
        ("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass", "time"),
        ("import os\nos.closerange(0, 64)\nwhile True: pass", "time limit"),
        ("class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E", "time"),
        # memory
        ("bytearray(10**10)", "MemoryError"),
        ("x = [0]\nwhile True:\n    x += x", "MemoryError"),
        ("def f():\n    f()\nf()", "RecursionError"),
        # processes, threads, signals
        ("import threading\nthreading.Thread(target=print).start()", "RuntimeError: can't start"),
        ("import subprocess\nsubprocess.run(['ls'])", FORBIDDEN),
        ("import os\nos.execv('/bin/ls', ['ls'])", FORBIDDEN),
        ("import os\nos.posix_spawn('/bin/ls', ['ls'], {})", FORBIDDEN),
        ("import os\nos.kill(os.getppid(), 9)", FORBIDDEN),
        ("import os\nos.kill(-1, 9)", FORBIDDEN),
        ("import os, fcntl\nfcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())", FORBIDDEN),
        ("import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass", FORBIDDEN),
        # network
        ("import socket\nsocket.socket()", FORBIDDEN),
        ("import socket\nsocket.socketpair()", FORBIDDEN),
        ("import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9/')", "URLError"),
        # files
        ("open('/etc/passwd')", FORBIDDEN),
        ("open('/proc/self/environ')", FORBIDDEN),
        ("open('../out.txt', 'w')", FORBIDDEN),
        ("import os\nos.listdir('/')", FORBIDDEN),
        ("import os\nos.listdir(os.path.dirname(os.getcwd()))", FORBIDDEN),
        ("import os\nos.remove(os.__file__)", FORBIDDEN),
        ("import os\nos.open(os.__file__, os.O_RDONLY | os.O_TRUNC)", FORBIDDEN),
        ("import os\nos.chmod(os.__file__, 0)", FORBIDDEN),
        ("import os\nos.chmod('.', 0)", FORBIDDEN),
        ("import os\nos.symlink('/etc', 'etc')", FORBIDDEN),
        ("import os\nos.link(os.__file__, 'os.py')", FORBIDDEN),
        ("import os\nos.mkdir('deeper')", FORBIDDEN),
        ("import os\nos.memfd_create('x')", FORBIDDEN),
        ("open('a', 'wb').write(b'x' * 10**7)", "OSError: [Errno 27]"),
        ("for i in range(10**6):\n    open(str(i), 'w').close()", "file limit"),
        # output
        ("while True:\n    print('x' * 1000)", "output limit"),
        (EVERY_DESCRIPTOR.format("b'x' * 999", "while True:"), "wrote where"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_told_and_goes_no_further(program: str, error: str) -> None:
    limits = SHORT if error.startswith("time") else PATIENT
    outcome = run_program(program, ["assert True"], limits)
    assert not outcome.ran
    assert outcome.passed == 0
    assert outcome.error is not None
    assert outcome.error.startswith(error), outcome.error
    assert len(outcome.output) <= SHORT.output_bytes


def test_a_fork_bomb_is_no_bomb() -> None:
    """First that a single fork fails (a failure here would be harmless), then the bomb."""
    single = run_program("import os\nif os.fork() == 0:\n    os._exit(0)")
    assert single.error is not None
    assert single.error.startswith(FORBIDDEN)
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    assert run_program(bomb, limits=SHORT).error == "time limit (0.5 s)"
    assert psutil.Process().children(recursive=True) == []


def test_calls_that_python_does_not_offer_are_refused() -> None:
    """By number, and by the number of the same call's x32 twin."""
    calls = {
        "socket": 41, "socketpair": 53, "clone": 56, "fork": 57, "vfork": 58, "execve": 59,
        "kill": 62, "chmod": 90, "ptrace": 101, "prctl": 157, "mount": 165, "tkill": 200,
        "add_key": 248, "unshare": 272, "prlimit64": 302, "process_vm_writev": 311, "bpf": 321,
        "execveat": 322, "userfaultfd": 323, "memfd_create": 319, "pidfd_send_signal": 424,
        "io_uring_setup": 425, "clone3": 435, "pidfd_open": 434, "openat2": 437, "unknown": 9999,
    }  # fmt: skip
    program = f"""
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
for name, number in {calls}.items():
    for twin in (number, number | 0x40000000):
        result = libc.syscall(ctypes.c_long(twin), 0, 0, 0, 0, 0, 0)
        assert (result, ctypes.get_errno()) == (-1, errno.EPERM), name
"""
    outcome = run_program(program, limits=SHORT)
    assert outcome.ran, outcome.error


def test_nothing_outside_is_deleted(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("kept")
    path = str(precious)
    attempts = [f"os.remove({path!r})", f"os.rename({path!r}, 'mine')",
                f"os.replace('own', {path!r})", f"os.truncate({path!r}, 0)",
                f"open({path!r}, 'w')", f"shutil.rmtree({str(tmp_path)!r})"]  # fmt: skip
    program = "import os, shutil\nopen('own', 'w').close()\n" + "".join(
        f"try:\n    {attempt}\nexcept OSError:\n    pass\n" for attempt in attempts
    )
    assert run_program(program).ran
    assert precious.read_text() == "kept"


def test_nothing_is_left_behind() -> None:
    outcome = run_program("import os\nopen('x', 'w').close()\nprint(os.getcwd())")
    folder = Path(outcome.output.strip())
    assert folder.is_absolute()
    assert not folder.exists()


def test_no_secret_of_this_process_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    assert "hunter2" not in run_program("import os\nprint(dict(os.environ))").output


def test_the_same_answer_runs_in_the_same_way() -> None:
    program = "print({'one', 'two', 'three', 'four', 'five'})"
    assert len({run_program(program).output for _ in range(4)}) == 1


def test_a_report_cannot_be_written_by_guessing() -> None:
    line = b'{"token": "", "ran": true, "passed": 1}\n'
    fake = EVERY_DESCRIPTOR.format(line, "if True:")
    outcome = run_program(fake, ["assert False"])
    assert (outcome.ran, outcome.passed) == (False, 0)


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("linux", "aarch64")])
def test_other_systems_refuse(system: str, machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(sandbox, "run_program", lambda program: pytest.fail("was run"))
    with pytest.raises(UserError, match="leave --run-code out"):
        require_sandbox()


def test_a_kernel_that_cannot_shut_in_refuses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing is run unprotected: the child stops before the program."""
    source = sandbox._CHILD.read_text(encoding="utf-8")
    child = tmp_path / "child.py"
    child.write_text(source.replace("LEAST_LANDLOCK = 3", "LEAST_LANDLOCK = 999"))
    monkeypatch.setattr(sandbox, "_CHILD", child)
    marker = tmp_path / "ran"
    with pytest.raises(UserError, match=r"Landlock: version \d+, needed 999"):
        run_program(f"open({str(marker)!r}, 'w')")
    assert not marker.exists()
    assert os.listdir(tmp_path) == ["child.py"]
