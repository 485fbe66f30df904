"""The reward server on Ray Serve: replicas on a cluster, whose number follows the load."""

import signal
import sys
import threading
from collections.abc import Callable, Sequence

from fastapi import FastAPI

from imagereward.errors import DeviceError, InputError, missing_extra
from imagereward.images import encoded
from imagereward.scoring.api import PairScorer
from imagereward.serve.app import create_app
from imagereward.serve.limits import Limits
from imagereward.serve.run import DRAIN, by_name


def deploy(
    load: Callable[[str], Sequence[PairScorer]],
    host: str,
    port: int,
    replicas: int,
    device: str | None = None,
    *,
    limits: Limits,
    **options,
) -> None:
    """Serve until SIGTERM or SIGINT, with one to `replicas` replicas, each of which loads its own scorers.

    load      returns the scorers on a device; runs in every replica
    device    kind of device, such as "cuda", for which each replica gets a GPU of its own; default: that, or
              "cpu" on a cluster without GPUs
    limits    of each replica: its queue, its requests
    options   further arguments of `create_app`, for each replica

    The cluster is the one that RAY_ADDRESS names; without that variable, a new one on this machine. Raises
    MissingExtraError if ray is not installed, InputError for a device with an index, and DeviceError for GPUs
    that the cluster lacks.
    """
    where = _start(host, port, device)
    import ray
    from ray import serve

    def build() -> FastAPI:
        if limits.image_pixels > encoded.max_pixels():  # a replica's process inherits nothing of this one
            encoded.set_max_pixels(limits.image_pixels)
        return create_app(by_name(load(where)), limits=limits, **options)

    deployment = serve.deployment(
        name="imagereward",
        # The app's own queue answers 429; with fewer requests inside, batches would stay small.
        max_ongoing_requests=limits.queue,
        graceful_shutdown_timeout_s=DRAIN,
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": replicas,
            "target_ongoing_requests": max(1, limits.queue // 16),
        },
        ray_actor_options={"num_gpus": int(where == "cuda")},
    )(serve.ingress(build)())
    try:
        # In place of Ray's own handlers, which abort what has not ended three seconds later.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))
        serve.run(deployment.bind(), name="imagereward")
        threading.Event().wait()
    finally:
        serve.shutdown()
        ray.shutdown()


def _start(host: str, port: int, device: str | None) -> str:
    """Start Ray's proxy at an address; returns the device of the replicas, "cuda" or "cpu"."""
    if device is not None and ":" in device:
        kind = device.split(":")[0]
        raise InputError(f"device {device!r}: Ray gives each replica its GPU; expected {kind!r} alone")
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise missing_extra("--engine ray", "scale", error) from error

    serve.start(http_options={"host": host, "port": port})
    gpus = int(ray.cluster_resources().get("GPU", 0))
    where = device or ("cuda" if gpus else "cpu")
    if where == "cuda" and not gpus:
        serve.shutdown()
        ray.shutdown()
        raise DeviceError("no machine of the Ray cluster has a GPU, which device 'cuda' asks for")
    return where
