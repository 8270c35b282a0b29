"""The other side of `sandbox.py`: sandboxes itself, then executes a program it was given.

Run as a script in a process of its own, with the standard library alone. It gives up, one after
the other and for good, memory and file sizes (`setrlimit`), every file but its folder and the
libraries (Landlock), and every system call that a plain computation does not need (a seccomp
filter). What the kernel then refuses, no Python trick brings back.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import struct
import sys
import types
from collections.abc import Callable
from typing import Any

LEAST_LANDLOCK = 3
"""The first version that also guards against truncating files (Linux 6.2)."""

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38

# -- system calls, by their numbers on x86-64 ----------------------------------------------------

_ALLOWED = {
    "read": 0, "write": 1, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8,
    "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14,
    "rt_sigreturn": 15, "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "access": 21,
    "pipe": 22, "select": 23, "sched_yield": 24, "mremap": 25, "madvise": 28, "dup": 32, "dup2": 33,
    "nanosleep": 35, "alarm": 37, "setitimer": 38, "getpid": 39, "sendfile": 40, "exit": 60,
    "uname": 63, "fsync": 74, "fdatasync": 75, "ftruncate": 77, "getcwd": 79, "chdir": 80,
    "rename": 82, "unlink": 87, "readlink": 89, "umask": 95, "gettimeofday": 96, "getrusage": 98,
    "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108,
    "getppid": 110, "getpgrp": 111, "sigaltstack": 131, "gettid": 186, "time": 201, "futex": 202,
    "sched_getaffinity": 204, "getdents64": 217, "restart_syscall": 219, "clock_gettime": 228,
    "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "openat": 257,
    "newfstatat": 262, "unlinkat": 263, "renameat": 264, "readlinkat": 267, "faccessat": 269,
    "pselect6": 270, "ppoll": 271, "set_robust_list": 273, "dup3": 292, "pipe2": 293,
    "renameat2": 316, "getrandom": 318, "membarrier": 324, "statx": 332, "rseq": 334,
    "close_range": 436, "faccessat2": 439,
}  # fmt: skip
"""All others fail with "not permitted": new processes and threads, sockets, signals, folders,
permissions, devices, io_uring, and what later kernels bring."""

_ALLOWED_COMMANDS = {
    16: (0x5450, 0x5451),
    72: (0, 1, 2, 3, 4, 5, 6, 7, 1030),
}
"""Two calls by their second argument: ioctl (close or keep on exec), fcntl (duplicate, flags,
locks; not F_SETOWN and F_SETSIG, which could have a signal sent to any process)."""

_AUDIT_ARCH_X86_64 = 0xC000003E
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER, _ARCHITECTURE, _SECOND_ARGUMENT = 0, 4, 24
"""Offsets in the kernel's `struct seccomp_data`."""
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_REFUSE = 0x00050000 | errno.EPERM


