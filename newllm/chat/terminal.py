"""Chat in the terminal: answers stream in, the state carries the conversation."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType

import click

from newllm.chat.dialogue import knows_system
from newllm.chat.session import ChatSession
from newllm.errors import UserError

_HELP = """\
/save [FILE]    write the conversation to a file of some kilobytes (FILE: as before)
/load FILE      go on with a saved conversation
/fork           go on in a copy; the conversation stays as it is under its number
/go [N]         go to conversation N; without N, list them
/undo           take the last turn back
/reset          begin a new conversation
/system [TEXT]  what the model is told before a conversation that has not begun
/stats          state, tokens read, speed
/export FILE    write the transcript, as `newllm train chat` reads it
/help           this list
/quit           leave (or Ctrl-D); Ctrl-C stops an answer"""


def converse(
    session: ChatSession, title: str, max_new_tokens: int, min_new_tokens: int = 0
) -> None:
    """Read lines from standard input and answer each, until it ends."""
    interactive = sys.stdin.isatty()
    if interactive:
        click.echo(f"{title}, {session.state_bytes:,} bytes of state. /help lists the commands.")
    ask = _line_editor() if interactive else _plain_line
    chat = Terminal(session, max_new_tokens, min_new_tokens)
    if not interactive and isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text do not end the talk
    while (text := ask(chat.prompt if interactive else "")) is not None:
        if not chat.handle(text.strip()):
            return


def _plain_line(prompt: str) -> str | None:
    try:
        return input(prompt)
    except EOFError:
        return None


def _line_editor() -> Callable[[str], str | None]:
    """Ask with line editing and the history of this run (nothing of it is written to disk)."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter

    names = [line.split()[0] for line in _HELP.splitlines()]
    editor = PromptSession[str](completer=WordCompleter(names, sentence=True))

    def ask(prompt: str) -> str | None:
        try:
            return editor.prompt(prompt)
        except KeyboardInterrupt:  # the line is given up, not the program
            return ""
        except EOFError:
            return None

    return ask


