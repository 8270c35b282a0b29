"""The conversations a server keeps: the ones used last in memory, all of them in a folder.

What is said is written to the folder at once, by threads beside the event loop, so that whatever
ends the server loses next to nothing. Ids are random numbers that the server made. A request's id
is looked up among them and is never part of a path.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import secrets
import stat
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock

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

_WRITERS = 4
"""Files written at the same time: most of the time is waiting for the disk."""

_RETRY_SECONDS = 1.0
"""Until a file that could not be written is tried again."""

_FILE = re.compile(r"[0-9a-f]{32}\.session")
_SCRATCH = re.compile(r"\.[0-9a-f]{32}\.session\.tmp-.*|\.?\.trial-[0-9a-f]{8}(\.tmp-.*)?")
"""What a server that was killed leaves half done."""

_TITLE = 60

log = logging.getLogger("newllm.serve")


@dataclass(eq=False)
class Session:
    """One conversation: in memory, or only its facts while it is on disk."""

    id: str
    model: str = ""
    """Name of the model it is with; not known of one on disk until it is looked at."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Of one on disk, nothing until it is looked at."""
    dialogue: Dialogue | None = None
    busy: bool = False
    """Whether an answer is being written."""
    known_tokens: int = 0
    """Tokens that others read than this server: before its start, or before an upload."""
    created: float = field(default_factory=time.time)
    last_used: float = field(default_factory=time.time)


