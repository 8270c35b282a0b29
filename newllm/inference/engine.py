"""Many answers at once: a thread that takes requests in and lets them go between two tokens.

In every round the engine reads a bounded piece of the waiting prompts and then writes one token of
every answer: a long prompt delays the others by one piece at a time. With a fixed-size state that
is all there is to continuous batching (Yu et al. 2022, Orca): no blocks of keys and values to find
room for. `Lanes` takes the step of all answers together; models without it step one after another.
Either way an answer does not depend, to the bit, on which others are written beside it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np

from newllm.inference.answer_text import AnswerText
from newllm.inference.sampling import Draws, Point, Sampler, Stream
from newllm.model import ContextLM, LanguageModel, State
from newllm.model.context.decode import Lanes, can_step

PREFILL_TOKENS = 256
"""Prompt tokens read in a round: how long others wait for a prompt."""

_PICTURE_NUMBERS = 64
"""Numbers of each layer in a picture of the state."""

log = logging.getLogger("newllm.serve")

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Chosen:
    """How likely the model found a token that was taken, and the likeliest ones (natural logs)."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Piece:
    """What came of one token."""

    text: str
    chosen: Chosen | None = None
    picture: list[list[float]] | None = None


class Job:
    """One answer to write. After it finished, `reason`, `point` and `draws` tell how it ended."""

    def __init__(
        self,
        start: Point,
        ids: Sequence[int],
        sampler: Sampler,
        answer: AnswerText,
        max_tokens: int,
        min_tokens: int = 0,
        top_logprobs: int | None = None,
        pictures: bool = False,
    ) -> None:
        """An answer that has not begun.

        Args:
            start: where the text stands.
            ids: what is read first; at least one token.
            sampler: draws the answer's tokens.
            answer: collects its text.
            max_tokens: tokens it has at most.
            min_tokens: tokens before it may end.
            top_logprobs: tell the log-probabilities of each token and so many others.
            pictures: tell what the state looks like.
        """
        self.start, self.sampler, self.answer = start, sampler, answer
        self.max_tokens, self.min_tokens = max_tokens, min_tokens
        self.top_logprobs, self.pictures = top_logprobs, pictures
        self.prompt_tokens, self.written = len(ids), 0
        self.pieces: deque[Piece] = deque()
        """What was written and not yet taken by whoever waits for it."""
        self.reason: FinishReason | None = None
        self.point: Point | None = None
        """Where the text stands after the answer; None if the prompt was not read to its end."""
        self.cancelled = False
        self.news: Callable[[], None] = lambda: None
        """Called by whoever is notified, on a thread of theirs."""
        self._unread: Sequence[int] = ids
        self._stream: Stream | None = None
        self._prompt: Point | None = None
        """Where the answer began."""
        self._logits: np.ndarray | None = None
        self._lane, self._last = -1, -1

    @property
    def draws(self) -> Draws:
        """Where the random numbers are after the answer."""
        return self.sampler.draws