class Terminal:
    """The conversations of one run, by number, and the commands on them."""

    def __init__(self, session: ChatSession, max_new_tokens: int, min_new_tokens: int = 0) -> None:
        self._sessions, self._current = [session], 0
        self._files: dict[int, Path] = {}
        """Where conversations were saved or came from."""
        self._limits = max_new_tokens, min_new_tokens
        self._commands: dict[str, Callable[[str], str]] = {
            "/save": self._save,
            "/load": self._load,
            "/fork": self._fork,
            "/go": self._go,
            "/undo": self._undo,
            "/reset": self._reset,
            "/system": self._system,
            "/stats": lambda _: self._stats(),
            "/export": self._export,
            "/help": lambda _: _HELP,
        }

    @property
    def session(self) -> ChatSession:
        """The conversation that is going on."""
        return self._sessions[self._current]

    @property
    def prompt(self) -> str:
        """What a line is asked for with."""
        number = f" {self._current + 1}" if len(self._sessions) > 1 else ""
        return f"You{number}: "

    def handle(self, line: str) -> bool:
        """Answer a line, or do what it commands; False to leave."""
        name, _, argument = line.partition(" ")
        if name == "/quit":
            return False
        if name in self._commands:
            try:
                click.echo(self._commands[name](argument.strip()))
            except UserError as error:
                click.echo(str(error))
            except OSError as error:
                click.echo(f"{error.filename or argument}: {error.strerror}; nothing was written")
        elif line.startswith("/") and name[1:].isalpha():
            click.echo(f"there is no {name}; /help lists the commands")
        elif line:
            try:
                self._answer(line)
            except UserError as error:  # the conversation is as it was before
                click.echo(f"\n{error}")
        return True

    def _answer(self, text: str) -> None:
        click.echo("Model: ", nl=False)
        with _ctrl_c() as pressed, closing(self.session.stream(text, *self._limits)) as pieces:
            for piece in pieces:
                click.echo(piece, nl=False)
                sys.stdout.flush()
                if pressed():
                    click.echo(" [stopped]", nl=False)
                    break
        click.echo()

    def _save(self, name: str) -> str:
        known = self._files.get(self._current)
        path = Path(name) if name else known
        if path is None:
            raise UserError("/save FILE: say where to")
        if path != known and path.exists():
            raise UserError(f"{path} exists; choose another name")
        self.session.save(path)
        self._files[self._current] = path
        size = path.stat().st_size
        return f"saved to {path}: {size:,} bytes hold {self.session.tokens_read:,} tokens"

    def _load(self, name: str) -> str:
        if not name:
            raise UserError("/load FILE: say which")
        loaded = ChatSession.load(name, self.session.decoder, self.session.renderer)
        loaded.best_of = self.session.best_of
        self._add(loaded)
        self._files[self._current] = Path(name)
        last = loaded.transcript[-2:]
        return "\n".join([f"going on with {name}", *(f"  {_line(m['content'])}" for m in last)])

    def _fork(self, _: str) -> str:
        before = self._current + 1
        self._add(self.session.fork())
        return f"this is conversation {self._current + 1}, a copy; /go {before} goes back"

    def _go(self, number: str) -> str:
        if not number:
            return "\n".join(
                f"{'*' if i == self._current else ' '} {i + 1}  {session.tokens_read:,} tokens  "
                + _line(session.transcript[-1]["content"] if session.transcript else "")
                for i, session in enumerate(self._sessions)
            )
        if not number.isdecimal() or not 0 < int(number) <= len(self._sessions):
            raise UserError(f"/go N: there are conversations 1 to {len(self._sessions)}")
        self._current = int(number) - 1
        return f"this is conversation {number}"

    def _undo(self, _: str) -> str:
        self.session.undo()
        return f"the last turn is undone; {self.session.tokens_read:,} tokens read"

    def _reset(self, _: str) -> str:
        dialogue = self.session.dialogue
        self._begin(dialogue.system)
        return f"this is conversation {self._current + 1}, a new one"

    def _system(self, text: str) -> str:
        dialogue = self.session.dialogue
        if not text:
            return dialogue.system or "no system message"
        if not knows_system(self.session.renderer):
            raise UserError("this model knows no system message")
        if dialogue.begun:
            raise UserError("the conversation has begun; /reset begins one that can be told")
        self._begin(text, instead=True)
        return "the model will be told so before the first turn"

    def _stats(self) -> str:
        session = self.session
        settings = session.model.settings
        cache = 2 * settings.num_layers * settings.embed_dim * 4 * session.tokens_read
        state = session.dialogue.next_turn.snapshot.state or {}
        recall = ""
        if "recall" in state:
            filled, slots = int((state["recall"] > 0).sum()), state["recall"].numel()
            recall = (
                f"; recall holds {filled:,} of {slots:,} runs, and {session.recalled_tokens:,} "
                "tokens of the last answer came out of it"
            )
        return (
            f"state {session.state_bytes:,} bytes, {session.tokens_read:,} tokens read (a "
            f"transformer's key-value cache would hold {cache:,} bytes), "
            f"{session.tokens_per_second:,.0f} tokens/s in the last turn{recall}"
        )

    def _export(self, name: str) -> str:
        if not name or Path(name).exists():
            raise UserError(f"{name} exists; choose another name" if name else "/export FILE")
        self.session.export(name)
        left_out = self.session.dialogue.dropped
        return f"wrote {name}" + (f", without the first {left_out} messages" if left_out else "")

    def _begin(self, system: str | None, instead: bool = False) -> None:
        old = self.session
        new = ChatSession(old.decoder, old.renderer, old.dialogue.sampling, system)
        new.best_of = old.best_of
        if instead:
            self._sessions[self._current] = new
        else:
            self._add(new)

    def _add(self, session: ChatSession) -> None:
        self._sessions.append(session)
        self._current = len(self._sessions) - 1


def _line(text: str) -> str:
    """The beginning of a text, in one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= 60 else flat[:59] + "…"


@contextmanager
def _ctrl_c() -> Iterator[Callable[[], bool]]:
    """While the block runs, Ctrl-C is only noted; pressed again, it ends the program."""
    presses = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal presses
        presses += 1
        if presses > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: presses > 0
    finally:
        signal.signal(signal.SIGINT, before)
