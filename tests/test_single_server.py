"""POST /score {image_base64, prompt}: the client against a scorer, as a reward, and servers that fail."""

import base64
import io
import json
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import imagereward as RM
from benchmarks.lib.serving import serving
from benchmarks.lib.small_scorers import small_scorer
from imagereward.bulk.masked import score_masked_table
from imagereward.errors import InputError, RemoteError, RewardError
from imagereward.images.reading import to_pil
from imagereward.remote import protocol
from imagereward.remote.single import SingleScorer
from imagereward.tuning.rewards.scoring import RewardPool, ScoringConfig, concatenated, require_scores
from imagereward.tuning.rewards.weighted import open_rewards

PROMPTS = ["a cat", "a red ball", "two dogs"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(protocol, "FIRST_WAIT", 0.01)


def pixels(count: int = 3, side: int = 40) -> torch.Tensor:
    rounded = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 255
    return rounded.round() / 255


class Handler(BaseHTTPRequestHandler):
    """Answers by the server's function of the request's body: (status, JSON or bytes)."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, asked))
        status, answer = self.server.answer(asked)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def brightness(asked):
    """(200, the mean grey value of the image, in 0..1): an oracle that decodes what was sent."""
    picture = Image.open(io.BytesIO(base64.b64decode(asked["image_base64"], validate=True)))
    return 200, {"score": float(np.asarray(picture.convert("RGB")).mean() / 255)}


@pytest.fixture
def plain():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answer, server.seen = brightness, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(server=server, url=f"http://127.0.0.1:{server.server_port}/score")
    server.shutdown()
    server.server_close()


def test_every_verb_gives_what_the_scorer_itself_gives():
    scorers = {"CLIP": small_scorer("CLIP"), "BLIP": small_scorer("BLIP")}
    images = [to_pil(image) for image in pixels()]
    with serving(scorers) as address:
        for name, url in (("CLIP", f"{address}/score"), ("BLIP", f"{address}/score/")):
            with RM.connect(url, model=None if name == "CLIP" else name) as remote:
                assert isinstance(remote, SingleScorer)
                local = scorers[name]
                assert remote.score("a cat", images[0]) == pytest.approx(
                    local.score("a cat", images[0]), abs=1e-5
                )
                np.testing.assert_allclose(
                    remote.score_matrix(PROMPTS, images), local.score_matrix(PROMPTS, images), atol=1e-5
                )
                assert remote.rank("a cat", images).order == local.rank("a cat", images).order
        reward = open_rewards(f"{address}/score#BLIP")
        total, _ = reward(pixels(), PROMPTS)
        expected = scorers["BLIP"].score_pairs(PROMPTS, images)
        np.testing.assert_allclose(total, expected, atol=1e-5)


def test_a_request_is_an_image_and_its_prompt_and_nothing_else(plain):
    given = pixels()
    found = open_rewards(plain.url).part(plain.url, given, PROMPTS)
    assert found.tolist() == pytest.approx(given.mean((1, 2, 3)).tolist(), abs=1e-6)
    assert sorted(asked["prompt"] for _, asked in plain.server.seen) == sorted(PROMPTS)
    assert {path for path, _ in plain.server.seen} == {"/score"}
    assert all(set(asked) == {"image_base64", "prompt"} for _, asked in plain.server.seen)


def test_no_name_of_a_reward_shows_a_password(plain, tmp_path, caplog):
    address, shown = plain.url.replace("http://", "http://me:se@cret@"), plain.url
    rewards = open_rewards({address: 1.0, f"inside({address}#m, 8)": 2.0})
    assert rewards.weights == {shown: 1.0, f"inside({shown}#m, 8)": 2.0}
    assert all("cret" not in part.name for _, part in rewards.parts.values())
    plain.server.answer = lambda asked: (500, {"detail": "down"})
    with RewardPool(open_rewards(address), ScoringConfig(workers=1, retries=0)) as pool:
        pool.submit(pixels(1), PROMPTS[:1])
        found = concatenated(pool.results())
    assert list(found.rewards) == [shown]
    with pytest.raises(RewardError, match="down") as caught:
        require_scores(found, "update 1")
    assert "cret" not in str(caught.value) + caplog.text
    with pytest.raises(InputError, match=f"two rewards are named {shown}, with different users") as twice:
        open_rewards({address: 1.0, plain.url: 1.0})
    assert "cret" not in str(twice.value)
    plain.server.answer = brightness
    to_pil(pixels(1)[0]).save(tmp_path / "image.png")
    mask = Image.new("L", (40, 40))
    mask.paste(255, (0, 0, 20, 40))
    mask.save(tmp_path / "mask.png")
    record = {"prompt": "a cat", "image": "image.png", "mask": "mask.png"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(record))
    score_masked_table(
        tmp_path / "rows.jsonl", tmp_path / "out.jsonl", [f"inside({address})"], progress=False
    )
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert row[f"score:inside({shown})"] is not None
    assert "cret" not in json.dumps(row)


FAULTS = [
    (500, {"detail": "out of memory"}),
    (400, {"error": "no image"}),
    (200, {}),
    (200, {"score": None}),
    (200, {"score": "0.5"}),
    (200, {"score": True}),
    (200, [0.5]),
    (200, b'{"score": NaN}'),
    (200, b"<html>"),
]


@pytest.mark.parametrize("fault", FAULTS)
def test_one_failure_is_nan_for_its_image_and_never_0(plain, fault):
    plain.server.answer = lambda asked: fault if asked["prompt"] == "a red ball" else brightness(asked)
    given = pixels()
    with RM.connect(plain.url, retries=0) as remote:
        found = remote.pixel_rewards(given, PROMPTS)
        assert found[1].isnan()
        assert found[[0, 2]].tolist() == pytest.approx(given[[0, 2]].mean((1, 2, 3)).tolist(), abs=1e-6)
        with pytest.raises(RemoteError, match=r"1 of 3 rows have no score .*row 1: ") as raised:
            remote.score_pairs(PROMPTS, [to_pil(image) for image in given])
    assert list(raised.value.causes) == [1]
    assert raised.value.scores.isfinite().tolist() == [True, False, True]


def test_a_full_server_is_asked_again(plain):
    refused = []

    def full(asked):
        if len(refused) < 2:
            refused.append(asked)
            return 503, {"detail": "full"}
        return brightness(asked)

    plain.server.answer = full
    given = pixels(1)
    with RM.connect(plain.url, retries=2) as remote:
        assert remote.score("a cat", to_pil(given[0])) == pytest.approx(float(given.mean()), abs=1e-6)
    assert len(plain.server.seen) == 3


def test_a_server_that_is_down_is_tried_again_then_nan_then_a_stop(plain):
    plain.server.answer = lambda asked: (500, {"detail": "down"})
    rewards, given = open_rewards(RM.connect(plain.url, retries=0)), pixels(2)
    with pytest.raises(RemoteError, match=r"HTTP 500: down"):
        rewards.part(plain.url, given, PROMPTS[:2])
    plain.server.seen.clear()
    with RewardPool(rewards, ScoringConfig(workers=1, retries=2, wait=0.0)) as pool:
        pool.submit(given, PROMPTS[:2])
        found = concatenated(pool.results())
    assert len(plain.server.seen) == 6  # two images, three times
    assert found.rewards[plain.url].isnan().all()
    with pytest.raises(RewardError, match=r"HTTP 500: down.*resume=true"):
        require_scores(found, "update 1")


def test_nobody_there_is_an_error_with_the_address():
    message = r"http://127\.0\.0\.1:9/score: 1 of 1 rows .*ConnectError"
    with (
        RM.connect("http://127.0.0.1:9/score", retries=0) as remote,
        pytest.raises(RemoteError, match=message),
    ):
        remote.score("a cat", to_pil(pixels(1)[0]))


def test_pickles_leave_connections_out_and_score_the_same(plain):
    with RM.connect(plain.url) as remote:
        image = to_pil(pixels(1)[0])
        expected = remote.score("a cat", image)
        assert pickle.loads(pickle.dumps(remote)).score("a cat", image) == expected


@pytest.mark.parametrize("arguments", [([], ["a.png"]), (["a"], [])])
def test_nothing_to_score_is_refused(plain, arguments):
    with RM.connect(plain.url) as remote, pytest.raises(InputError, match="nothing to score"):
        remote.score_matrix(*arguments)


def test_gradients_do_not_travel_and_async_has_no_such_client(plain):
    import asyncio

    with pytest.raises(InputError, match=r"not differentiable.*GRPO takes any reward"):
        open_rewards(plain.url).check_differentiable((40, 40), "a cat")
    with pytest.raises(InputError, match="expected connect"):
        asyncio.run(RM.connect_async(plain.url))
