"""The commands of the terminal chat, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from newllm.chat.session import BestOf, ChatSession
from newllm.chat.terminal import Terminal, _line_editor, converse
from newllm.inference.decoder import Snapshot, make_decoder
from newllm.inference.sampler import Sampler
from newllm.inference.sampling import Sampling
from newllm.model import build_model


@pytest.fixture
def terminal(model, renderer, tmp_path, monkeypatch) -> Terminal:
    monkeypatch.chdir(tmp_path)
    return Terminal(ChatSession(make_decoder(model), renderer, Sampling(1.0, 0.95, seed=1)), 12, 12)


def run(terminal: Terminal, capsys, *lines: str) -> list[str]:
    """What is printed for the last line."""
    for line in lines:
        capsys.readouterr()
        assert terminal.handle(line)
    return capsys.readouterr().out.splitlines()


def test_save_load_undo(terminal, capsys) -> None:
    run(terminal, capsys, "hello")
    (saved,) = run(terminal, capsys, "/save a.session")
    assert "bytes hold" in saved
    answer = run(terminal, capsys, "and?")
    assert run(terminal, capsys, "/undo")[0].startswith("the last turn is undone")
    assert run(terminal, capsys, "and?") == answer
    assert "a.session" in run(terminal, capsys, "/load a.session")[0]
    assert terminal.prompt == "You 2: "
    assert run(terminal, capsys, "and?") == answer
    assert "bytes hold" in run(terminal, capsys, "/save")[0], "where it came from"
    assert "exists; choose" in run(terminal, capsys, "/go 1", "/export a.session")[0]


def test_fork_go_reset(terminal, capsys) -> None:
    run(terminal, capsys, "hello")
    assert "conversation 2, a copy" in run(terminal, capsys, "/fork")[0]
    second = run(terminal, capsys, "and?")
    assert run(terminal, capsys, "/go 1", "and?") == second
    run(terminal, capsys, "/reset")
    assert terminal.session.tokens_read == 0
    listed = run(terminal, capsys, "/go")
    assert [line[:3] for line in listed] == ["  1", "  2", "* 3"]


def test_best_of_stays(terminal, capsys) -> None:
    terminal.session.best_of = chosen = BestOf(2, lambda texts, state: [0.0] * len(texts))
    run(terminal, capsys, "hello", "/save a.session")
    for command in ("/reset", "/load a.session", "/fork", "/reset", "/system be brief"):
        terminal.handle(command)
        assert terminal.session.best_of is chosen, command


def test_best_of_is_given_up_where_one_answer_is(terminal, capsys, monkeypatch) -> None:
    terminal.session.best_of = BestOf(2, lambda texts, state: [0.0] * len(texts))
    run(terminal, capsys, "hello")
    read = terminal.session.tokens_read
    with monkeypatch.context() as patch:
        patch.setattr(Snapshot, "is_finite", False)
        said = run(terminal, capsys, "and?")
    assert said[-1] == "the state is not finite; the conversation is as it was before"
    assert terminal.session.tokens_read == read


def test_an_answer_that_is_given_up_ends_no_talk(terminal, capsys, monkeypatch) -> None:
    run(terminal, capsys, "hello")
    read = terminal.session.tokens_read

    def spoilt(self: Sampler, *arguments: Any) -> int:
        raise FloatingPointError("the model's scores are not finite")

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "draw", spoilt)
        said = run(terminal, capsys, "and?")
    assert said[-1] == "the model's scores are not finite; the conversation is as it was before"
    assert terminal.session.tokens_read == read
    assert "bytes hold" in run(terminal, capsys, "/save b.session")[0]


def test_system_stats_export(terminal, capsys) -> None:
    assert run(terminal, capsys, "/system") == ["no system message"]
    run(terminal, capsys, "/system Be brief.", "hello")
    assert terminal.session.transcript[0] == {"role": "system", "content": "Be brief."}
    assert "has begun" in run(terminal, capsys, "/system Be long.")[0]
    (stats,) = run(terminal, capsys, "/stats")
    assert "tokens read" in stats
    assert "tokens/s" in stats
    recall = (terminal.session.dialogue.next_turn.snapshot.state or {})["recall"]
    filled, slots = int((recall > 0).sum()), recall.numel()
    assert 0 < filled < slots == 4 * 64
    assert f"; recall holds {filled:,} of {slots:,} runs, and " in stats
    run(terminal, capsys, "/export talk.jsonl")
    with open("talk.jsonl", encoding="utf-8") as file:
        assert json.load(file)["messages"] == terminal.session.transcript
    run(terminal, capsys, "/reset")
    assert run(terminal, capsys, "/system") == ["Be brief."]


def test_stats_count_what_came_out_of_recall(model, renderer, capsys) -> None:
    """Of a model that always copies what a context of two tokens or more proposes."""
    model.recall.bias.data[1:] += 1000
    session = ChatSession(make_decoder(model), renderer, Sampling(temperature=0))
    terminal = Terminal(session, 12, 12)
    first = run(terminal, capsys, "hello")
    assert run(terminal, capsys, "hello") == first
    (stats,) = run(terminal, capsys, "/stats")
    assert stats.endswith(" and 12 tokens of the last answer came out of it")


def test_stats_of_a_model_without_recall_say_nothing_of_it(
    renderer, capsys, tiny_model_settings
) -> None:
    model = build_model(tiny_model_settings(), renderer.tokenizer.vocab_size).eval()
    terminal = Terminal(ChatSession(make_decoder(model), renderer, Sampling(seed=1)), 4, 4)
    (stats,) = run(terminal, capsys, "hello", "/stats")
    assert stats.endswith("tokens/s in the last turn")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/save", "say where to"),
        ("/load", "say which"),
        ("/load none.session", "no such session file"),
        ("/undo", "no turn to undo"),
        ("/go 7", "conversations 1 to 1"),
        ("/go x", "conversations 1 to 1"),
        ("/sav x", "there is no /sav"),
        ("/export", "/export FILE"),
        ("/help", "/undo"),
    ],
)
def test_mistakes_lose_nothing(terminal, capsys, line, says) -> None:
    run(terminal, capsys, "/save a.session")
    terminal._files.clear()
    before = len(terminal._sessions)
    assert says in "\n".join(run(terminal, capsys, line))
    assert len(terminal._sessions) == before
    assert "exists; choose another" in run(terminal, capsys, "/save a.session")[0]


def test_quit_and_the_end_of_the_input(terminal, capsys, monkeypatch) -> None:
    assert not terminal.handle("/quit")
    lines = iter(["hello", ""])

    def ask(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", ask)
    converse(terminal.session, "title", 5)
    assert capsys.readouterr().out.count("Model: ") == 1


def test_ctrl_c_stops_the_answer_alone(model, renderer, capsys, monkeypatch) -> None:
    session = ChatSession(make_decoder(model), renderer, Sampling(seed=1))
    terminal = Terminal(session, 400, 400)
    stream = session.stream

    def interrupted(*arguments):
        for count, piece in enumerate(stream(*arguments)):
            if count == 5:
                os.kill(os.getpid(), signal.SIGINT)
            yield piece

    monkeypatch.setattr(session, "stream", interrupted)
    assert terminal.handle("hello")
    assert capsys.readouterr().out.endswith(" [stopped]\n")
    assert session.transcript[-1]["role"] == "assistant"
    assert 0 < session.tokens_read < 200
    monkeypatch.setattr(session, "stream", stream)
    assert terminal.handle("go on")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_line_editing_and_history() -> None:
    """Backspace edits, Ctrl-C gives a line up, arrow-up brings one back, Ctrl-D leaves."""
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        ask = _line_editor()
        for typed, line in [
            ("hellp\x7fo\r", "hello"),
            ("wrong\x03", ""),
            ("\x1b[A\r", "hello"),
            ("\x04", None),
        ]:
            keys.send_text(typed)
            assert ask("You: ") == line
