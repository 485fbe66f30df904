"""Counters of the server: requests, seconds, batches and images, in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DROPPED = 499  # nginx's status for a client that disconnected before its answer


class Meters:
    """Counters of one app, in their own Prometheus registry."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "imagereward_requests",
            f"Requests by path and status; {DROPPED}: the client went away before its answer.",
            ["path", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "imagereward_request_seconds",
            "From a request's header to the end of its answer.",
            ["path"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "imagereward_batch_images",
            "Images that went through a model together.",
            ["model"],
            buckets=IMAGES,
            registry=self._registry,
        )
        self.queue = Gauge(
            "imagereward_queue_images",
            "Images of requests that are being read, decoded or waiting, or at the model.",
            registry=self._registry,
        )
        self._images = Counter("imagereward_images", "Images scored.", ["model"], registry=self._registry)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a finished request, its status and its seconds."""
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def batch(self, model: str, images: int) -> None:
        """Count a batch of `images` that `model` has scored."""
        self._batches.labels(model).observe(images)
        self._images.labels(model).inc(images)

    def text(self) -> bytes:
        """All counters in Prometheus' text format."""
        return generate_latest(self._registry)
