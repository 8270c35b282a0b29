"""The models as the routes use them: requests become jobs, news of the engines wake their tasks."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
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

from newllm.chat.dialogue import model_state_bytes
from newllm.data.tokenizers import never_written
from newllm.inference.answer_text import AnswerText
from newllm.inference.decoder import Snapshot
from newllm.inference.engine import Engine, Interim, Job, Piece
from newllm.inference.sampler import RngState, Sampler
from newllm.inference.sampling import MAX_NEW_TOKENS, Sampling
from newllm.serve.schemas import AnswerRequest, ApiError, shutting_down
from newllm.serve.store import PrefixCache, SessionStore
from newllm.trained import TrainedModel


@dataclass(frozen=True)
class Limits:
    """What one server does at most."""

    requests: int = 64
    """Answers of one model written at the same time."""
    queue: int = 256
    """Answers that wait for their turn besides."""
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
    connections: int = 1024
    """Open connections; beyond, those that have been silent longest are closed."""


_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The counters of one server, for Prometheus (`/metrics`)."""

    def __init__(self, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        """Counters at zero.

        Args:
            gauges: name, meaning, and a function that gives the present value.
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
            "newllm_cached_tokens", "Tokens of prompts that this server had read before."
        )
        self.tokens_written = counter("newllm_written_tokens", "Tokens of answers written.")
        self.first_token = seconds(
            "newllm_first_text_seconds", "From the request to the first text of its answer."
        )
        self.answer_seconds = seconds(
            "newllm_answer_seconds", "From the request to the end of its answer."
        )
        for name, (meaning, value) in gauges.items():
            Gauge(name, meaning, registry=registry).set_function(value)

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)


class Reply:
    """An answer that is being written, as the event loop sees it."""

    def __init__(
        self,
        job: Job,
        metrics: Metrics,
        finished: Callable[[Job], None],
        interim: Callable[[Interim], None] | None = None,
    ) -> None:
        self.job = job
        self.created = int(time.time())
        self._metrics, self._finished, self._interim = metrics, finished, interim
        self._started, self._begun, self._done = time.perf_counter(), False, False
        self._event = asyncio.Event()
        job.news = self._wake

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """What was written since the last time; when the answer has ended, an empty list."""
        queue = self.job.pieces
        while True:
            new = [queue.popleft() for _ in range(len(queue))]
            if new:
                yield new
            elif self._done:
                yield []
                return
            else:
                await self._event.wait()
                self._event.clear()

    @property
    def failure(self) -> ApiError | None:
        """Why there is no answer, when it has ended."""
        if self.job.reason == "error":
            why, code = "the server failed", "internal_error"
            if self.job.not_finite:
                why, code = "the model's scores are not finite", "not_finite"
            return ApiError(500, f"the answer was given up: {why} (see the server's log)", code)
        cut_off = self.job.reason == "cancelled" and self.job.snapshot is None
        return shutting_down() if cut_off else None

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
        elif self.job.interim is not None and self._interim is not None and not self._done:
            interim, self.job.interim = self.job.interim, None
            self._interim(interim)
        self._event.set()


class Served:
    """One model, its engine, and the states after its recent answers."""

    def __init__(
        self, model: TrainedModel, name: str, limits: Limits, notify: Callable[[list[Job]], None]
    ) -> None:
        self.model, self.name = model, name
        self.renderer, self.tokenizer = model.renderer, model.tokenizer
        self.fingerprint = model.fingerprint
        self.state_bytes = model_state_bytes(model.model)
        self.engine = Engine(
            model.decoder, self.tokenizer.end, limits.requests, notify, limits.queue
        )
        self.cache = PrefixCache(model)
        self.forbidden = never_written(self.tokenizer)


class Service:
    """The models of one server, and all conversations with them."""

    def __init__(
        self,
        models: Mapping[str, TrainedModel],
        limits: Limits,
        sessions_dir: Path | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        """A service that has not started.

        Args:
            models: by the name that requests ask for; the first is meant where none is named.
            limits: of the server.
            sessions_dir: where the conversations are kept.
            aliases: further names of the models.

        Raises:
            UserError: the folder cannot be written.
        """
        self.limits = limits
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news: deque[Job] = deque()
        """Jobs with news from the engines that the event loop has not handled yet."""
        self.created = int(time.time())
        self.models = {
            name: Served(model, name, limits, self._notify) for name, model in models.items()
        }
        self.default = next(iter(self.models.values()))
        self.names = dict(self.models)
        self.names |= {alias: self.models[name] for alias, name in (aliases or {}).items()}
        """Every name that a request may ask for."""
        self.store = SessionStore(
            {served.fingerprint: (served.name, served.model) for served in self.models.values()},
            limits.sessions, limits.stored_sessions, sessions_dir,
        )  # fmt: skip
        self.metrics = Metrics(
            {
                "newllm_active_answers": ("Answers being written.", lambda: self.active),
                "newllm_waiting_answers": ("Answers waiting for it.", lambda: self.waiting),
                "newllm_sessions": ("Conversations kept.", lambda: len(self.store)),
                "newllm_unsaved_sessions": (
                    "Conversations not in the folder as they are now.",
                    lambda: self.store.unsaved,
                ),
            }
        )
        self.stopping = False

    @property
    def active(self) -> int:
        """Answers being written."""
        return sum(s.engine.jobs - s.engine.waiting for s in self.models.values())

    @property
    def waiting(self) -> int:
        """Answers that wait until one of these has ended."""
        return sum(served.engine.waiting for served in self.models.values())

    def find(self, name: str | None) -> Served:
        """The model of a name; the first for None.

        Raises:
            ApiError: there is none.
        """
        served = self.default if name is None else self.names.get(name)
        if served is None:
            have = ", ".join(self.names)
            message = f"there is no model {name[:100]!r}; this server has {have}"  # type: ignore[index]
            raise ApiError(404, message, "model_not_found", "model")
        return served

    async def start(self) -> None:
        """Begin to write answers, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        for served in self.models.values():
            served.engine.start()
        self.store.start()

    async def end_answers(self) -> None:
        """End what is being written, as it is; no further answer is begun."""
        self.stopping = True
        for served in self.models.values():  # their last news are queued on this loop before
            await asyncio.to_thread(served.engine.stop)

    async def stop(self) -> None:
        """The same, and save the conversations if there is a folder."""
        await self.end_answers()
        await self.store.stop()

    def close(self) -> None:
        """The same once more where the event loop was cut off: nothing that was said is lost."""
        self.stopping, self._loop = True, None
        for served in self.models.values():
            served.engine.stop()
        self._handle_news()
        self.store.save()

    def begin(
        self,
        served: Served,
        start: Snapshot,
        ids: Sequence[int],
        asked: AnswerRequest,
        samplings: Sequence[Sampling],
        finished: Callable[[Job], None],
        rng_state: RngState | None = None,
        top_logprobs: int | None = None,
        pictures: bool = False,
        trim: bool = True,
        prompt_logprobs: bool = False,
        interim: Callable[[Interim], None] | None = None,
    ) -> list[Reply]:
        """Have answers to one prompt written.

        Args:
            served: the model.
            start: where the text stands.
            ids: what is read before the answer.
            asked: its limits and stop strings.
            samplings: how the tokens of each are drawn.
            finished: called when an answer has ended, also after its client has gone.
            rng_state: of the random numbers, if they do not start at the seed.
            top_logprobs: give the log-probabilities of each token and so many others.
            pictures: give pictures of the state.
            trim: leave out white space at the start.
            prompt_logprobs: give the log-probabilities of the prompt's tokens, too.
            interim: called twice a second with what there is of the answer.

        Raises:
            ApiError: nothing to read, too long, or too many at the same time.
        """
        limits, engine = self.limits, served.engine
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
        if self.stopping:
            raise shutting_down()
        most = MAX_NEW_TOKENS if asked.max_tokens is None else asked.max_tokens
        jobs = [
            Job(
                start,
                ids,
                Sampler(sampling, served.forbidden, rng_state),
                AnswerText(served.tokenizer, asked.stops, trim),
                min(most, limits.answer_tokens),
                asked.min_tokens,
                top_logprobs,
                pictures,
                prompt_logprobs,
                wants_interim=interim is not None,
            )
            for sampling in samplings
        ]
        replies = [Reply(job, self.metrics, finished, interim) for job in jobs]
        self.check_room(served, len(jobs))
        if not engine.submit(*jobs):
            raise ApiError(
                429, f"{engine.jobs} answers are being written or wait; try again later",
                "too_many_requests", headers={"Retry-After": str(self._wait(served))},
            )  # fmt: skip
        self.metrics.tokens_read.inc(len(ids) * len(jobs))
        return replies

    def check_room(self, served: Served, count: int) -> None:
        """Raises ApiError where so many answers have never room at the same time."""
        capacity = served.engine.capacity
        if count > capacity:
            message = f"{count} answers; this server has room for {capacity} at once"
            raise ApiError(400, message, "invalid_value", "n")

    def _wait(self, served: Served) -> int:
        """Seconds until about half of what waits has been written, at the engine's pace so far."""
        engine = served.engine
        half = (engine.waiting or engine.jobs) / 2
        return min(60, max(1, math.ceil(half * engine.seconds_per_job)))

    def _notify(self, jobs: list[Job]) -> None:
        """Called on an engine's thread: have the news handled on the event loop."""
        self._news += jobs
        with suppress(RuntimeError):  # the loop was cut off: `close` handles them
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._handle_news)

    def _handle_news(self) -> None:
        jobs = [self._news.popleft() for _ in range(len(self._news))]
        for job in dict.fromkeys(jobs):
            job.news()
