"""What Prometheus scrapes at `/metrics`."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ppe_lora.serving.backend import Backend

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server. No label takes its value from a client, so their number is bounded."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.responses = Counter(
            "ppe_lora_responses", "HTTP responses by path and status.", ["path", "status"], registry=self.registry
        )
        self.answers = Counter("ppe_lora_answers", "Answered requests by model.", ["model"], registry=self.registry)
        self.latency = Histogram(
            "ppe_lora_answer_seconds",
            "From the arrival of a request to its answer.",
            ["model"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batches = Histogram(
            "ppe_lora_batch_rows",
            "Requests decoded together.",
            ["model"],
            buckets=_ROWS,
            registry=self.registry,
        )

        self.dropped_traces = Counter(
            "ppe_lora_dropped_traces",
            "Answered requests without a trace, since the queue or the disk was full.",
            registry=self.registry,
        )

    def watch_queues(self, models: dict[str, Backend]) -> None:
        """Show how many requests wait for each model, as of the moment of a scrape."""
        self.registry.register(_Queues(models))

    def exposition(self) -> bytes:
        """The text of `/metrics`."""
        return generate_latest(self.registry)


class _Queues(Collector):
    def __init__(self, models: dict[str, Backend]) -> None:
        self._models = models

    def collect(self) -> list[GaugeMetricFamily]:
        waiting = GaugeMetricFamily("ppe_lora_waiting", "Requests that wait for a model.", labels=["model"])
        for name, backend in self._models.items():
            waiting.add_metric([name], backend.waiting)
        return [waiting]
