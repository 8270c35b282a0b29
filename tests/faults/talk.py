"""Clients that talk to a server until it is gone, and know what has to be on disk then."""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import httpx

from newllm.chat import session_file
from newllm.datasets.conversations import Conversation
from newllm.errors import UserError
from newllm.trained import TrainedModel

PROMISED = 2.0
"""Seconds after which what was said is on disk, whatever ends the server."""

_MOST_TURNS = 12
"""Of a conversation: all of them fit its transcript."""


@dataclass(frozen=True)
class Turn:
    """A question and its answer, as a client heard it."""

    before: Conversation
    question: str
    heard: list[tuple[float, str]]
    """The answer so far, and when; up to its end, if it has ended."""
    ended: float | None = None

    def begun_in(self, found: Conversation | None, until: float) -> bool:
        """Whether what was found is this turn as it stood on its way, at `until` or later."""
        if found is None or found[: len(self.before)] != self.before:
            return False
        more = found[len(self.before) :]
        if [m["role"] for m in more] != ["user", "assistant"]:
            return False
        answer = more[1]["content"].rstrip("\ufffd")
        heard = self.heard[-1][1] if self.heard else ""
        agree = answer.startswith(heard) or heard.startswith(answer)
        needed = self.heard_until(until).rstrip("\ufffd")
        return more[0]["content"] == self.question and agree and answer.startswith(needed)

    def heard_until(self, until: float) -> str:
        """What of the answer was heard by then."""
        return next((text for when, text in reversed(self.heard) if when <= until), "")


@dataclass
class Talk:
    """One conversation as its client knows it."""

    id: str
    known: list[tuple[float, Conversation | None]]
    """What it was after each change that the server answered, and when; None: not there."""
    doing: Literal["nothing", "saying", "undoing", "deleting"] = "nothing"
    """The change that has not been answered."""
    question: str = ""
    heard: list[tuple[float, str]] = field(default_factory=list)
    """Of the answer that comes in: its text so far, and when."""
    turns: list[Turn] = field(default_factory=list)
    """That have ended."""

    @property
    def now(self) -> Conversation | None:
        return self.known[-1][1]

    def became(self, transcript: Conversation | None) -> None:
        """A change was answered."""
        if self.doing == "saying":
            before = self.now or []
            self.turns.append(Turn(before, self.question, self.heard, time.monotonic()))
        self.known.append((time.monotonic(), transcript))
        self.doing, self.heard = "nothing", []

    def fault(self, found: Conversation | None, until: float) -> str | None:
        """What is wrong with what was found on disk, if anything.

        Args:
            found: the transcript; None: no file.
            until: all that the client knew at this moment has to be there.
        """
        told = [turn for turn in self.turns if turn.ended is not None and turn.ended > until]
        before = self.now
        if self.doing == "saying" and before is not None:
            told.append(Turn(before, self.question, self.heard))
        # An answer may be there as it was on its way; one that had begun to be heard has to be.
        if any(turn.begun_in(found, until) for turn in told):
            return None
        since = max(n for n, (when, _) in enumerate(self.known) if when <= until)
        begun = bool(told and told[0].heard_until(until))
        if found in [transcript for _, transcript in self.known[since + begun :]]:
            return None
        if self.doing == "deleting" and found is None:
            return None
        if self.doing == "undoing" and before is not None and found == before[:-2]:
            return None
        return f"{self.id}: {self}\nknown until {until}, found {found}"


