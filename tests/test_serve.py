"""The reward server: its answers against local scores, many clients at once, and its limits."""

import asyncio
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pytest
import torch
from conftest import CONFIGS, PROMPTS, pictures, small_scorer
from starlette.testclient import TestClient

from benchmarks.lib.serving import Gate, base64_of, client, metric, npy, png, serving, wait_until
from imagereward.errors import InputError
from imagereward.images.reading import read_image
from imagereward.scoring.functions import FunctionScorer
from imagereward.serve import Limits, create_app
from imagereward.serve.batching import Batcher, ScoringRequest
from imagereward.serve.run import by_name, read_token, run_until_stopped, server

CLOSE = {"atol": 1e-6, "rtol": 1e-6}
IMAGES = pictures(4)


@pytest.fixture(scope="module")
def all_scorers():
    return {kind: small_scorer(kind) for kind in CONFIGS}


@pytest.fixture(scope="module")
def url(all_scorers, scorers):
    with serving({**all_scorers, "Ensemble": scorers["Ensemble"]}) as url:
        yield url


def rank_request(prompt="a", images=IMAGES[:1], **more):
    return {"prompt": prompt, "images": [base64_of(png(image)) for image in images], **more}


@pytest.mark.parametrize("name", [*CONFIGS, "Ensemble"])
def test_ranks_equal_those_of_the_scorer_itself(url, scorers, name):
    answer = client(url).post("/v1/rank", json=rank_request(PROMPTS[0], IMAGES, model=name)).json()
    expected = scorers[name].rank(PROMPTS[0], IMAGES)
    np.testing.assert_allclose(answer["scores"], expected.rewards, **CLOSE)
    assert answer["ranks"] == expected.ranks
    assert answer["order"] == expected.order
    assert answer["model"] == name
    assert (answer["tokens"], answer["truncated"]) == ([expected.tokens], [expected.truncated])


@pytest.mark.parametrize("form", ["json", "multipart", "npy", "npy in multipart"])
def test_every_format_of_a_body_asks_the_same(url, scorers, form):
    images = [IMAGES[0], IMAGES[0].rotate(90)]
    assert images[0].size == images[1].size
    stack = np.stack([np.asarray(image) for image in images])
    request = {
        "json": {"json": {"prompts": PROMPTS[:3], "images": [base64_of(png(image)) for image in images]}},
        "multipart": {"data": {"prompts": PROMPTS[:3]}, "files": [("images", png(i)) for i in images]},
        "npy": {
            "params": {"prompts": PROMPTS[:3]},
            "content": npy(stack),
            "headers": {"Content-Type": "application/x-npy"},
        },
        "npy in multipart": {"data": {"prompts": PROMPTS[:3]}, "files": [("images", npy(stack))]},
    }[form]
    answer = client(url).post("/v1/matrix", **request)
    assert answer.status_code == 200, answer.text
    expected = scorers["ImageReward"].score_matrix(PROMPTS[:3], images)
    np.testing.assert_allclose(answer.json()["scores"], expected, **CLOSE)


def test_an_app_under_a_prefix_scores_and_answers_without_a_token_what_it_does_elsewhere():
    scorer = small_scorer("CLIP")
    app = create_app({"a": scorer}, token="s3cret")
    with TestClient(app, root_path="/reward") as under:
        assert under.get("/reward/health").status_code == 200
        assert under.get("/reward/v1/models").status_code == 401
        asked = {"prompt": "a", "images": [base64_of(png(IMAGES[0]))]}
        answer = under.post("/reward/v1/rank", json=asked, headers={"Authorization": "Bearer s3cret"})
    assert answer.json()["scores"] == pytest.approx([scorer.score("a", IMAGES[0])], abs=1e-6)


