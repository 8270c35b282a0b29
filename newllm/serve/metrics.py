"""What `/metrics` tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The counters of one server."""

    def __init__(self, active: Callable[[], int], sessions: Callable[[], int]) -> None:
        """Asked when they are read: answers being written, and conversations kept."""
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "newllm_requests", "Requests by route and status.", ["route", "status"],
            registry=registry,
        )  # fmt: skip
        self.answers = Counter(
            "newllm_answers", "Answers by how they ended.", ["reason"], registry=registry
        )
        self.tokens_read = Counter(
            "newllm_prompt_tokens", "Tokens of prompts read.", registry=registry
        )
        self.tokens_cached = Counter(
            "newllm_cached_tokens", "Tokens of prompts whose state was known.", registry=registry
        )
        self.tokens_written = Counter(
            "newllm_written_tokens", "Tokens of answers written.", registry=registry
        )
        self.first_token = Histogram(
            "newllm_first_text_seconds", "From the request to the first text of its answer.",
            registry=registry, buckets=_SECONDS,
        )  # fmt: skip
        self.answer_seconds = Histogram(
            "newllm_answer_seconds", "From the request to the end of its answer.",
            registry=registry, buckets=_SECONDS,
        )  # fmt: skip
        Gauge("newllm_active_answers", "Answers being written.", registry=registry).set_function(
            active
        )
        Gauge("newllm_sessions", "Conversations kept.", registry=registry).set_function(sessions)

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)