class Engine:
    """Writes the answers of all jobs on one thread, together."""

    def __init__(
        self, model: LanguageModel, end: int, max_jobs: int, notify: Callable[[list[Job]], None]
    ) -> None:
        """An engine that is not running yet.

        Args:
            model: in evaluation mode.
            end: the token that ends an answer.
            max_jobs: jobs at the same time.
            notify: is told on the engine's thread, once a round, which jobs have news.
        """
        self._model, self._end, self._max_jobs, self._notify = model, end, max_jobs, notify
        self._arrivals: SimpleQueue[Job | None] = SimpleQueue()
        self._count, self._lock = 0, threading.Lock()
        self._news: list[Job] = []
        self._begin()
        self._thread = threading.Thread(target=self._run, name="newllm engine", daemon=True)

    @property
    def jobs(self) -> int:
        """Answers that are waiting or being written."""
        return self._count

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End all answers where they are, and the thread; returns when it has ended."""
        self._arrivals.put(None)
        self._thread.join()

    def submit(self, job: Job) -> bool:
        """Take a job in; False if there are too many already."""
        with self._lock:
            if self._count >= self._max_jobs:
                return False
            self._count += 1
        self._arrivals.put(job)
        return True

    def _run(self) -> None:
        while self._take_arrivals():
            try:
                self._round()
            except Exception:  # a fault of ours: these answers are lost, later ones are not
                log.exception("all answers were given up")
                for job in [*self._reading, *self._writing]:
                    self._finish(job, "error", None)
                self._begin()
            self._tell()
        while not self._arrivals.empty():
            if job := self._arrivals.get():
                self._finish(job, "cancelled", None)
        for job in self._reading:
            self._finish(job, "cancelled", None)
        for job in list(self._writing):
            self._end_writing(job, "cancelled")
        self._tell()

    def _begin(self) -> None:
        model = self._model
        self._lanes = Lanes(model) if isinstance(model, ContextLM) and can_step(model) else None
        self._reading: deque[Job] = deque()
        self._writing: list[Job] = []

    def _take_arrivals(self) -> bool:
        """Wait for something to do; False to end."""
        idle = not self._reading and not self._writing
        while idle or not self._arrivals.empty():
            job = self._arrivals.get()
            if job is None:
                return False
            job._stream = Stream(self._model, job.start)
            self._reading.append(job)
            idle = False
        return True

    def _round(self) -> None:
        self._leave()
        self._read()
        if self._writing:
            self._write()

    def _tell(self) -> None:
        if self._news:
            news, self._news = self._news, []
            self._notify(news)

    def _leave(self) -> None:
        """End the jobs that nobody waits for any more."""
        for job in [job for job in self._reading if job.cancelled and not job.answer.stopped]:
            self._reading.remove(job)
            self._finish(job, "cancelled", None)
        for job in [job for job in self._writing if job.cancelled]:
            self._end_writing(job, "cancelled")

    def _read(self) -> None:
        """Read a piece of the prompts, in turn; whose prompt is read begins to write."""
        budget = PREFILL_TOKENS
        while self._reading and budget > 0:
            job = self._reading.popleft()
            stream = job._stream
            assert stream is not None
            part, job._unread = job._unread[:PREFILL_TOKENS], job._unread[PREFILL_TOKENS:]
            budget -= len(part)
            try:
                stream.read(part)
            except Exception:
                log.exception("a prompt could not be read")
                self._finish(job, "error", None)
                continue
            if job._unread:
                self._reading.append(job)
            elif job.answer.stopped:  # what was said before the stop string is read now
                self._finish(job, "stop", stream.point)
            else:
                self._begin_writing(job, stream)

    def _begin_writing(self, job: Job, stream: Stream) -> None:
        job._prompt, job._logits = stream.point, stream.logits
        if self._lanes is not None:
            job._lane, job._stream = self._lanes.add(job._prompt.state), None
        job.sampler.begin_answer()
        self._writing.append(job)

    def _write(self) -> None:
        """Draw a token of every answer, and read it."""
        drawn: list[tuple[Job, int, Chosen | None]] = []
        for job in list(self._writing):
            assert job._logits is not None
            try:
                forbidden = (self._end,) if job.written < job.min_tokens else ()
                token = job.sampler.draw(job._logits, forbidden)
            except FloatingPointError as error:
                log.error("an answer was given up: %s", error)
                self._end_writing(job, "error")
                continue
            chosen = None
            if job.top_logprobs is not None:
                chosen = _how_likely(job._logits, token, job.top_logprobs)
            drawn.append((job, token, chosen))
        if not drawn:
            return
        if self._lanes is not None:
            rows = self._lanes.step([job._lane for job, *_ in drawn], [t for _, t, _ in drawn])
            for (job, *_), row in zip(drawn, rows, strict=True):
                job._logits = row
        else:
            for job, token, _ in drawn:
                assert job._stream is not None
                job._stream.read([token])
                job._logits = job._stream.logits
        for job, token, chosen in drawn:
            self._take_token(job, token, chosen)

    def _take_token(self, job: Job, token: int, chosen: Chosen | None) -> None:
        job.written += 1
        job._last = token
        if token == self._end:
            self._end_writing(job, "stop")
            return
        text = job.answer.add(token)
        if text or chosen:
            picture = state_picture(self._state(job)) if job.pictures else None
            job.pieces.append(Piece(text, chosen, picture))
            self._news.append(job)
        if job.answer.stopped:
            self._read_again(job)
        elif job.written >= job.max_tokens:
            self._end_writing(job, "length")

    def _read_again(self, job: Job) -> None:
        """Read the answer up to its stop string: the state then is of what was said, no more."""
        assert job._prompt is not None
        self._writing.remove(job)
        self._free_lane(job)
        said = job.answer.tokens()
        job._stream = Stream(self._model, job._prompt)
        if said:
            job._unread = said
            self._reading.append(job)
        else:
            self._finish(job, "stop", job._prompt)

    def _state(self, job: Job) -> State:
        if self._lanes is not None:
            return self._lanes.state(job._lane)
        assert job._stream is not None
        assert job._stream.state is not None
        return job._stream.state

    def _end_writing(self, job: Job, reason: FinishReason) -> None:
        """Let a job go."""
        assert job._prompt is not None
        self._writing.remove(job)
        point = job._prompt
        if job.written:
            point = Point(self._state(job), job._last, point.tokens_read + job.written)
        self._free_lane(job)
        self._finish(job, reason, point)

    def _free_lane(self, job: Job) -> None:
        if self._lanes is not None:
            self._lanes.remove(job._lane)

    def _finish(self, job: Job, reason: FinishReason, point: Point | None) -> None:
        rest = job.answer.finish()
        if rest:
            job.pieces.append(Piece(rest))
        job.point, job.reason = point, reason
        with self._lock:
            self._count -= 1
        self._news.append(job)


def _how_likely(logits: np.ndarray, token: int, count: int) -> Chosen:
    """The model's own opinion: no temperature, nothing forbidden."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    top = np.argsort(-scores, kind="stable")[:count]
    pairs = [(int(i), float(scores[i])) for i in top]
    return Chosen(token, float(scores[token]), pairs)


def state_picture(state: State) -> list[list[float]]:
    """A small picture of a state: at most 64 evenly spaced numbers of each layer's vector."""
    vectors: Any = next(iter(state.values()))[:, 0].flatten(1).float().numpy(force=True)
    step = max(1, -(-vectors.shape[1] // _PICTURE_NUMBERS))
    return [[round(float(value), 3) for value in row[::step]] for row in vectors]
