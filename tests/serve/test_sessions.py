"""Conversations that the server keeps: exact, separate, bounded, and safe on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from newllm.errors import UserError
from newllm.inference.engine import state_picture
from newllm.inference.sampling import Sampling
from tests.serve.serving import Running, Start, tiny_model
from tests.untrained import copying

DRAWN = {"temperature": 1.0, "top_p": 0.9, "seed": 11}
SAMPLING = Sampling(1.0, 0.9, 11)


def create(http: httpx.Client, **options: Any) -> str:
    answer = http.post("/v1/sessions", json={**DRAWN, **options})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def say(http: httpx.Client, session: str, text: str, **options: Any) -> str:
    body = {"content": text, "max_tokens": 12, **options}
    answer = http.post(f"/v1/sessions/{session}/turns", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def test_interleaved_sessions_are_conversations_alone(server: Running) -> None:
    chats = [tiny_model().chat(SAMPLING, "Be brief."), tiny_model().chat(SAMPLING)]
    with server.http() as http:
        sessions = [create(http, system="Be brief."), create(http)]
        for text in ("hello", "and?", "bye"):
            for chat, session in zip(chats, sessions, strict=True):
                assert say(http, session, text) == chat.say(text, 12)
        for chat, session in zip(chats, sessions, strict=True):
            facts = http.get(f"/v1/sessions/{session}").json()
            assert facts["transcript"] == chat.transcript
            assert facts["tokens_read"] == chat.tokens_read
            assert facts["undo_turns"] == 3
            assert not facts["busy"]
        listed = http.get("/v1/sessions").json()["data"]
        assert [s["id"] for s in listed[:2]] == sessions[::-1]
        assert listed[0]["title"] == "hello"


def test_undo_and_fork(server: Running) -> None:
    with server.http() as http:
        session = create(http)
        say(http, session, "one")
        fork = http.post(f"/v1/sessions/{session}/fork").json()["id"]
        first = say(http, session, "two")
        assert http.post(f"/v1/sessions/{session}/undo").json()["messages"] == 2
        assert say(http, session, "two") == first == say(http, fork, "two")
        for _ in range(2):
            assert http.post(f"/v1/sessions/{fork}/undo").status_code == 200
        refused = http.post(f"/v1/sessions/{fork}/undo")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "nothing_to_undo")


def test_download_and_upload(server: Running, tmp_path: Path) -> None:
    with server.http() as http:
        session = create(http)
        say(http, session, "one")
        file = http.get(f"/v1/sessions/{session}/file")
        assert "attachment" in file.headers["content-disposition"]
        assert len(file.content) < 20_000  # 16 KB of it are recall
        answer = http.post("/v1/sessions/file", content=file.content)
        assert answer.status_code == 201
        assert say(http, answer.json()["id"], "two") == say(http, session, "two")
        flipped = bytearray(file.content)
        flipped[-40] ^= 1
        foreign = {
            "damaged or edited": [file.content[:-1], bytes(flipped)],
            "not a New-LLM session": [b"", b"PK\x03\x04", b"\0" * 5000],
        }
        for says, bodies in foreign.items():
            for body in bodies:
                refused = http.post("/v1/sessions/file", content=body)
                assert refused.status_code == 400
                assert says in refused.json()["error"]["message"]
        other = tiny_model(seed=3).chat(SAMPLING)
        other.say("hello", 3)
        other.save(tmp_path / "other.session")
        refused = http.post("/v1/sessions/file", content=(tmp_path / "other.session").read_bytes())
        assert "with another model" in refused.json()["error"]["message"]
        chat = tiny_model().resume_chat(_saved(tmp_path, file.content))
        assert (
            chat.say("two", 12)
            == http.get(f"/v1/sessions/{session}").json()["transcript"][-1]["content"]
        )


def _saved(folder: Path, content: bytes) -> Path:
    (folder / "mine.session").write_bytes(content)
    return folder / "mine.session"


def test_a_stream_has_pictures_of_the_context_and_ends_with_the_session(server: Running) -> None:
    with server.http() as http:
        session = create(http)
        body = {"content": "hello", "max_tokens": 9, "stream": True, "context": True}
        lines = http.post(f"/v1/sessions/{session}/turns", json=body).text.split("\n\n")
    assert lines[-2] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    pictures = [event["context"] for event in events if "context" in event]
    assert pictures
    assert all(len(picture) == 1 and len(picture[0]) == 16 for picture in pictures)
    assert len({str(picture) for picture in pictures}) == len(pictures)
    assert events[-1]["usage"]["completion_tokens"] == 9
    assert events[-2]["session"]["tokens_read"] == events[-1]["usage"]["total_tokens"]
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in events[:-1])
    assert text == tiny_model().chat(SAMPLING).say("hello", 9)


def test_a_stream_tells_what_came_out_of_recall(start: Start) -> None:
    model = copying(tiny_model())
    python, recalled = model.chat(SAMPLING), []
    with start(model).http() as http:
        session = create(http)
        for text in ("hello", "hello", "bye"):
            body = {"content": text, "max_tokens": 9, "stream": True, "context": True}
            lines = http.post(f"/v1/sessions/{session}/turns", json=body).text.split("\n\n")
            events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
            told = [event for event in events if "pieces" in event]
            for event in told:
                content = event["choices"][0]["delta"]["content"]
                assert "".join(piece for piece, _ in event["pieces"]) == content
                assert [len(table) for table in event["recall"]] == [64] * 4
            python.say(text, 9)
            recalled.append(sum(found for event in told for _, found in event["pieces"]))
            assert recalled[-1] <= python.recalled_tokens, "one that adds no text is not told"
            state = python.dialogue.next_turn.snapshot.state
            assert state is not None
            assert told[-1]["recall"] == state_picture(state).recall
    assert recalled[1] > recalled[0]


def test_delete_and_unknown_ids(server: Running) -> None:
    with server.http() as http:
        session = create(http)
        assert http.delete(f"/v1/sessions/{session}").json()["deleted"]
        for name in (session, "x", "..%2f..%2fetc%2fpasswd", "file"):
            for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/undo"), ("GET", "/file")):
                answer = http.request(method, f"/v1/sessions/{name}{path}")
                assert answer.status_code in (404, 405), (method, name, path)
        assert http.post("/v1/sessions", json={"path": "/etc"}).status_code == 400


def test_a_stop_string_in_a_session_is_not_remembered(server: Running) -> None:
    with server.http() as http:
        whole = say(http, create(http), "hello", max_tokens=40)
        place = next(i for i in range(4, len(whole)) if whole[i] not in whole[:i])
        session = create(http)
        assert say(http, session, "hello", max_tokens=40, stop=whole[place]) == whole[:place]
        facts = http.get(f"/v1/sessions/{session}").json()
    tokenizer = server.service.default.model.tokenizer
    prompt = server.service.default.model.renderer.prompt([{"role": "user", "content": "hello"}])
    assert facts["transcript"][-1]["content"] == whole[:place]
    assert facts["tokens_read"] == len(prompt) + len(tokenizer.encode_batch([whole[:place]])[0])


def test_those_used_longest_ago_go_to_disk_and_outlast_the_server(
    start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "sessions"
    server = start(sessions_dir=folder, sessions=2, stored_sessions=3)
    chats = [tiny_model().chat(SAMPLING) for _ in range(5)]
    with server.http() as http:
        sessions = [create(http) for _ in range(5)]
        for number, (chat, session) in enumerate(zip(chats, sessions, strict=True)):
            assert say(http, session, f"hello {number}") == chat.say(f"hello {number}", 12)
        server.wait_saved()
        assert len(server.service.store._loaded) == 2
        assert {file.stem for file in folder.iterdir()} >= set(sessions[:3])
        full = http.post("/v1/sessions", json={})
        assert full.json()["error"]["code"] == "too_many_sessions"
        for chat, session in zip(chats, sessions, strict=True):
            assert say(http, session, "and?") == chat.say("and?", 12)
        assert http.delete(f"/v1/sessions/{sessions[4]}").status_code == 200
        assert not (folder / f"{sessions[4]}.session").exists()
    server.stop()
    (folder / f"{'0' * 32}.session").write_bytes(b"something else")
    (folder / "notes.txt").write_text("kept")
    again = start(sessions_dir=folder, sessions=2, stored_sessions=3)
    with again.http() as http:
        assert {s["id"] for s in http.get("/v1/sessions").json()["data"]} == set(sessions[:4])
        assert http.post(f"/v1/sessions/{sessions[0]}/undo").json()["messages"] == 2
        for chat, session in zip(chats[1:4], sessions[1:4], strict=True):
            assert say(http, session, "more") == chat.say("more", 12)
        say(http, sessions[3], "x")
        say(http, sessions[1], "x")
        damaged = folder / f"{sessions[0]}.session"
        damaged.write_bytes(damaged.read_bytes()[:-1])
        gone = http.get(f"/v1/sessions/{sessions[0]}")
        assert (gone.status_code, gone.json()["error"]["code"]) == (410, "session_damaged")
    assert (folder / "notes.txt").read_text() == "kept"


@pytest.mark.parametrize("architecture", ["gru", "transformer"])
def test_other_architectures(start: Start, architecture: str) -> None:
    model = tiny_model(architecture=architecture, embed_dim=16, hidden_dim=16)
    chat = model.chat(SAMPLING)
    with start(model).http() as http:
        session = create(http)
        for text in ("hello", "and?"):
            assert say(http, session, text, max_tokens=6, context=True) == chat.say(text, 6)


def test_a_model_that_knows_no_system_message(start: Start) -> None:
    with start(tiny_model(dataset="wikitext2")).http() as http:
        refused = http.post("/v1/sessions", json={"system": "Be brief."})
        assert refused.json()["error"]["param"] == "system"
        assert say(http, create(http), "Once upon") is not None


def test_an_empty_turn_is_refused_and_disturbs_nobody(start: Start) -> None:
    """Plain text has no form around it: an empty turn after a whole one has not a single token."""
    model = tiny_model(dataset="wikitext2")
    server = start(model=model)
    with server.http() as http:
        session = create(http)
        say(http, session, "words")
        dialogue = server.service.store.get(session)[1]
        end, turn = model.tokenizer.end, dialogue.next_turn
        dialogue.next_turn = replace(turn, snapshot=replace(turn.snapshot, last_token=end))
        refused = http.post(f"/v1/sessions/{session}/turns", json={"content": ""})
        assert refused.status_code == 400
        assert refused.json()["error"]["message"] == "nothing was said: the text is empty"
        assert not http.get(f"/v1/sessions/{session}").json()["busy"]
        say(http, session, "words")
    chat = model.chat(SAMPLING)
    chat.say("words", 4)
    turn = chat.dialogue.next_turn
    chat.dialogue.next_turn = replace(turn, snapshot=replace(turn.snapshot, last_token=end))
    with pytest.raises(UserError, match="nothing was said"):
        chat.say("", 4)
