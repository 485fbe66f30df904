"""The server on Ray Serve, on a local cluster of its own."""

import os
import signal
import socket
import subprocess
import sys

import httpx2
import numpy as np
import pytest
from conftest import pictures, small_scorer

from benchmarks.lib.serving import base64_of, client, png, wait_until

pytest.importorskip("ray", reason="ray is not installed: python -m pip install 'imagereward[scale]'")


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
