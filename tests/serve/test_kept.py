"""What was said is in the folder within two seconds, whatever ends the server, and told truly."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from newllm.chat import session_file
from newllm.chat.dialogue import Dialogue
from newllm.errors import UserError
from newllm.inference.sampling import Sampling
from newllm.serve import app, store
from newllm.serve.service import Limits, Service
from tests.serve.serving import NAME, Running, Start, tiny_model
from tests.serve.test_sessions import create, say

SECONDS = 2


def on_disk(folder: Path, session: str) -> Dialogue:
    """What another server would find."""
    model = tiny_model()
    return session_file.read(folder / f"{session}.session", model.model, model.renderer)


def in_time(holds: Any) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_each_turn_is_written_at_once(start: Start, tmp_path: Path) -> None:
    server = start(sessions_dir=tmp_path)
    with server.http() as http:
        session = create(http)
        in_time(lambda: (tmp_path / f"{session}.session").exists())
        for number in range(3):
            answer = say(http, session, f"say {number}")
            said = [{"role": "user", "content": f"say {number}"},
                    {"role": "assistant", "content": answer}]  # fmt: skip
            in_time(lambda said=said: on_disk(tmp_path, session).transcript[-2:] == said)
        http.post(f"/v1/sessions/{session}/undo")
        in_time(lambda: len(on_disk(tmp_path, session).transcript) == 4)
        http.delete(f"/v1/sessions/{session}")
    assert not (tmp_path / f"{session}.session").exists()


def test_an_answer_on_its_way_is_written_twice_a_second(start: Start, tmp_path: Path) -> None:
    """What a kill leaves goes on as if the answer had been cut there."""
    server = start(sessions_dir=tmp_path, answer_tokens=10**9)
    endless = {"content": "hello", "max_tokens": 10**9, "min_tokens": 10**9, "stream": True}
    with server.http() as http:
        session = create(http)
        with http.stream("POST", f"/v1/sessions/{session}/turns", json=endless) as stream:
            lines = stream.iter_lines()
            next(lines)
            in_time(lambda: on_disk(tmp_path, session).transcript)
            dialogue = on_disk(tmp_path, session)
        server.wait_idle()
        server.wait_saved()
        final = on_disk(tmp_path, session).transcript[-1]["content"]
    (question, answer) = dialogue.transcript
    assert question["content"] == "hello"
    assert answer["content"]
    assert final.startswith(answer["content"].rstrip("\ufffd"))
    turn = dialogue.next_turn.snapshot
    prompt = len(dialogue.copy().prompt(tiny_model().renderer, "x"))
    assert turn.tokens_read > prompt
    assert turn.is_finite


def test_a_server_that_is_cut_off_saves_what_was_said(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Ctrl-C twice while a client does not read its answer; no traceback tells of it."""
    server = start(sessions_dir=tmp_path, answer_tokens=10**9)
    endless = {"content": "hello", "max_tokens": 10**9, "min_tokens": 10**9, "stream": True}
    with server.http() as http:
        other, session = create(http), create(http)
        answer = say(http, other, "before")
        with http.stream("POST", f"/v1/sessions/{session}/turns", json=endless) as stream:
            lines = stream.iter_lines()  # held: a client that lets go of them has left
            next(lines)
            assert server.server is not None
            server.server.force_exit = True
            server.stop()
    server.service.close()
    assert [record for record in caplog.records if record.exc_info] == []
    assert on_disk(tmp_path, other).transcript[-1]["content"] == answer
    assert on_disk(tmp_path, session).transcript[0]["content"] == "hello"


