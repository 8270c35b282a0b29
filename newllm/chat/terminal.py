"""Chat in the terminal: answers stream in, the state carries the conversation."""

from __future__ import annotations

import sys

import click

from newllm.chat.session import ChatSession

_HELP = "/stats shows the state, /quit (or Ctrl-D) leaves; Ctrl-C stops an answer."


def converse(
    session: ChatSession, title: str, max_new_tokens: int, min_new_tokens: int = 0
) -> None:
    """Read lines from standard input and answer each, until it ends."""
    interactive = sys.stdin.isatty()
    if interactive:
        click.echo(f"{title}. {_HELP}")
    while True:
        text = _ask(interactive)
        if text is None or text == "/quit":
            return
        if text == "/help":
            click.echo(_HELP)
        elif text == "/stats":
            click.echo(_stats(session))
        elif text:
            _answer(session, text, max_new_tokens, min_new_tokens)


def _ask(interactive: bool) -> str | None:
    try:
        return input("You: " if interactive else "").strip()
    except EOFError:
        return None


def _answer(session: ChatSession, text: str, max_new_tokens: int, min_new_tokens: int) -> None:
    click.echo("Model: ", nl=False)
    try:
        for piece in session.stream(text, max_new_tokens, min_new_tokens):
            click.echo(piece, nl=False)
            sys.stdout.flush()
    except KeyboardInterrupt:
        click.echo(" [stopped]", nl=False)
    click.echo()


def _stats(session: ChatSession) -> str:
    return (
        f"state {session.state_bytes:,} bytes, {session.tokens_read:,} tokens read, "
        f"{session.tokens_per_second:,.0f} tokens/s in the last turn"
    )