def test_a_body_of_many_megabytes_is_scored(url, scorers):
    images = np.random.default_rng(0).integers(0, 255, (12, 1024, 1024, 3), dtype=np.uint8)  # 36 MB
    body = npy(images)
    answer = client(url).post(
        "/v1/rank", params={"prompt": "a"}, content=body, headers={"Content-Type": "application/x-npy"}
    )
    expected = scorers["ImageReward"].score("a", list(images))
    np.testing.assert_allclose(answer.json()["scores"], expected, atol=2e-5, rtol=0)


def test_pairs_are_one_to_one_or_as_listed(url, scorers):
    matrix = scorers["ImageReward"].score_matrix(PROMPTS, IMAGES)
    request = {"prompts": PROMPTS, "images": [base64_of(png(image)) for image in IMAGES]}
    scores = client(url).post("/v1/score", json=request).json()["scores"]
    np.testing.assert_allclose(scores, np.diag(matrix), **CLOSE)
    pairs = [[3, 0], [0, 3], [3, 0], [1, 1]]
    scores = client(url).post("/v1/score", json={**request, "pairs": pairs}).json()["scores"]
    np.testing.assert_allclose(scores, [matrix[prompt, image] for image, prompt in pairs], **CLOSE)


def test_the_simple_path_of_existing_training_code_gives_one_score(url, scorers):
    request = {"image_base64": base64_of(png(IMAGES[0])), "prompt": PROMPTS[0], "step": 3}
    answer = client(url).post("/score", json=request).json()
    assert answer == {"score": pytest.approx(scorers["ImageReward"].score(PROMPTS[0], IMAGES[0]), abs=1e-6)}


def test_a_prompt_that_is_cut_is_said_to_be(url, scorers):
    prompt = "a very long prompt " * 20
    answer = client(url).post("/v1/rank", json=rank_request(prompt)).json()
    assert answer["truncated"] == [True]
    assert answer["tokens"] == scorers["ImageReward"].count_tokens([prompt])


def test_models_health_and_documentation_are_there(url):
    get = client(url).get
    assert [card["name"] for card in get("/v1/models").json()["models"]] == [*CONFIGS, "Ensemble"]
    assert get("/health").json() == {"status": "ok"}
    paths = get("/openapi.json").json()["paths"]
    assert {"/v1/score", "/v1/rank", "/v1/matrix", "/v1/models", "/score", "/health", "/metrics"} <= set(
        paths
    )
    assert "application/x-npy" in paths["/v1/matrix"]["post"]["requestBody"]["content"]
    page = get("/docs").text
    for path in paths:
        assert f" {path}</h2>" in page
    assert "application/x-npy" in page
    assert not re.findall(r"https?://|<script|src=|@import|url\(", page)
    assert "<title>imagereward</title>" in get("/").text


def test_two_thousand_concurrent_requests_are_all_answered_with_their_own_score():
    # In float64 the company that an image is scored in changes nothing that could hide a crossed answer.
    scorer = small_scorer("ImageReward", dtype="float64")
    images, prompts = pictures(20), [f"{prompt} {n}" for n in range(5) for prompt in PROMPTS]
    expected = scorer.score_matrix(prompts, images)
    assert np.diff(np.sort(expected.ravel())).min() > 0
    assert np.median(np.diff(np.sort(expected.ravel()))) > 1e-4
    encoded = [base64_of(png(image)) for image in images]

    async def ask(number: int, http, turn) -> tuple[float, float]:
        image, prompt = number % 20, number // 20 % 20
        request = {"images": [encoded[image]], "prompt": prompts[prompt]}
        async with turn:
            answer = await http.post("/v1/rank", json=request)
        assert answer.status_code == 200, answer.text
        return answer.json()["scores"][0], expected[prompt, image]

    async def ask_all(url: str):
        turn = asyncio.Semaphore(64)
        async with httpx2.AsyncClient(base_url=url, timeout=60) as http:
            return await asyncio.gather(*(ask(number, http, turn) for number in range(2000)))

    with serving(scorer) as url:
        answers = np.array(asyncio.run(ask_all(url)))
        batches = metric(url, 'imagereward_batch_images_count{model="ImageReward"}')
        assert metric(url, 'imagereward_images_total{model="ImageReward"}') == 2000
        assert metric(url, 'imagereward_requests_total{path="/v1/rank",status="200"}') == 2000
        assert metric(url, "imagereward_queue_images") == 0
    assert len(answers) == 2000
    np.testing.assert_allclose(answers[:, 0], answers[:, 1], atol=1e-6, rtol=0)
    assert batches < 2000 / 2  # they went through the model together