def test_a_full_disk_loses_nothing_and_is_told(start: Start, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(store, "_RETRY_SECONDS", 0.05)
    server = start(sessions_dir=tmp_path, sessions=3)
    real, full = store.write_bytes, [True]

    def write(path: Path, content: bytes, tidy: bool = True) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, content, tidy)

    with server.http() as http:
        saved = create(http)
        say(http, saved, "early")
        server.wait_saved()
        monkeypatch.setattr(store, "write_bytes", write)
        sessions = [create(http) for _ in range(2)]
        answers = [say(http, session, "late") for session in sessions]
        in_time(lambda: server.service.store.failure)
        assert server.service.store.unsaved == 2
        assert b"newllm_unsaved_sessions 2.0" in server.service.metrics.text()
        told = app._saved(server.service, tmp_path)
        assert told.endswith(": 1; 2 could not be written (No space left on device).")
        refused = http.post("/v1/sessions", json={})
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "disk_full")
        full[0] = False
        server.wait_saved()
        for session, answer in zip(sessions, answers, strict=True):
            assert on_disk(tmp_path, session).transcript[-1]["content"] == answer
    assert app._saved(server.service, tmp_path).endswith(": 3.")


def test_a_folder_is_tried_at_the_start(tmp_path: Path, monkeypatch) -> None:
    def refuse(path: Path, content: bytes, tidy: bool = True) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--sessions-dir .*: "):
        Service({NAME: tiny_model()}, Limits(), tmp_path / "file")
    monkeypatch.setattr(store, "write_bytes", refuse)
    with pytest.raises(UserError, match="Read-only file system"):
        Service({NAME: tiny_model()}, Limits(), tmp_path)


def test_one_folder_is_one_servers(start: Start, tmp_path: Path) -> None:
    server = start(sessions_dir=tmp_path)
    with pytest.raises(UserError, match="another server"):
        Service({NAME: tiny_model()}, Limits(), tmp_path)
    server.stop()
    start(sessions_dir=tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="no links and pipes of this kind")
def test_what_is_no_file_is_left_alone(start: Start, tmp_path: Path) -> None:
    (tmp_path / f"{'a' * 32}.session").symlink_to("/nonexistent")
    os.mkfifo(tmp_path / f"{'b' * 32}.session")
    (tmp_path / f"{'c' * 32}.session").mkdir()
    (tmp_path / f"{'d' * 32}.session").write_bytes(b"")
    abandoned = tmp_path / f".{'e' * 32}.session.tmp-host-1"
    abandoned.write_bytes(b"half")
    with start(sessions_dir=tmp_path).http() as http:
        listed = http.get("/v1/sessions").json()
        assert listed["data"] == []
        assert http.get(f"/v1/sessions/{'b' * 32}").status_code == 404
    assert not abandoned.exists()
    model = tiny_model()
    with pytest.raises(UserError, match="not a regular file"):
        session_file.read(tmp_path / f"{'b' * 32}.session", model.model, model.renderer)


def test_the_list_comes_in_pages(server: Running) -> None:
    with server.http() as http:
        sessions = [create(http) for _ in range(5)]
        say(http, sessions[2], "About  Rivers")
        order = [sessions[2], *(s for s in sessions[::-1] if s != sessions[2])]
        first = http.get("/v1/sessions", params={"limit": 2}).json()
        assert [s["id"] for s in first["data"]] == order[:2]
        assert first["has_more"]
        rest = http.get("/v1/sessions", params={"limit": 3, "after": first["last_id"]}).json()
        assert [s["id"] for s in rest["data"]] == order[2:]
        found = http.get("/v1/sessions", params={"search": "about riv"}).json()
        assert [s["id"] for s in found["data"]] == [sessions[2]]
        for wrong, param in (({"limit": 0}, "limit"), ({"limit": "x"}, "limit"), ({"x": 1}, "x")):
            refused = http.get("/v1/sessions", params=wrong)
            assert refused.json()["error"]["param"] == param
        assert http.get("/v1/sessions", params={"after": "x"}).status_code == 404