class Client:
    """One client with some conversations of its own."""

    def __init__(self, random_: random.Random) -> None:
        self._random = random_
        self.talks: list[Talk] = []
        self.turns = 0
        """Answers that it has heard to their end."""
        self.error: BaseException | None = None

    def talk(self, url: str) -> threading.Thread:
        """Talk in a thread until the server is gone."""
        thread = threading.Thread(target=self._talk, args=[url], daemon=True)
        thread.start()
        return thread

    def _talk(self, url: str) -> None:
        try:
            with httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
                for talk in self.talks:
                    found = http.get(f"/v1/sessions/{talk.id}")
                    if found.status_code != 503:
                        assert found.json()["transcript"] == talk.now, talk
                while self._act(http):
                    time.sleep(self._random.uniform(0, 0.1))
        except httpx.TransportError:
            pass  # it is gone
        except BaseException as error:
            self.error = error

    def _act(self, http: httpx.Client) -> bool:
        """Do something; False where the server takes nothing any more."""
        if not self.talks or (len(self.talks) < 4 and self._random.random() < 0.1):
            answer = http.post("/v1/sessions", json={"temperature": 1.0})
            if answer.status_code == 201:
                self._begun(answer.json()["id"], [])
            return answer.status_code != 503
        talk = self._random.choice(self.talks)
        path, said = f"/v1/sessions/{talk.id}", talk.now or []
        kind = self._random.random()
        if len(said) >= 2 * _MOST_TURNS or kind < 0.04:
            talk.doing = "deleting"
            answer = http.delete(path)
            if answer.status_code == 200:
                talk.became(None)
                self.talks.remove(talk)
        elif kind < 0.1 and said:
            talk.doing = "undoing"
            answer = http.post(f"{path}/undo")
            if answer.status_code == 200:
                talk.became(said[:-2])
        elif kind < 0.15 and len(self.talks) < 4:
            answer = http.post(f"{path}/fork")
            if answer.status_code == 201:
                self._begun(answer.json()["id"], said)
        else:
            return self._say(http, talk, said)
        assert answer.status_code < 500 or answer.status_code == 503, answer.text
        return answer.status_code != 503

    def _begun(self, name: str, transcript: Conversation) -> None:
        self.talks.append(Talk(name, [(0.0, None), (time.monotonic(), transcript)]))

    def _say(self, http: httpx.Client, talk: Talk, said: Conversation) -> bool:
        talk.question = f"say {self._random.randrange(10**6)}"
        talk.heard, talk.doing, text = [], "saying", ""
        length = self._random.choice((1, 10, 40, 200, 700))
        body = {"content": talk.question, "stream": True, "max_tokens": length,
                "min_tokens": self._random.choice((0, length))}  # fmt: skip
        with http.stream("POST", f"/v1/sessions/{talk.id}/turns", json=body) as stream:
            if stream.status_code == 503:
                talk.doing = "nothing"
                return False
            assert stream.status_code == 200, stream.read()
            for line in stream.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    assert event["error"]["code"] == "shutting_down", event
                    return False
                for choice in event["choices"]:
                    if piece := choice["delta"].get("content"):
                        text += piece
                        talk.heard.append((time.monotonic(), text))
                    if choice["finish_reason"] is not None:
                        talk.became([
                            *said, {"role": "user", "content": talk.question},
                            {"role": "assistant", "content": text},
                        ])  # fmt: skip
                        self.turns += 1
        return True

    def look(self, folder: Path, model: TrainedModel, until: float) -> list[str]:
        """What is wrong in the folder, of this client's conversations; goes on from what is there.

        Args:
            folder: of the server, which has ended.
            model: that it served.
            until: all that the client knew at this moment has to be there.
        """
        faults = []
        for talk in list(self.talks):
            found = transcript(folder / f"{talk.id}.session", model)
            if fault := talk.fault(found, until):
                faults.append(fault)
            talk.known, talk.doing, talk.heard, talk.turns = [(0.0, found)], "nothing", [], []
            if found is None:
                self.talks.remove(talk)
        return faults


def transcript(file: Path, model: TrainedModel) -> Conversation | None:
    """What a file says was said; None if there is none.

    Raises:
        UserError: it does not load.
    """
    if not file.exists():
        return None
    dialogue = session_file.read(file, model.model, model.renderer, model.fingerprint)
    if dialogue.dropped:
        raise UserError(f"{file}: not all of what was said")
    return dialogue.transcript