def test_requests_that_wait_together_are_scored_together():
    gate = Gate()
    with serving(gate.scorer, batch_size=4) as url, ThreadPoolExecutor(9) as threads:
        asked = [threads.submit(client(url).post, "/v1/rank", json=rank_request(str(n))) for n in range(9)]
        wait_until(lambda: metric(url, "imagereward_queue_images") == 9)
        wait_until(lambda: gate.batches)
        time.sleep(0.3)  # for the last to be decoded
        gate.open()
        assert all(each.result().status_code == 200 for each in asked)
    assert sum(gate.batches) == 9
    assert sorted(gate.batches[1:], reverse=True)[0] == 4


def test_a_cancelled_request_leaves_the_queue_with_its_images():
    gate = Gate()
    batcher = Batcher({"m": gate.scorer}, 1, 0.0)

    def request():
        pixels = gate.scorer.processor.load(read_image(pictures(1)[0]))
        return ScoringRequest("m", ["a"], [(pixels,)], torch.tensor([[0, 0]]))

    running = batcher.submit(request())
    wait_until(lambda: gate.batches)
    waiting = request()
    pixels = weakref.ref(waiting.pixels[0][0])
    assert batcher.submit(waiting).cancel()
    del waiting
    gc.collect()
    assert pixels() is None
    gate.open()
    assert running.result(60) is not None
    batcher.close()


def test_a_port_that_is_taken_is_an_input_error():
    app = create_app({"a": small_scorer("CLIP")})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port}.*another port"):
            run_until_stopped(server(app, "127.0.0.1", port))


@pytest.mark.parametrize("window", [float("inf"), float("nan"), -1, "5", True])
def test_a_window_is_a_number_of_seconds(window):
    with pytest.raises(InputError, match="expected 0 to 3600 seconds"):
        create_app({"a": small_scorer("CLIP")}, window=window)


def test_a_full_queue_answers_429_and_when_to_come_again():
    gate = Gate()
    limits = Limits(queue=3, images=3)
    with serving(gate.scorer, limits=limits) as url, ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(client(url).post, "/v1/rank", json=rank_request()) for _ in range(2)]
        wait_until(lambda: metric(url, "imagereward_queue_images") == 2)
        refused = client(url).post("/v1/rank", json=rank_request(images=IMAGES[:2]))
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert "full" in refused.json()["detail"]
        asked.append(threads.submit(client(url).post, "/v1/rank", json=rank_request()))
        wait_until(lambda: metric(url, "imagereward_queue_images") == 3)
        # Turned away at the door, before its body is read.
        assert client(url).post("/v1/rank", content=b"x" * 10**7).status_code == 429
        gate.open()
        assert [each.result().status_code for each in asked] == [200] * 3
        assert client(url).post("/v1/rank", json=rank_request(images=IMAGES[:3])).status_code == 200
        assert metric(url, "imagereward_queue_images") == 0


def test_the_bytes_of_bodies_in_memory_are_bounded():
    gate = Gate()
    with serving(gate.scorer, limits=Limits(body=10**6, held=10**6)) as url, socket.socket() as slow:
        slow.connect(("127.0.0.1", int(url.rsplit(":", 1)[1])))
        head = b"POST /v1/rank HTTP/1.1\r\nHost: a\r\nContent-Length: 990000\r\n\r\n"
        slow.sendall(head + b"x" * 980_000)
        wait_until(lambda: client(url).post("/v1/rank", content=b"x" * 500_000).status_code == 429)
    gate.open()


