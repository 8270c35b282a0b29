"""Many answers at once, written by one thread; answers begin and end between two tokens.

In every round the engine reads a bounded part of the waiting prompts and then writes one token of
every answer: a long prompt delays the others by one part at a time. With a state of fixed size that
is all there is to continuous batching (Yu et al. 2022, Orca): no blocks of keys and values to
allocate. Each answer has a slot of one decoder. The fused step takes all slots together, on a CPU
or as a CUDA graph; the plain module takes one after another. Either way an answer does not depend,
to the bit, on which others are written beside it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
import torch

from newllm.inference.answer_text import AnswerText
from newllm.inference.decoder import Decoder, Snapshot, Stream
from newllm.inference.sampler import RngState, Sampler, likeliest
from newllm.model import State
from newllm.threads import FreeThreads

PREFILL_TOKENS = 256
"""Prompt tokens read in a round: how long other answers wait for a prompt."""

INTERIM_SECONDS = 0.5
"""How often an answer on its way tells where it stands, to those who keep that."""

_LATELY = 16
"""Ends of jobs after which an old pace counts for a third."""

_PICTURE_NUMBERS = 64
"""Numbers of each layer in a picture of the state."""

log = logging.getLogger("newllm.serve")

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class TokenLogprob:
    """How likely the model found a token that was taken, and the likeliest ones (natural logs)."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Picture:
    """What a state looks like."""

    context: list[list[float]]
    """At most 64 evenly spaced numbers of each layer's vector."""
    recall: list[list[float]]
    """How full 64 parts of each table of recall are, 0..1; no tables without recall."""


@dataclass(frozen=True)
class Piece:
    """What came of one token."""

    text: str
    chosen: TokenLogprob | None = None
    recalled: bool = False
    """Whether recall proposed the token; only looked at where pictures are asked for."""
    picture: Picture | None = None
    ended: bool = False
    """Whether it is the token that ends the answer, which has no text."""


@dataclass(frozen=True)
class Interim:
    """Where an answer on its way stands: what there is of it if it ends here."""

    text: str
    snapshot: Snapshot
    rng_state: RngState


@dataclass(eq=False)
class Job:
    """One answer to write, as whoever asks for it sees it.

    The engine adds to `pieces` and `written` and sets the rest of the outcome when the answer has
    ended, `reason` last.
    """

    start: Snapshot
    """Where the text stands."""
    ids: Sequence[int]
    """What is read first; at least one token."""
    sampler: Sampler
    answer: AnswerText
    """Collects its text."""
    max_tokens: int
    """0: only the prompt is read."""
    min_tokens: int = 0
    """Tokens before it may end."""
    top_logprobs: int | None = None
    """Tell the log-probabilities of each token and so many others."""
    pictures: bool = False
    """Tell what the state looks like."""
    prompt_logprobs: bool = False
    """Tell the log-probabilities of the prompt's tokens as well, `top_logprobs` being set."""
    wants_interim: bool = False
    """Tell twice a second where the answer stands."""
    cancelled: bool = field(default=False, init=False)
    """Set by whoever asked, from any thread: the answer ends where it is."""
    news: Callable[[], None] = field(default=lambda: None, init=False)
    """Called, by the function that the engine notifies, when something below has changed."""
    pieces: deque[Piece] = field(default_factory=deque, init=False)
    """What was written and not yet taken by whoever asked."""
    prompt: list[TokenLogprob | None] = field(default_factory=list, init=False)
    """How likely the tokens of `ids` were; None for one that nothing stands before."""
    interim: Interim | None = field(default=None, init=False)
    """Where the answer stood a moment ago."""
    written: int = field(default=0, init=False)
    """Tokens of the answer so far."""
    snapshot: Snapshot | None = field(default=None, init=False)
    """Where the text stands after the answer; None if the prompt was not read to its end, or the
    answer was given up."""
    not_finite: bool = field(default=False, init=False)
    """Whether it was given up because the model's scores were no numbers."""
    reason: FinishReason | None = field(default=None, init=False)
    """How the answer ended; None while it has not."""

    @property
    def rng_state(self) -> RngState:
        """State of the random numbers after the answer."""
        return self.sampler.rng_state


