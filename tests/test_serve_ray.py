"""The server on Ray Serve, on a local cluster of its own."""

import os
import signal
import socket
import subprocess
import sys
import types

import httpx2
import numpy as np
import pytest
from conftest import pictures, small_scorer

from benchmarks.lib.serving import base64_of, client, png, wait_until
from imagereward.errors import DeviceError, InputError
from imagereward.serve import Limits
from imagereward.serve.on_ray import deploy

pytest.importorskip("ray", reason="ray is not installed: python -m pip install 'imagereward[scale]'")


class Deployed(Exception):
    """Ends `deploy` where the server would begin to run."""


@pytest.fixture
def cluster(monkeypatch):
    """A stand-in for a Ray cluster of `gpus` GPUs, which notes what a replica asks for."""
    import ray
    from ray import serve

    noted = {"gpus": 0, "devices": []}

    def deployment(**options):
        noted["asked"] = options["ray_actor_options"]["num_gpus"]
        return lambda app: types.SimpleNamespace(bind=lambda: None)

    def stop(*_, **__):
        raise Deployed

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": float(noted["gpus"])})
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(serve, "start", lambda **_: None)
    monkeypatch.setattr(serve, "shutdown", lambda: None)
    monkeypatch.setattr(serve, "deployment", deployment)
    monkeypatch.setattr(serve, "ingress", lambda build: lambda: build())
    monkeypatch.setattr(serve, "run", stop)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return noted


@pytest.mark.parametrize(
    ("device", "gpus", "asked", "inside"),
    [(None, 2, 1, "cuda"), (None, 0, 0, "cpu"), ("cpu", 2, 0, "cpu"), ("cuda", 2, 1, "cuda")],
)
def test_a_replica_gets_a_gpu_where_the_cluster_has_any(cluster, device, gpus, asked, inside):
    def load(where):
        cluster["devices"].append(where)
        return [small_scorer("CLIP")]

    cluster["gpus"] = gpus
    with pytest.raises(Deployed):
        deploy(load, "127.0.0.1", 0, 2, device, limits=Limits())
    assert cluster["asked"] == asked
    assert cluster["devices"] == [inside]


def test_a_gpu_that_ray_cannot_give_is_refused(cluster):
    with pytest.raises(DeviceError, match="no machine of the Ray cluster has a GPU"):
        deploy(list, "127.0.0.1", 0, 1, "cuda", limits=Limits())
    with pytest.raises(InputError, match="'cuda:1': Ray gives each replica its GPU; expected 'cuda' alone"):
        deploy(list, "127.0.0.1", 0, 1, "cuda:1", limits=Limits())


def answers(url: str) -> bool:
    try:
        return client(url).get("/health").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.mark.slow  # a cluster takes minutes to start on a busy machine
def test_a_replica_on_ray_gives_the_scorers_own_scores(ray_alone, tmp_path):
    scorer, images = small_scorer("ImageReward"), pictures(3)
    scorer.save_pretrained(tmp_path / "saved")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "imagereward", "serve", "-m", str(tmp_path / "saved"), "--engine", "ray"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: process.poll() is not None or answers(url), 300)
        request = {"prompt": "a", "images": [base64_of(png(image)) for image in images]}
        answer = client(url).post("/v1/rank", json=request)
        assert answer.status_code == 200, (tmp_path / "log").read_text()[-3000:]
        np.testing.assert_allclose(answer.json()["scores"], scorer.score("a", images), atol=1e-6, rtol=0)
        assert client(url).post("/v1/rank", json={}).status_code == 422
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0, (tmp_path / "log").read_text()[-3000:]
