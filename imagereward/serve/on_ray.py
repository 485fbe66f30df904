"""The reward server on Ray Serve: replicas on a cluster, whose number follows the load."""

import signal
import sys
import threading
from collections.abc import Callable, Sequence

from fastapi import FastAPI

from imagereward.errors import missing_extra
from imagereward.scoring.api import PairScorer
from imagereward.serve.app import create_app
from imagereward.serve.limits import Limits
from imagereward.serve.run import DRAIN, by_name


def deploy(
    load: Callable[[], Sequence[PairScorer]],
    host: str,
    port: int,
    replicas: int,
    gpus: int = 0,
    *,
    limits: Limits,
    **options,
) -> None:
    """Serve until SIGTERM or SIGINT, with one to `replicas` replicas, each of which loads its own scorers.

    load      returns the scorers; runs in every replica
    gpus      GPUs reserved for each replica
    limits    of each replica: its queue, its requests
    options   further arguments of `create_app`, for each replica

    The cluster is the one that RAY_ADDRESS names; without that variable, a new one on this machine. Raises
    MissingExtraError if ray is not installed.
    """
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise missing_extra("--engine ray", "scale", error) from error

    def build() -> FastAPI:
        return create_app(by_name(load()), limits=limits, **options)

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
        ray_actor_options={"num_gpus": gpus},
    )(serve.ingress(build)())
    serve.start(http_options={"host": host, "port": port})
    try:
        # In place of Ray's own handlers, which abort what has not ended three seconds later.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))
        serve.run(deployment.bind(), name="imagereward")
        threading.Event().wait()
    finally:
        serve.shutdown()
        ray.shutdown()