def _filter() -> bytes:
    """The seccomp filter as instructions of classic BPF (`struct sock_filter`)."""
    code = [(_LOAD, 0, 0, _ARCHITECTURE), (_IF_EQUAL, 1, 0, _AUDIT_ARCH_X86_64)]
    code += [(_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    for number in _ALLOWED.values():
        code += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for number, commands in _ALLOWED_COMMANDS.items():
        code += [(_IF_EQUAL, 0, 2 * len(commands) + 2, number)]
        code += [(_LOAD, 0, 0, _SECOND_ARGUMENT)]
        for command in commands:
            code += [(_IF_EQUAL, 0, 1, command), (_RETURN, 0, 0, _ALLOW)]
        code += [(_RETURN, 0, 0, _REFUSE)]
    code += [(_RETURN, 0, 0, _REFUSE)]
    return b"".join(
        struct.pack("=HBBI", operation, yes, no, value) for operation, yes, no, value in code
    )


# -- Landlock: which files there are ------------------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_FILE, _TRUNCATE = 1 << 5, 1 << 8, 1 << 14
_EVERYTHING = (1 << 15) - 1
_READ = _READ_FILE | _READ_DIR
_OWN = _READ | _WRITE_FILE | _REMOVE_FILE | _MAKE_FILE | _TRUNCATE


def _readable() -> dict[str, int]:
    """What a program may open outside its folder: libraries, time zones, and nothing at all."""
    prefixes = {sys.base_prefix, sys.base_exec_prefix}
    libraries = {os.path.join(prefix, "lib") for prefix in prefixes}
    libraries |= {"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"}
    found = {folder: _READ for folder in libraries if os.path.isdir(folder)}
    return {
        **found,
        "/etc/ld.so.cache": _READ_FILE,
        "/dev/null": _READ_FILE | _WRITE_FILE,
        "/dev/urandom": _READ_FILE,
    }


class Refused(Exception):
    """The kernel cannot shut this process in."""


def _call(libc: Any, what: str, function: str, *arguments: Any) -> int:
    """Call a function of the C library; :class:`Refused` where it fails."""
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = getattr(libc, function)(*converted)
    if result < 0:
        raise Refused(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def shut_in(folder: str, limits: dict[str, int]) -> None:
    """Give up everything but computing and writing files in `folder`. There is no way back."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    no_new = "no new privileges"
    _call(libc, "parent's death", "prctl", _PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    _call(libc, no_new, "prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)

    landlock = "Landlock"
    version = _call(libc, landlock, "syscall", _CREATE_RULESET, None, 0, 1)
    if version < LEAST_LANDLOCK:
        raise Refused(f"{landlock}: version {version}, needed {LEAST_LANDLOCK} (Linux 6.2)")
    handled = struct.pack("=Q", _EVERYTHING)
    rules = _call(libc, landlock, "syscall", _CREATE_RULESET, handled, len(handled), 0)
    for path, rights in {**_readable(), folder: _OWN}.items():
        if not os.path.exists(path):
            continue
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", rights, place)
        _call(libc, f"{landlock} for {path}", "syscall", _ADD_RULE, rules, 1, rule, 0)
        os.close(place)
    _call(libc, landlock, "syscall", _RESTRICT_SELF, rules, 0)
    os.close(rules)

    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, name), (limit, limit))

    instructions = _filter()
    program = ctypes.create_string_buffer(instructions, len(instructions))
    # struct sock_fprog: the number of instructions, and where they are.
    filtered = struct.pack("@HP", len(instructions) // 8, ctypes.addressof(program))
    _call(libc, "seccomp", "prctl", _PR_SET_SECCOMP, 2, filtered, 0, 0)


# -- the program ---------------------------------------------------------------------------------


def _failure(error: BaseException) -> str:
    """One line about an exception, whose own text may be anything."""
    try:
        text = " ".join(str(error).split())[:200]
    except BaseException:  # it is the program's code that makes the text
        text = ""
    return f"{type(error).__name__}: {text}".rstrip(": ")


def _execute(source: str, module: types.ModuleType) -> str | None:
    """Run a program or a check; what went wrong, or None."""
    try:
        exec(compile(source, "<answer>", "exec", dont_inherit=True), module.__dict__)
    except SystemExit as end:
        return None if end.code in (None, 0) else f"SystemExit: {end.code}"[:200]
    except BaseException as error:  # whatever it is, it is the program's
        return _failure(error)
    return None


def main() -> None:
    """Read a request from stdin, answer in lines of JSON on descriptor `report`."""
    request = json.loads(sys.stdin.buffer.read())
    descriptor, token = request["report"], request["token"]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    del sys.path[0]  # the folder of this file

    def make_report(write: Callable[[int, bytes], int], dumps: Callable[..., str]) -> Any:
        # Held here, so that a program that replaces os.write breaks itself alone.
        def report(**facts: Any) -> None:
            write(descriptor, (dumps({"token": token, **facts}) + "\n").encode())

        return report

    report = make_report(os.write, json.dumps)
    try:
        shut_in(os.getcwd(), request["limits"])
    except (Refused, OSError, ValueError) as reason:
        report(refused=str(reason))
        return
    report(ready=True)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    error = _execute(request["program"], module)
    sys.stdout.flush()
    report(ran=error is None, error=error)
    if error is None and request["checks"]:
        passed = sum(_execute(check, module) is None for check in request["checks"])
        report(passed=passed)
    os._exit(0)


if __name__ == "__main__":
    main()