def test_ten_thousand_sessions_are_found_without_reading_them(
    start: Start, tmp_path: Path, monkeypatch
) -> None:
    model = tiny_model()
    chat = model.chat(Sampling(0))
    chat.say("hello", 3)
    content = session_file.encode(chat.dialogue, model.model, model.renderer)
    for number in range(40):
        (tmp_path / f"{number:032x}.session").write_bytes(content)
    looked: list[Path] = []
    real = session_file.summary
    monkeypatch.setattr(session_file, "summary", lambda file: looked.append(file) or real(file))
    service = Service({NAME: model}, Limits(), tmp_path)
    assert len(service.store) == 40
    assert looked == []
    service.close()
    with start(sessions_dir=tmp_path).http() as http:
        page = http.get("/v1/sessions", params={"limit": 2}).json()
        assert [s["title"] for s in page["data"]] == ["hello", "hello"]
        again = http.get(f"/v1/sessions/{page['data'][1]['id']}").json()
        assert again["transcript"] == chat.transcript
        assert say(http, page["data"][1]["id"], "and?") == chat.say("and?", 12)


def forged(**changes: Any) -> bytes:
    """A session file as an enemy may make it."""
    model = tiny_model()
    chat = model.chat(Sampling(1.0, seed=3))
    chat.say("hello", 3)
    dialogue = chat.dialogue
    turn = dialogue.next_turn
    state = {k: v.clone() for k, v in (turn.snapshot.state or {}).items()}
    if "fill" in changes:
        next(iter(state.values())).fill_(changes["fill"])
    snapshot = type(turn.snapshot)(
        state, turn.snapshot.last_token, changes.get("tokens_read", turn.snapshot.tokens_read)
    )
    dialogue.next_turn = type(turn)(
        snapshot, turn.rng_state, changes.get("messages", turn.messages)
    )
    dialogue.sampling = Sampling(changes.get("temperature", 1.0), 0.9, 3)
    return session_file.encode(dialogue, model.model, model.renderer)


def test_a_state_that_is_not_finite_becomes_no_sessions(server: Running) -> None:
    with server.http() as http:
        session = http.post("/v1/sessions/file", content=forged(fill=3.4e38)).json()
        before = http.get(f"/v1/sessions/{session['id']}").json()
        body = {"content": "go on", "max_tokens": 5}
        answer = http.post(f"/v1/sessions/{session['id']}/turns", json=body)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "not_finite"
        after = http.get(f"/v1/sessions/{session['id']}").json()
        assert after["transcript"] == before["transcript"]
        file = http.get(f"/v1/sessions/{session['id']}/file").content
        assert http.post("/v1/sessions/file", content=file).status_code == 201


def test_numbers_that_no_conversation_has(server: Running) -> None:
    name = b"newllm_cached_tokens_total "
    with server.http() as http:
        for changes in ({"tokens_read": 2**62 - 1}, {"messages": 2**61}):
            refused = http.post("/v1/sessions/file", content=forged(**changes))
            assert refused.json()["error"]["code"] == "invalid_session_file"
        session = http.post("/v1/sessions/file", content=forged(tokens_read=2**43)).json()["id"]
        refused = http.post(f"/v1/sessions/{session}/turns", json={"content": "x"})
        assert refused.status_code == 400
        assert not http.get(f"/v1/sessions/{session}").json()["busy"]
        session = http.post("/v1/sessions/file", content=forged(tokens_read=2**43 - 1)).json()["id"]
        assert say(http, session, "x") is not None
        file = http.get(f"/v1/sessions/{session}/file").content
        assert http.post("/v1/sessions/file", content=file).status_code == 201
        text = server.service.metrics.text().split(b"\n" + name)[1]
        assert float(text.split()[0]) < 10**6
        hot = http.post("/v1/sessions/file", content=forged(temperature=1e308)).json()["id"]
        assert say(http, hot, "x") is not None


def test_what_a_server_that_was_killed_left_half_done_goes(start: Start, tmp_path: Path) -> None:
    """Of a conversation, and of its look whether the folder can be written in."""
    left = [f".{'0' * 32}.session.tmp-x-1", "..trial-0123abcd.tmp-x-1", ".trial-0123abcd"]
    for name in [*left, ".trial-mine"]:
        (tmp_path / name).write_bytes(b"half")
    start(sessions_dir=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", ".trial-mine"}
