"""What a server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server; two in a process share none."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "mobilenets_requests",
            "Requests by path and status; path is empty where none was understood.",
            ("path", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "mobilenets_request_seconds",
            "From a request's headers to the end of its answer.",
            ("path",),
            registry=self.registry,
        )
        self.images = Counter(
            "mobilenets_images",
            "Images by what became of them: answered, unreadable, dropped.",
            ("outcome",),
            registry=self.registry,
        )
        self.batches = Histogram(
            "mobilenets_batch_images",
            "Images that went through the network together.",
            buckets=BATCHES,
            registry=self.registry,
        )
        self.waiting = Gauge(
            "mobilenets_waiting_images",
            "Images that are read or wait for the network.",
            registry=self.registry,
        )
        self.connections = Gauge(
            "mobilenets_connections", "Open connections.", registry=self.registry
        )
