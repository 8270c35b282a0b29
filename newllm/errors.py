"""The exceptions that the command line turns into one line and an exit code."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

_BREAKS_LINES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_BREAKS_LINES |= {code: f"\\u{code:04x}" for code in (0x2028, 0x2029)}
"""Ends of lines, and what else a terminal obeys, as Python would write them."""


class UserError(Exception):
    """Something the user can mend. The message is one line: what is wrong, where, what to do.

    The command line prints it without a traceback and exits with code 2. Messages quote names of
    files and what files say, which may hold ends of lines or orders to a terminal: these are shown,
    not obeyed.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.translate(_BREAKS_LINES))


class Stopped(Exception):
    """A signal stopped the work after everything was saved; the message says how to go on."""

    def __init__(self, exit_code: int, how_to_go_on: str) -> None:
        super().__init__(how_to_go_on)
        self.exit_code = exit_code


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """`" (did you mean NAME?)"` with the nearest valid name, or the list of valid names."""
    names = list(valid)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f" (did you mean {nearest[0]}?)" if nearest else f" (valid: {', '.join(names)})"


def require_packages(wish: str, *modules: str, extra: str) -> None:
    """Make sure that the packages of one of our extras are there.

    Raises:
        UserError: one is missing; the message names the wish, the packages and the extra.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(missing).replace("_", "-")
        raise UserError(f"{wish}: needs {names}: {how_to_install(extra)}")


def how_to_install(extra: str) -> str:
    """The command that adds an extra, to a clone of the source or to an installed package."""
    clone = (Path(__file__).parents[1] / "pyproject.toml").is_file()
    return f'pip install -e ".[{extra}]"' if clone else f'pip install "new-llm[{extra}]"'
