"""The conversations a server keeps: the ones used last in memory, the others in a folder.

Their ids are random numbers that the server made. A request's id is looked up among them and is
never part of a path.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from newllm.chat import session_file
from newllm.chat.dialogue import Dialogue, model_state_bytes
from newllm.datasets.conversations import Conversation
from newllm.errors import UserError
from newllm.files import write_bytes
from newllm.inference.decoder import START, Snapshot
from newllm.serve.schemas import ApiError
from newllm.trained import TrainedModel

_CACHE_BYTES, _CACHE_ENTRIES = 2**26, 4096
"""What the cache of prefixes holds at most."""

_FILE = re.compile(r"[0-9a-f]{32}\.session")
_TITLE = 60

log = logging.getLogger("newllm.serve")


@dataclass
class Session:
    """One conversation: at hand, or only its facts while it is on disk."""

    id: str
    facts: dict[str, Any] = field(default_factory=dict)
    dialogue: Dialogue | None = None
    busy: bool = False
    """Whether an answer is being written."""
    created: float = field(default_factory=time.time)
    last_used: float = field(default_factory=time.time)


class SessionStore:
    """All conversations of a server; used on one thread alone."""

    def __init__(
        self, model: TrainedModel, in_memory: int, stored: int, folder: Path | None
    ) -> None:
        """Find the conversations that an earlier server left in the folder.

        Args:
            model: all conversations are with it.
            in_memory: conversations kept in memory.
            stored: conversations kept in the folder besides.
            folder: where the others go; None: there are no others.

        Raises:
            UserError: the folder cannot be made or read.
        """
        self._model, self._in_memory, self._folder = model, in_memory, folder
        self._most = in_memory + (stored if folder else 0)
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        """The least recently used first."""
        if folder is not None:
            self._find(folder)

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def at_hand(self) -> int:
        """Conversations in memory."""
        return sum(session.dialogue is not None for session in self._sessions.values())

    def list(self) -> list[Session]:
        """All, the most recently used first."""
        return list(reversed(self._sessions.values()))

    def add(self, dialogue: Dialogue) -> Session:
        """Keep a new conversation.

        Raises:
            ApiError: there are too many.
        """
        if len(self._sessions) >= self._most:
            raise ApiError(
                429, f"{self._most} sessions are kept; delete one first", "too_many_sessions"
            )
        session = Session(secrets.token_hex(16), dialogue=dialogue)
        self._sessions[session.id] = session
        self.changed(session)
        return session

    def get(self, name: str, idle: bool = False) -> tuple[Session, Dialogue]:
        """The conversation of an id, which now is the most recently used one.

        Raises:
            ApiError: there is none, its file is damaged, or (`idle`) an answer is being written.
        """
        session = self._named(name, idle)
        if session.dialogue is None:
            try:
                session.dialogue = self._read(self._file(session))
            except UserError as error:
                log.error("%s", error)
                raise ApiError(410, "this session's file is damaged", "session_damaged") from None
        self._sessions.move_to_end(name)
        session.last_used = time.time()
        self._make_room()
        return session, session.dialogue

    def changed(self, session: Session) -> None:
        """Note what is told of a conversation, and let the ones used longest ago go to disk."""
        assert session.dialogue is not None
        session.facts = _facts(session.dialogue)
        session.last_used = time.time()
        self._make_room()

    def delete(self, name: str) -> None:
        """Forget a conversation.

        Raises:
            ApiError: there is none of this id, or an answer is being written.
        """
        session = self._named(name, idle=True)
        del self._sessions[name]
        if self._folder is not None:
            self._file(session).unlink(missing_ok=True)

    def save(self) -> None:
        """Write all that are in memory to the folder, if there is one."""
        for session in self._sessions.values() if self._folder else ():
            if session.dialogue is not None:
                try:
                    self._write(session)
                except OSError as error:
                    log.error("%s: %s; this session is lost", error.filename, error.strerror)

    def _named(self, name: str, idle: bool) -> Session:
        session = self._sessions.get(name)
        if session is None:
            raise ApiError(404, "there is no session of this id", "session_not_found")
        if idle and session.busy:
            raise ApiError(409, "an answer is being written in this session", "session_busy")
        return session

    def _make_room(self) -> None:
        idle = [s for s in self._sessions.values() if s.dialogue is not None and not s.busy]
        excess = self.at_hand - self._in_memory
        for session in idle[: max(0, min(excess, len(idle) - 1))]:  # never the one just used
            try:
                self._write(session)
            except OSError as error:  # kept in memory: full disks lose nothing
                log.error("%s: %s", error.filename, error.strerror)
                return
            session.dialogue = None

    def _write(self, session: Session) -> None:
        assert session.dialogue is not None
        model = self._model
        content = session_file.encode(
            session.dialogue, model.model, model.renderer, model.fingerprint, undo=True
        )
        write_bytes(self._file(session), content)

    def _read(self, file: Path) -> Dialogue:
        model = self._model
        return session_file.read(file, model.model, model.renderer, model.fingerprint)

    def _file(self, session: Session) -> Path:
        assert self._folder is not None
        return self._folder / f"{session.id}.session"

    def _find(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            files = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime)
        except OSError as error:
            raise UserError(f"--sessions-dir {folder}: {error.strerror}") from None
        for file in files:
            if not _FILE.fullmatch(file.name):
                continue
            try:
                facts = _facts(self._read(file))
            except UserError as error:
                log.warning("left alone: %s", error)
                continue
            time = file.stat().st_mtime
            self._sessions[file.stem] = Session(file.stem, facts, None, False, time, time)


def _facts(dialogue: Dialogue) -> dict[str, Any]:
    questions = [m["content"] for m in dialogue.transcript if m["role"] == "user"]
    return {
        "title": " ".join(questions[0].split())[:_TITLE] if questions else None,
        "tokens_read": dialogue.next_turn.snapshot.tokens_read,
        "messages": dialogue.next_turn.messages,
        "messages_dropped": dialogue.dropped,
        "undo_turns": len(dialogue.past_turns),
    }


class PrefixCache:
    """The states after recent answers, by what was said: a longer conversation goes on from there.

    Bounded in memory; the entries used longest ago leave first.
    """

    def __init__(self, model: TrainedModel) -> None:
        size = max(1, model_state_bytes(model.model))
        self._most = max(1, min(_CACHE_ENTRIES, _CACHE_BYTES // size))
        self._snapshots: OrderedDict[bytes, Snapshot] = OrderedDict()

    def find(self, messages: Conversation) -> tuple[Snapshot, int]:
        """The longest beginning that is known: the state after it, and its number of messages."""
        keys = _keys(messages)
        for count in range(len(messages) - 1, 0, -1):
            snapshot = self._snapshots.get(keys[count - 1])
            if snapshot is not None:
                self._snapshots.move_to_end(keys[count - 1])
                return snapshot, count
        return START, 0

    def add(self, messages: Conversation, snapshot: Snapshot) -> None:
        """Keep the state after these messages, the last of them an answer."""
        key = _keys(messages)[-1]
        self._snapshots[key] = snapshot
        self._snapshots.move_to_end(key)
        while len(self._snapshots) > self._most:
            self._snapshots.popitem(last=False)


def _keys(messages: Conversation) -> list[bytes]:
    """A digest of each beginning of a conversation."""
    keys, digest = [], b""
    for message in messages:
        said = json.dumps([message["role"], message["content"]]).encode()
        digest = hashlib.sha256(digest + said).digest()
        keys.append(digest)
    return keys
