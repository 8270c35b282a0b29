"""The model as the routes use it: requests become jobs of the engine, its news wake their tasks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from newllm.chat.session import MAX_NEW_TOKENS
from newllm.data.tokenizers import never_written
from newllm.inference.answer_text import AnswerText
from newllm.inference.decoder import Snapshot
from newllm.inference.engine import Engine, Job, Piece
from newllm.inference.sampler import RngState, Sampler, Sampling
from newllm.serve.schemas import AnswerRequest, ApiError
from newllm.serve.store import PrefixCache, SessionStore
from newllm.trained import TrainedModel


@dataclass(frozen=True)
class Limits:
    """What one server does at most."""

    requests: int = 64
    """Answers written at the same time."""
    prompt_tokens: int = 32_768
    """New tokens that one request has the model read."""
    answer_tokens: int = 4096
    body_bytes: int = 2**20
    sessions: int = 256
    """Conversations in memory."""
    stored_sessions: int = 10_000
    """Conversations in the folder, besides."""
    client_seconds: float = 30.0
    """How long a client may take to send its request, or to take in a piece of the answer."""


_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The counters of one server, which `/metrics` tells Prometheus."""

    def __init__(self, active: Callable[[], int], sessions: Callable[[], int]) -> None:
        """Counters at zero.

        Args:
            active: tells the number of answers being written.
            sessions: tells the number of conversations kept.
        """
        self._registry = registry = CollectorRegistry()
        counter = partial(Counter, registry=registry)
        seconds = partial(Histogram, registry=registry, buckets=_SECONDS)
        ProcessCollector(registry=registry)
        self.requests = counter(
            "newllm_requests", "Requests by route and status.", ["route", "status"]
        )
        self.answers = counter("newllm_answers", "Answers by how they ended.", ["reason"])
        self.tokens_read = counter("newllm_prompt_tokens", "Tokens of prompts read.")
        self.tokens_cached = counter(
            "newllm_cached_tokens", "Tokens of prompts whose state was known."
        )
        self.tokens_written = counter("newllm_written_tokens", "Tokens of answers written.")
        self.first_token = seconds(
            "newllm_first_text_seconds", "From the request to the first text of its answer."
        )
        self.answer_seconds = seconds(
            "newllm_answer_seconds", "From the request to the end of its answer."
        )
        writing = Gauge("newllm_active_answers", "Answers being written.", registry=registry)
        writing.set_function(active)
        kept = Gauge("newllm_sessions", "Conversations kept.", registry=registry)
        kept.set_function(sessions)

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)


class Reply:
    """An answer that is being written, as the event loop sees it."""

    def __init__(self, job: Job, metrics: Metrics, finished: Callable[[Job], None]) -> None:
        self.job = job
        self.created = int(time.time())
        self._metrics, self._finished = metrics, finished
        self._started, self._begun, self._done = time.perf_counter(), False, False
        self._event = asyncio.Event()
        job.news = self._wake

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """What was written since the last time, until the answer has ended."""
        queue = self.job.pieces
        while True:
            new = [queue.popleft() for _ in range(len(queue))]
            if new:
                yield new
            elif self._done:
                return
            else:
                await self._event.wait()
                self._event.clear()

    def leave(self) -> None:
        """The client has gone: the answer ends where it is, if it has not ended yet."""
        self.job.cancelled = True

    def _wake(self) -> None:
        elapsed = time.perf_counter() - self._started
        if not self._begun and self.job.pieces:
            self._begun = True
            self._metrics.first_token.observe(elapsed)
        if self.job.reason is not None and not self._done:
            self._done = True
            self._metrics.answers.labels(self.job.reason).inc()
            self._metrics.answer_seconds.observe(elapsed)
            self._metrics.tokens_written.inc(self.job.written)
            self._finished(self.job)
        self._event.set()


class Service:
    """One model, its engine, its conversations."""

    def __init__(
        self, model: TrainedModel, name: str, limits: Limits, sessions_dir: Path | None = None
    ) -> None:
        self.model, self.name, self.limits = model, name, limits
        self.created = int(time.time())
        tokenizer = model.tokenizer
        self.engine = Engine(model.decoder, tokenizer.end, limits.requests, self._notify)
        self.store = SessionStore(model, limits.sessions, limits.stored_sessions, sessions_dir)
        self.cache = PrefixCache(model)
        self.metrics = Metrics(lambda: self.engine.jobs, lambda: len(self.store))
        self.stopping = False
        self._forbidden = never_written(tokenizer)

    async def start(self) -> None:
        """Begin to write answers, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self.engine.start()

    async def stop(self) -> None:
        """End what is being written, as it is, and save the conversations if there is a folder."""
        self.stopping = True
        await asyncio.to_thread(self.engine.stop)  # its last news are queued on this loop before
        self.store.save()

    def begin(
        self,
        start: Snapshot,
        ids: Sequence[int],
        asked: AnswerRequest,
        sampling: Sampling,
        finished: Callable[[Job], None],
        rng_state: RngState | None = None,
        top_logprobs: int | None = None,
        pictures: bool = False,
        trim: bool = True,
    ) -> Reply:
        """Have an answer written.

        Args:
            start: where the text stands.
            ids: what is read before the answer.
            asked: its limits and stop strings.
            sampling: how its tokens are drawn.
            finished: called when the answer has ended, also after its client has gone.
            rng_state: of the random numbers, if they do not start at the seed.
            top_logprobs: tell the log-probabilities of each token and so many others.
            pictures: tell what the state looks like.
            trim: leave out white space at the start.

        Raises:
            ApiError: nothing to read, too long, or too many at the same time.
        """
        limits = self.limits
        if not ids:
            raise ApiError(400, "nothing was said: the text is empty", "invalid_value", "content")
        if len(ids) > limits.prompt_tokens:
            raise ApiError(
                400,
                f"{len(ids):,} new tokens; this server reads {limits.prompt_tokens:,} a request: "
                "send a long text in several turns of a session",
                "context_length_exceeded",
                "messages",
            )
        most = MAX_NEW_TOKENS if asked.max_tokens is None else asked.max_tokens
        if most > limits.answer_tokens:
            raise ApiError(
                400, f"this server writes at most {limits.answer_tokens:,} tokens a request",
                "invalid_value", "max_tokens",
            )  # fmt: skip
        if self.stopping:
            raise ApiError(503, "the server is shutting down", "shutting_down")
        job = Job(
            start,
            ids,
            Sampler(sampling, self._forbidden, rng_state),
            AnswerText(self.model.tokenizer, asked.stops, trim),
            most,
            asked.min_tokens,
            top_logprobs,
            pictures,
        )
        reply = Reply(job, self.metrics, finished)
        if not self.engine.submit(job):
            raise ApiError(
                429, f"{limits.requests} answers are being written; try again", "too_many_requests"
            )
        self.metrics.tokens_read.inc(len(ids))
        self.metrics.tokens_cached.inc(start.tokens_read)
        return reply

    def _notify(self, jobs: list[Job]) -> None:
        """Called on the engine's thread: have the news told on the event loop."""
        self._loop.call_soon_threadsafe(_tell, jobs)


def _tell(jobs: list[Job]) -> None:
    for job in dict.fromkeys(jobs):
        job.news()