class SessionStore:
    """All conversations of a server; used on one thread alone."""

    def __init__(
        self,
        models: Mapping[str, tuple[str, TrainedModel]],
        in_memory: int,
        stored: int,
        folder: Path | None,
    ) -> None:
        """Find the conversations that an earlier server left in the folder.

        Args:
            models: name and model by fingerprint.
            in_memory: conversations kept in memory.
            stored: conversations kept in the folder besides.
            folder: where all are written; None: there are those in memory alone.

        Raises:
            UserError: the folder cannot be made, read or written.
        """
        self._models, self._in_memory, self._folder = models, in_memory, folder
        self._most = in_memory + (stored if folder else 0)
        self._sessions: dict[str, Session] = {}
        """The least recently used first."""
        self._loaded: OrderedDict[str, Session] = OrderedDict()
        """Those in memory, likewise."""
        self._changed: OrderedDict[str, Dialogue | None] = OrderedDict()
        """Ids of those that are not in the folder as they are now, the one that waits longest
        first; of a conversation whose answer is on its way, what there is of it."""
        self._being_written: set[str] = set()
        self.failure: str | None = None
        """Why the last file could not be written; None if it could."""
        self._wake = asyncio.Event()
        self._writers: list[asyncio.Task[None]] = []
        self._stopping = False
        self._lock: filelock.BaseFileLock | None = None
        """Of the folder."""
        if folder is not None:
            self._find(folder)

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def unsaved(self) -> int:
        """Conversations that are not in the folder as they are now."""
        return len(self._changed.keys() | self._being_written) if self._folder else 0

    def start(self) -> None:
        """Begin to write what changes, on the running event loop."""
        if self._folder is not None:
            self._writers = [asyncio.create_task(self._write_changed()) for _ in range(_WRITERS)]
            self._writers.append(asyncio.create_task(self._look_at_all()))

    async def stop(self) -> None:
        """Write what is still to be written."""
        self._stopping = True
        self._wake.set()
        await asyncio.gather(*self._writers)
        self.save()

    async def page(self, limit: int, after: str | None, search: str) -> tuple[list[Session], bool]:
        """Some of the conversations, the most recently used first, and whether there are more.

        Args:
            limit: so many at most.
            after: only those that come after the one of this id.
            search: only those whose title has this in it, in whatever case.

        Raises:
            ApiError: there is no conversation of the id.
        """
        found: list[Session] = []
        for number, session in enumerate(self._from(after)):
            if number % 16 == 15:  # each may be a file to look at: others come in between
                await asyncio.sleep(0)
            if session.id not in self._sessions or not self._looked_at(session):
                continue
            if search and search not in (session.facts["title"] or "").casefold():
                continue
            if len(found) == limit:
                return found, True
            found.append(session)
        return found, False

    def _from(self, after: str | None) -> Iterator[Session]:
        sessions = iter(list(reversed(self._sessions.values())))
        if after is not None:
            self._named(after)
            for session in sessions:
                if session.id == after:
                    break
        return sessions

    def add(self, model: str, dialogue: Dialogue) -> Session:
        """Keep a new conversation with the model of this name.

        Raises:
            ApiError: there are too many.
        """
        if len(self._sessions) >= self._most:
            raise ApiError(
                429, f"{self._most} sessions are kept; delete one first", "too_many_sessions"
            )
        if self.failure and len(self._loaded) >= self._in_memory:
            message = f"the server cannot save conversations ({self.failure})"
            raise ApiError(507, message, "disk_full")
        session = Session(secrets.token_hex(16), model, dialogue=dialogue)
        session.known_tokens = dialogue.next_turn.snapshot.tokens_read
        self._sessions[session.id] = self._loaded[session.id] = session
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
                session.dialogue = self._read(session)
            except UserError as error:
                log.error("%s", error)
                raise ApiError(410, "this session's file is damaged", "session_damaged") from None
            self._loaded[name] = session
        self._sessions[name] = self._sessions.pop(name)  # of these, ten thousand are listed fast
        self._loaded.move_to_end(name)
        session.last_used = time.time()
        self._make_room()
        return session, session.dialogue

    def changed(self, session: Session) -> None:
        """Note the facts of a conversation as it is now, and have it written."""
        assert session.dialogue is not None
        turn, past = session.dialogue.next_turn, session.dialogue.past_turns
        session.facts = _facts(
            session.dialogue.transcript, turn.snapshot.tokens_read, turn.messages, len(past)
        )
        session.last_used = time.time()
        self._write_soon(session, None)
        self._make_room()

    def on_its_way(self, session: Session, so_far: Dialogue) -> None:
        """Have a conversation written as it is if its answer ends here."""
        self._write_soon(session, so_far)

    async def delete(self, name: str) -> None:
        """Forget a conversation.

        Raises:
            ApiError: there is none of this id, or an answer is being written.
        """
        session = self._named(name, idle=True)
        del self._sessions[name]
        self._loaded.pop(name, None)
        self._changed.pop(name, None)
        while name in self._being_written:
            await asyncio.sleep(0.001)
        if self._folder is not None:
            self._file(session).unlink(missing_ok=True)

    def save(self) -> None:
        """Write all that is still to be written, here and now; the folder may be another's then."""
        for name in list(self._changed) if self._folder else ():
            work = self._take(name)
            if work is not None:
                self._wrote(work, _write(*work[1:]))
        if self._lock is not None:
            self._lock.release()

    def _named(self, name: str, idle: bool = False) -> Session:
        session = self._sessions.get(name)
        if session is None or not self._looked_at(session):
            raise ApiError(404, "there is no session of this id", "session_not_found")
        if idle and session.busy:
            raise ApiError(409, "an answer is being written in this session", "session_busy")
        return session

    def _make_room(self) -> None:
        """Let go of those used longest ago, where memory has too many and the folder has them."""
        excess = len(self._loaded) - self._in_memory
        if excess <= 0 or self._folder is None:
            return
        for session in list(self._loaded.values())[:-1]:  # never the one just used
            saved = session.id not in self._changed and session.id not in self._being_written
            if saved and not session.busy and excess > 0:
                session.dialogue, excess = None, excess - 1
                del self._loaded[session.id]

    # What is written -------------------------------------------------------------------------

    def _write_soon(self, session: Session, so_far: Dialogue | None) -> None:
        if self._folder is not None:
            self._changed[session.id] = so_far
            self._wake.set()

    async def _write_changed(self) -> None:
        """One of the writers."""
        while True:
            name = next((n for n in self._changed if n not in self._being_written), None)
            if name is None or (self.failure and self._stopping):
                if self._stopping:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            work = self._take(name)
            if work is not None:
                self._wrote(work, await asyncio.to_thread(_write, *work[1:]))
            if self.failure and not self._stopping:
                await asyncio.sleep(_RETRY_SECONDS)

    def _take(self, name: str) -> tuple[Session, Path, Dialogue, TrainedModel] | None:
        so_far, session = self._changed.pop(name), self._sessions[name]
        dialogue = so_far or session.dialogue
        if dialogue is None:
            return None
        self._being_written.add(name)
        return session, self._file(session), dialogue.copy(), self._model(session)

    def _wrote(self, work: tuple[Session, Path, Dialogue, TrainedModel], failure: str) -> None:
        session, file = work[:2]
        self._being_written.discard(session.id)
        if session.id not in self._sessions:  # deleted meanwhile
            file.unlink(missing_ok=True)
            return
        if failure and failure != self.failure:
            log.error("%s: %s; conversations stay in memory until it can be written", file, failure)
        self.failure = failure or None
        if failure:
            self._changed.setdefault(session.id, None)
        self._make_room()

    def _model(self, session: Session) -> TrainedModel:
        return next(model for name, model in self._models.values() if name == session.model)

    def _file(self, session: Session) -> Path:
        assert self._folder is not None
        return self._folder / f"{session.id}.session"

    # What is found ---------------------------------------------------------------------------

    def _read(self, session: Session) -> Dialogue:
        model = self._model(session)
        return session_file.read(
            self._file(session), model.model, model.renderer, model.fingerprint
        )

    def _looked_at(self, session: Session) -> bool:
        """Read the file's header, once; False if no model that it names is served here."""
        if session.facts:
            return True
        file = self._file(session)
        try:
            found = session_file.summary(file)
            if found.model not in self._models:
                raise UserError(f"{file}: with a model that is not served")
        except UserError as error:
            log.warning("left alone: %s", error)
            del self._sessions[session.id]
            return False
        session.model, session.known_tokens = self._models[found.model][0], found.tokens_read
        session.facts = _facts(
            found.transcript, found.tokens_read, found.messages, found.undo_turns
        )
        return True

    async def _look_at_all(self) -> None:
        """Look at those on disk ahead of requests, in the gaps between them."""
        for session in list(reversed(self._sessions.values())):
            if self._stopping:
                return
            if not session.facts and session.id in self._sessions:
                self._looked_at(session)
                await asyncio.sleep(0.001)

    def _find(self, folder: Path) -> None:
        found: list[tuple[float, str]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = filelock.FileLock(folder / ".lock", thread_local=False)
            self._lock.acquire(timeout=0)
            _try(folder)
            for entry in os.scandir(folder):
                if _SCRATCH.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    os.unlink(entry.path)
                elif _FILE.fullmatch(entry.name):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        found.append((status.st_mtime, entry.name.partition(".")[0]))
                    else:
                        log.warning("left alone: %s: not a regular file", entry.path)
        except filelock.Timeout:
            raise UserError(f"--sessions-dir {folder}: another server is using it") from None
        except NotImplementedError:
            log.warning("%s cannot lock files: let no second server use it", folder)
        except OSError as error:
            raise UserError(f"--sessions-dir {folder}: {error.strerror}") from None
        for written, name in sorted(found):
            self._sessions[name] = Session(name, created=written, last_used=written)


def _try(folder: Path) -> None:
    """Raises OSError if no file can be written there."""
    trial = folder / f".trial-{secrets.token_hex(4)}"
    write_bytes(trial, b"\0" * 4096, tidy=False)
    trial.unlink()


def _write(file: Path, dialogue: Dialogue, model: TrainedModel) -> str:
    """Why a conversation could not be written; empty if it was. On any thread."""
    content = session_file.encode(
        dialogue, model.model, model.renderer, model.fingerprint, undo=True
    )
    try:
        write_bytes(file, content, tidy=False)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _facts(
    transcript: Conversation, tokens_read: int, messages: int, undo_turns: int
) -> dict[str, Any]:
    """What the routes give of a conversation as it is now."""
    questions = [m["content"] for m in transcript if m["role"] == "user"]
    return {
        "title": " ".join(questions[0].split())[:_TITLE] if questions else None,
        "tokens_read": tokens_read,
        "messages": messages,
        "messages_dropped": messages - len(transcript),
        "undo_turns": undo_turns,
        "revision": secrets.token_hex(8),
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