def test_the_bytes_of_decoded_images_that_wait_are_bounded():
    """A function is given images in their own size, so that few of them may be gigabytes."""
    begun, gate = threading.Event(), threading.Event()

    def brightness(pixels, prompts):
        begun.set()
        assert gate.wait(60)
        return pixels.mean((1, 2, 3))

    image = pictures(1)[0].resize((100, 100))
    limits = Limits(decoded=5 * 30_000)
    with (
        serving(FunctionScorer(brightness), limits=limits, batch_size=1) as url,
        ThreadPoolExecutor(2) as threads,
    ):
        never = client(url).post("/v1/rank", json=rank_request(images=[image] * 6))
        assert never.status_code == 413
        assert "more than 150000 bytes" in never.json()["detail"]
        asked = threads.submit(client(url).post, "/v1/rank", json=rank_request(images=[image] * 3))
        begun.wait(30)
        refused = client(url).post("/v1/rank", json=rank_request(images=[image] * 3))
        assert refused.status_code == 429
        assert "bytes of decoded images" in refused.json()["detail"]
        gate.set()
        assert asked.result().status_code == 200
        assert client(url).post("/v1/rank", json=rank_request(images=[image] * 5)).status_code == 200


def test_a_client_that_leaves_costs_nothing_to_others():
    gate = Gate()
    body = httpx2.Request("POST", "http://a/v1/rank", json=rank_request(images=IMAGES)).read()
    head = (
        f"POST /v1/rank HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    with serving(gate.scorer, batch_size=8) as url, ThreadPoolExecutor(2) as threads:
        address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        first = threads.submit(client(url).post, "/v1/rank", json=rank_request())
        wait_until(lambda: gate.batches)  # the model is busy with the first
        with socket.create_connection(address) as leaving, socket.create_connection(address) as half:
            leaving.sendall(head.encode() + b"\r\n\r\n" + body)
            half.sendall(head.encode() + b"\r\n\r\n" + body[:100])
            wait_until(lambda: metric(url, "imagereward_queue_images") == 6)
        wait_until(lambda: metric(url, "imagereward_queue_images") == 1)
        second = threads.submit(client(url).post, "/v1/rank", json=rank_request(images=IMAGES[:2]))
        wait_until(lambda: metric(url, "imagereward_queue_images") == 3)
        gate.open()
        assert first.result().status_code == second.result().status_code == 200
        assert metric(url, 'imagereward_requests_total{path="/v1/rank",status="499"}') == 2
    assert gate.batches == [1, 2]


def test_a_request_that_the_model_fails_on_fails_alone_and_says_why():
    gate = Gate()
    encode = gate.scorer.encode_prompts

    def picky(prompts):
        if "bad" in prompts:
            raise RuntimeError("out of memory")
        return encode(prompts)

    gate.scorer.encode_prompts = picky
    with serving(gate.scorer) as url, ThreadPoolExecutor(4) as threads:
        asked = [
            threads.submit(client(url).post, "/v1/rank", json=rank_request(prompt))
            for prompt in ("first", "good", "bad", "fine")
        ]
        wait_until(lambda: metric(url, "imagereward_queue_images") == 4)
        gate.open()
        answers = [each.result() for each in asked]
        assert [answer.status_code for answer in answers] == [200, 200, 500, 200]
        assert "out of memory" in answers[2].json()["detail"]
        assert client(url).get("/health").status_code == 200


def test_scores_that_are_not_finite_are_an_error_and_never_a_number():
    scorer = small_scorer("CLIP")
    with torch.no_grad():
        next(scorer.parameters()).fill_(float("nan"))
    with serving(scorer) as url:
        answer = client(url).post("/v1/rank", json=rank_request())
        assert answer.status_code == 500
        assert "not finite" in answer.json()["detail"]


def test_only_who_has_the_token_may_ask():
    with serving(small_scorer("CLIP"), token="s3cret") as url:
        for header in (
            None,
            "s3cret",
            "Bearer",
            "Bearer wrong",
            "Basic s3cret",
            "Bearer s3cret x",
            "Bearer é",
        ):
            headers = {} if header is None else {"Authorization": header.encode()}
            for path in ("/v1/rank", "/score", "/nothing"):
                answer = client(url).post(path, json=rank_request(), headers=headers)
                assert answer.status_code == 401, header
                assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert client(url).get("/v1/models", headers=headers).status_code == 401
            assert client(url).get("/metrics", headers=headers).status_code == 401
        right = {"Authorization": "bearer s3cret"}
        assert client(url).post("/v1/rank", json=rank_request(), headers=right).status_code == 200
        assert client(url).get("/health").status_code == 200
        assert client(url).get("/").status_code == 200


def test_the_token_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("IMAGEREWARD_TOKEN", raising=False)
    assert read_token(None) is None
    (tmp_path / "token").write_text("from-file\n")
    monkeypatch.setenv("IMAGEREWARD_TOKEN", "from-environment")
    assert read_token(None) == "from-environment"
    assert read_token(tmp_path / "token") == "from-file"
    (tmp_path / "token").write_text("\n")
    for path in (tmp_path / "token", tmp_path / "missing", tmp_path):
        with pytest.raises(InputError, match="token"):
            read_token(path)


def test_what_cannot_be_served_is_an_input_error():
    scorer = small_scorer("CLIP")
    for build in (
        lambda: create_app({}),
        lambda: create_app({"a": scorer}, token=" "),
        lambda: create_app({"a": scorer}, batch_size=0),
        lambda: Limits(images=0),
        lambda: Limits(queue=100),
        lambda: Limits(body=10, held=5),
        lambda: by_name([scorer, small_scorer("CLIP")]),
    ):
        with pytest.raises(InputError):
            build()
    with pytest.raises(InputError, match=r"images=256 \(--max-images\) is above queue=100 \(--queue\)"):
        Limits(queue=100)


@pytest.fixture
def saved(tmp_path):
    small_scorer("ImageReward").save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def launch(*arguments, **environment):
    """(process, address) of the command, once it listens."""
    command = [sys.executable, "-m", "imagereward", "serve", "--port", "0", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    log = []
    for line in process.stderr:
        log.append(line)
        if found := re.search(r"running on (\S+)", line):
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, found[1], "".join(log)
    raise AssertionError("".join(log))


def test_the_command_serves_until_sigterm_and_finishes_what_was_asked(saved):
    process, url, log = launch("-m", saved, "--batch-size", 1, "--max-images", 300)
    assert "no token" not in log
    assert url.startswith("http://127.0.0.1:")
    images = pictures(8) * 30
    expected = small_scorer("ImageReward").score("a", images)
    with ThreadPoolExecutor(1) as threads, client(url) as http:
        asked = threads.submit(http.post, "/v1/rank", json=rank_request("a", images))
        wait_until(lambda: metric(url, "imagereward_queue_images") == 240)
        process.send_signal(signal.SIGTERM)
        answer = asked.result()
    assert answer.status_code == 200
    np.testing.assert_allclose(answer.json()["scores"], expected, atol=2e-5, rtol=0)
    assert process.wait(30) in (0, -signal.SIGTERM)
    with pytest.raises(httpx2.ConnectError):
        client(url).get("/health")


def test_the_command_takes_its_token_from_the_environment_and_warns_when_open_without_one(saved):
    process, url, _ = launch("-m", saved, IMAGEREWARD_TOKEN="s3cret")
    assert client(url).get("/v1/models").status_code == 401
    process.terminate()
    process.wait(30)
    process, _, log = launch("-m", saved, "--host", "0.0.0.0")
    process.terminate()
    process.wait(30)
    assert "asks for no token" in log