class _Running:
    """What the engine knows of a job: it is read in a stream, then written in a slot.

    While the answer is written, the stream stays where the answer began.
    """

    def __init__(self, job: Job, stream: Stream) -> None:
        self.job, self.stream = job, stream
        self.unread: Sequence[int] = job.ids
        self.slot, self.last_token = -1, -1
        self.logits: np.ndarray | None = None
        """Scores of the next token, fp32 [V]."""
        self.told = time.monotonic()
        """When it was told where the answer stands."""

    def snapshot(self, decoder: Decoder) -> Snapshot:
        """Where the text stands while the answer is written."""
        written = self.job.written
        if not written:
            return self.stream.snapshot
        state = decoder.state(self.slot)
        return Snapshot(state, self.last_token, self.stream.tokens_read + written)


class Engine:
    """Writes the answers of all jobs on one thread, together."""

    def __init__(
        self,
        decoder: Decoder,
        end: int,
        max_jobs: int,
        notify: Callable[[list[Job]], None],
        queue: int = 0,
    ) -> None:
        """An engine that is not running yet.

        Args:
            decoder: of the model; the engine works with an empty copy of it.
            end: the token that ends an answer.
            max_jobs: jobs at the same time.
            notify: is told on the engine's thread, once a round, which jobs have news.
            queue: jobs that wait besides, in the order in which they came.
        """
        self._decoder, self._end, self._max_jobs, self._notify = decoder, end, max_jobs, notify
        self.capacity = max_jobs + queue
        """Jobs that are accepted at the same time."""
        self.seconds_per_job = 0.0
        """Between the ends of two jobs while there is work, of late."""
        self._last_end = time.monotonic()
        self._waiting: deque[Job] = deque()
        self._arrivals: SimpleQueue[Job | None] = SimpleQueue()
        self._count, self._lock = 0, threading.Lock()
        self._news: list[Job] = []
        self._begin()
        self._thread = threading.Thread(target=self._run, name="newllm engine", daemon=True)

    @property
    def jobs(self) -> int:
        """Answers that are waiting or being written."""
        return self._count

    @property
    def waiting(self) -> int:
        """Those of them that wait for one to end."""
        return max(0, self._count - self._max_jobs)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End all answers where they are, and the thread; returns when it has ended."""
        self._arrivals.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    def submit(self, *jobs: Job) -> bool:
        """Accept some jobs, or none of them: False if there are too many already."""
        with self._lock:
            if self._count + len(jobs) > self.capacity:
                return False
            self._count += len(jobs)
        for job in jobs:
            self._arrivals.put(job)
        return True

    def _run(self) -> None:
        self._threads = FreeThreads()  # torch counts those of each thread by itself
        while self._take_arrivals():
            try:
                self._round()
            except Exception:  # a bug: the answers in progress are lost, later ones are not
                log.exception("all answers were given up")
                for running in [*self._reading, *self._writing]:
                    self._finish(running.job, "error", None)
                self._begin()
            self._tell()
        while not self._arrivals.empty():
            if job := self._arrivals.get():
                self._waiting.append(job)
        while self._waiting:
            self._finish(self._waiting.popleft(), "cancelled", None)
        for running in self._reading:
            self._finish(running.job, "cancelled", None)
        for running in list(self._writing):
            self._end_writing(running, "cancelled")
        self._tell()

    def _begin(self) -> None:
        """Start without any job, on slots that no earlier job has touched."""
        self._decoder = self._decoder.empty_copy(self._max_jobs)
        self._reading: deque[_Running] = deque()
        self._writing: list[_Running] = []

    def _take_arrivals(self) -> bool:
        """Wait for something to do; False to end."""
        idle = not (self._reading or self._writing or self._waiting)
        while idle or not self._arrivals.empty():
            job = self._arrivals.get()
            if job is None:
                return False
            self._waiting.append(job)
            if idle:
                self._last_end = time.monotonic()
            idle = False
        for job in [job for job in self._waiting if job.cancelled]:
            self._waiting.remove(job)
            self._finish(job, "cancelled", None)
        while self._waiting and len(self._reading) + len(self._writing) < self._max_jobs:
            job = self._waiting.popleft()
            self._reading.append(_Running(job, Stream(self._decoder, job.start)))
        return True

    def _round(self) -> None:
        self._end_cancelled()
        self._read()
        if self._writing:
            self._write()

    def _tell(self) -> None:
        if self._news:
            news, self._news = self._news, []
            self._notify(news)

    def _end_cancelled(self) -> None:
        """End the answers that were cancelled since the last round."""
        for running in [*self._reading]:
            # One that met its stop string is complete: only its state is still to be made.
            if running.job.cancelled and not running.job.answer.stopped:
                self._reading.remove(running)
                self._finish(running.job, "cancelled", None)
        for running in [running for running in self._writing if running.job.cancelled]:
            self._end_writing(running, "cancelled")

    def _read(self) -> None:
        """Read a part of the prompts, in turn; a job whose prompt is read begins to write."""
        if self._reading:
            self._threads.look()
        budget = PREFILL_TOKENS
        while self._reading and budget > 0:
            running = self._reading.popleft()
            job, stream, unread = running.job, running.stream, running.unread
            part, running.unread = unread[:PREFILL_TOKENS], unread[PREFILL_TOKENS:]
            budget -= len(part)
            begins = not running.unread and not job.answer.stopped and job.max_tokens > 0
            try:
                if job.prompt_logprobs and not job.answer.stopped:  # else the answer is read again
                    _score(job, stream, part)
                else:
                    stream.read(part)
                if begins:
                    running.slot, running.logits = self._decoder.add(stream.state), stream.logits
                    self._decoder.begin_answer(running.slot)
            except Exception:
                log.exception("a prompt could not be read")
                self._finish(job, "error", None)
                continue
            if begins:
                job.sampler.begin_answer()
                self._writing.append(running)
            elif running.unread:
                self._reading.append(running)
            elif job.answer.stopped:  # what was said before the stop string is read now
                self._finish(job, "stop", stream.snapshot)
            else:
                self._finish(job, "length", stream.snapshot)

    def _write(self) -> None:
        """Draw a token of every answer, and read it."""
        drawn: list[tuple[_Running, int, TokenLogprob | None, bool]] = []
        for running in list(self._writing):
            job = running.job
            assert running.logits is not None
            try:
                forbidden = (self._end,) if job.written < job.min_tokens else ()
                token = job.sampler.draw(running.logits, forbidden)
            except FloatingPointError as error:
                log.error("an answer was given up: %s", error)
                job.not_finite = True
                self._end_writing(running, "error")
                continue
            chosen = None
            if job.top_logprobs is not None:
                chosen = _how_likely(running.logits, token, job.top_logprobs)
            recalled = job.pictures and self._decoder.recalled(running.slot) == token
            drawn.append((running, token, chosen, recalled))
        if not drawn:
            return
        slots, tokens = [running.slot for running, *_ in drawn], [token for _, token, *_ in drawn]
        logits = self._decoder.step(slots, tokens)
        for (running, token, chosen, recalled), row in zip(drawn, logits, strict=True):
            running.logits = row
            self._take_token(running, token, chosen, recalled)

    def _take_token(
        self, running: _Running, token: int, chosen: TokenLogprob | None, recalled: bool
    ) -> None:
        job = running.job
        job.written += 1
        running.last_token = token
        if token == self._end:
            if chosen is not None:
                job.pieces.append(Piece("", chosen, ended=True))
            self._end_writing(running, "stop")
            return
        text = job.answer.add(token)
        if text or chosen:
            picture = state_picture(self._decoder.state(running.slot)) if job.pictures else None
            job.pieces.append(Piece(text, chosen, recalled, picture))
            self._news.append(job)
        if job.answer.stopped:
            self._read_again(running)
        elif job.written >= job.max_tokens:
            self._end_writing(running, "length")
        elif job.wants_interim and time.monotonic() - running.told >= INTERIM_SECONDS:
            running.told = time.monotonic()
            snapshot = running.snapshot(self._decoder)
            if snapshot.is_finite:
                job.interim = Interim(job.answer.text_if_cut, snapshot, job.rng_state)
                self._news.append(job)

    def _read_again(self, running: _Running) -> None:
        """Read the answer up to its stop string: the state then is of what was said, no more."""
        running.unread = running.job.answer.tokens()
        self._writing.remove(running)
        self._decoder.remove(running.slot)
        if running.unread:
            self._reading.append(running)
        else:
            self._finish(running.job, "stop", running.stream.snapshot)

    def _end_writing(self, running: _Running, reason: FinishReason) -> None:
        after = running.snapshot(self._decoder)
        self._writing.remove(running)
        self._decoder.remove(running.slot)
        self._finish(running.job, reason, after)

    def _finish(self, job: Job, reason: FinishReason, snapshot: Snapshot | None) -> None:
        """Tell how a job ended; a state that nothing can follow is told of no one."""
        if snapshot is not None and not snapshot.is_finite:
            log.error("an answer was given up: the state after it is not finite")
            reason, job.not_finite = "error", True
        snapshot = None if reason == "error" else snapshot
        rest = job.answer.finish()
        if rest:
            job.pieces.append(Piece(rest))
        job.snapshot, job.reason = snapshot, reason
        now = time.monotonic()
        self.seconds_per_job += (now - self._last_end - self.seconds_per_job) / _LATELY
        self._last_end = now
        with self._lock:
            self._count -= 1
        self._news.append(job)


def _score(job: Job, stream: Stream, ids: Sequence[int]) -> None:
    """Read a part of a prompt, and tell how likely each of its tokens was."""
    before = stream.logits
    scores = stream.read_scored(ids)
    rows = scores[:-1] if before is None else np.concatenate([before[None], scores[:-1]])
    if before is None:
        job.prompt.append(None)
    count = job.top_logprobs or 0
    logprobs = torch.log_softmax(torch.from_numpy(rows), dim=-1)
    top = logprobs.topk(count, dim=-1)
    told = logprobs[torch.arange(len(rows)), torch.tensor(ids[len(ids) - len(rows) :])]
    for token, own, values, tokens in zip(
        ids[len(ids) - len(rows) :], told.tolist(), top.values.tolist(), top.indices.tolist(),
        strict=True,
    ):  # fmt: skip
        job.prompt.append(TokenLogprob(token, own, list(zip(tokens, values, strict=True))))


def _how_likely(logits: np.ndarray, token: int, count: int) -> TokenLogprob:
    """The model's own opinion: no temperature, nothing forbidden."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    top = likeliest(scores, count)
    return TokenLogprob(
        token, float(scores[token]), list(zip(top.tolist(), scores[top].tolist(), strict=True))
    )


def state_picture(state: State) -> Picture:
    """A small picture of a state."""
    first = next(iter(state.values()))  # what the blocks carry stands before what tokens left
    vectors: Any = first[:, 0].flatten(1).float().numpy(force=True)
    step = max(1, -(-vectors.shape[1] // _PICTURE_NUMBERS))
    context = [[round(float(value), 3) for value in row[::step]] for row in vectors]
    if "recall" not in state:
        return Picture(context, [])
    filled = state["recall"][:, 0].flatten(1).numpy(force=True) > 0
    parts = min(_PICTURE_NUMBERS, filled.shape[1])
    recall = [
        [round(float(part.mean()), 3) for part in np.array_split(row, parts)] for row in filled
    ]
    return Picture(context, recall)
