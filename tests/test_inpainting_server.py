"""POST /calculate_reward: the server against its parts, its client as rewards, and servers that fail."""

import base64
import io
import json
import threading
from http.server import ThreadingHTTPServer
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image
from test_samples import run
from test_single_server import Handler

from benchmarks.lib.serving import serving
from benchmarks.lib.small_scorers import small_scorer
from imagereward.errors import InputError, RemoteError, RewardError
from imagereward.images.reading import to_pil
from imagereward.rewards.inpainting import Boundary
from imagereward.rewards.opening import open_reward
from imagereward.rewards.region import sobel_magnitude
from imagereward.rewards.region_server import RegionServerReward
from imagereward.tuning.data.requests import Request
from imagereward.tuning.rewards.scoring import RewardPool, ScoringConfig, concatenated, require_scores
from imagereward.tuning.rewards.weighted import open_rewards

SIDE = 40


def pictures(seed: int = 0):
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[4 + seed : 20 + seed, 10:30] = 255
    return image, Image.fromarray(mask)


def encoded(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def body(**changes):
    image, mask = pictures()
    given = {"image_b_base64": encoded(image), "mask_base64": encoded(mask), "prompt": "a cat", "user": 7}
    return {**given, **changes}


@pytest.fixture(scope="module")
def scorers():
    return {"HPSv2.1": small_scorer("HPS"), "CLIP": small_scorer("CLIP")}


@pytest.fixture(scope="module")
def url(scorers):
    with serving(scorers) as address:
        yield address


def post(url: str, **changes):
    return httpx2.post(f"{url}/calculate_reward", json=body(**changes), timeout=60)


def test_the_terms_are_those_of_the_rewards(url, scorers):
    answer = post(url).json()
    image, mask = pictures()
    row = Request("a cat", image, mask)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    assert answer["mask_ratio"] == pytest.approx((np.asarray(mask) > 127).mean(), abs=1e-6)
    boundary = float(Boundary().pixel_rewards(pixels, ["a cat"], [row]))
    assert answer["boundary_score"] == pytest.approx(boundary, abs=1e-6)
    for field, name in (("hps_score", "HPSv2.1"), ("clip_score", "CLIP")):
        scorer = scorers[name]
        least = scorer.preprocess.size  # the box is 16 x 20; its middle is (12, 20)
        top, left = max(0, 4 - (max(least, 16) - 16) // 2), max(0, 10 - (max(least, 20) - 20) // 2)
        height, width = min(SIDE, max(least, 16)), min(SIDE, max(least, 20))
        top, left = min(top, SIDE - height), min(left, SIDE - width)
        crop = image.crop((left, top, left + width, top + height))
        assert answer[field] == pytest.approx(scorer.score("a cat", crop), abs=1e-5)


def turned(picture: Image.Image) -> str:
    """In base64, a picture that EXIF turns by a quarter."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    picture.save(buffer, "PNG", exif=exif)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"mask_base64": "not base64 !"}, 422, "base64"),
        ({"image_b_base64": turned(Image.new("RGB", (SIDE, 9)))}, 422, f"image 9x{SIDE}, mask {SIDE}x{SIDE}"),
        ({"mask_base64": "/etc/ssl/mask.png"}, 422, "base64"),
        ({"mask_base64": "file:///etc/ssl/mask.png"}, 422, "base64"),
        ({"image_b_base64": "http://127.0.0.1:9/image.png"}, 422, "base64"),
        ({"image_b_base64": base64.b64encode(b"no image").decode()}, 422, r"images\[0\]"),
        ({"mask_base64": encoded(Image.new("L", (SIDE, SIDE)))}, 422, "empty"),
        ({"mask_base64": encoded(Image.new("L", (SIDE, SIDE), 255))}, 422, "white everywhere"),
        ({"mask_base64": encoded(Image.new("L", (SIDE, 9), 255))}, 422, "one size"),
        ({"mask_base64": None}, 422, "mask_base64"),
        ({"prompt": 7}, 422, "prompt"),
        ({"hps_model": "other"}, 404, "no model 'other'"),
    ],
)
def test_bad_requests_are_errors_and_never_numbers(url, changes, status, reason):
    import re

    answer = post(url, **changes)
    assert answer.status_code == status
    assert re.search(reason, answer.json()["detail"])
    assert "mask_ratio" not in answer.json()


def test_a_server_without_the_models_says_so():
    with serving({"BLIP": small_scorer("BLIP")}) as address:
        answer = post(address)
        assert answer.status_code == 404
        assert "hps" in answer.json()["detail"]
        assert httpx2.get(f"{address}/health").json() == {"status": "ok"}


def test_the_client_gives_the_server_s_terms_as_rewards(url):
    fields = ("boundary_score", "hps_score", "clip_score")
    names = {f"{url}/calculate_reward#{field}": 1.0 for field in fields}
    rewards = open_rewards(names)
    rows = [Request("a cat", *pictures(seed)) for seed in (0, 3)]
    pixels = torch.stack(
        [torch.from_numpy(np.array(row.image)).permute(2, 0, 1).float() / 255 for row in rows]
    )
    total, each = rewards(pixels, rows)
    for at, seed in enumerate((0, 3)):
        image, mask = pictures(seed)
        answer = post(url, image_b_base64=encoded(image), mask_base64=encoded(mask)).json()
        for name, values in each.items():
            assert float(values[at]) == pytest.approx(answer[name.partition("#")[2]], abs=1e-5)
    assert torch.allclose(total, sum(each.values()), atol=1e-5)


def test_fields_that_are_not_there(url):
    with pytest.raises(InputError, match="#hps_score"):
        open_reward(f"{url}/calculate_reward#nothing")


@pytest.fixture
def faulty():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen = []
    server.answer = lambda asked: (200, {})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield SimpleNamespace(server=server, url=f"http://127.0.0.1:{server.server_port}/calculate_reward")
    server.shutdown()
    server.server_close()


GOOD = {"boundary_score": -0.1, "hps_score": 0.2, "clip_score": 0.3, "mask_ratio": 0.4}


@pytest.mark.parametrize(
    "bad",
    [
        (500, {"detail": "out of memory"}),
        (400, {"detail": "no mask"}),
        (200, {}),
        (200, {"hps_score": None}),
        (200, {"hps_score": "0.5"}),
        (200, b'{"hps_score": NaN}'),
        (200, b"<html>"),
    ],
)
def test_one_failure_is_nan_and_never_0(faulty, bad):
    rows = [Request(prompt, *pictures()) for prompt in ("good", "bad")]
    pixels = torch.stack([torch.from_numpy(np.array(rows[0].image)).permute(2, 0, 1).float() / 255] * 2)
    faulty.server.answer = lambda asked: bad if asked["prompt"] == "bad" else (200, GOOD)
    reward = RegionServerReward(faulty.url, "hps_score", retries=0)
    found = reward.pixel_rewards(pixels, ["good", "bad"], rows)
    assert float(found[0]) == pytest.approx(0.2)
    assert found[1].isnan()


def test_a_server_that_is_down_is_tried_again_then_nan_then_a_stop(faulty):
    row = Request("a cat", *pictures())
    pixels = torch.from_numpy(np.array(row.image)).permute(2, 0, 1)[None].float() / 255
    asked = []

    def down(body):
        asked.append(body)
        return 503, {"detail": "down"}

    faulty.server.answer = down
    reward = RegionServerReward(faulty.url, "hps_score", retries=0)
    rewards = open_rewards(reward)
    with pytest.raises(RemoteError, match="down"):
        reward.pixel_rewards(pixels, ["a cat"], [row])
    asked.clear()
    with RewardPool(rewards, ScoringConfig(workers=1, retries=2, wait=0.0)) as pool:
        pool.submit(pixels, [row])
        found = concatenated(pool.results())
    assert len(asked) == 3
    assert found.rewards[reward.name].isnan().all()
    with pytest.raises(RewardError, match="resume=true"):
        require_scores(found, "update 1")
    faulty.server.answer = lambda body: (200, GOOD)  # up again: the failure was not kept
    assert float(reward.pixel_rewards(pixels, ["a cat"], [row])) == pytest.approx(0.2)


def test_a_training_shows_no_password(faulty, tmp_path, capsys):
    faulty.server.answer = lambda asked: (200, GOOD)
    address = faulty.url.replace("http://", "http://me:secret@")
    reward = {f"{address}#{field}": 1.0 for field in ("hps_score", "clip_score")}
    out = tmp_path / "run"
    run("sft_online", out, family="sd_inpaint", reward=reward, updates=1)
    written = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert f"evaluation/reward/{faulty.url}#hps_score" in json.loads(written["history.json"])[0]
    assert {name for name, data in written.items() if b"secret" in data} == {"run.json"}
    assert "secret" not in "".join(capsys.readouterr())


def test_a_training_stops_when_its_server_goes_down_and_resumes_to_the_same_weights(faulty, tmp_path):
    """The server goes down after an evaluation and an update; a resumed run ends as one without a stop."""

    def score(asked):
        picture = Image.open(io.BytesIO(base64.b64decode(asked["image_b_base64"])))
        return 200, {**GOOD, "hps_score": float(np.asarray(picture).mean())}

    options = {
        **{"family": "sd_inpaint", "reward": f"{faulty.url}#hps_score", "updates": 3},
        **{"scoring": {"workers": 1, "retries": 1, "wait": 0.0}},
    }
    faulty.server.answer = score
    elsewhere = faulty.url.replace("127.0.0.1", "localhost")  # whose answers are kept apart
    run("sft_online", tmp_path / "whole", **{**options, "reward": f"{elsewhere}#hps_score"})
    answered = []

    def dying(asked):
        answered.append(asked)
        return score(asked) if len(answered) <= 5 else (500, {"detail": "down"})

    faulty.server.answer = dying
    with pytest.raises(RewardError, match=r"hps_score is down: .*HTTP 500: down; resume=true"):
        run("sft_online", tmp_path / "broken", **options)
    faulty.server.answer = score
    run("sft_online", tmp_path / "broken", **options, resume=True)
    whole, broken = (
        (tmp_path / name / "checkpoint-3/weights/learned.safetensors").read_bytes()
        for name in ("whole", "broken")
    )
    assert whole == broken


@pytest.mark.parametrize("bad", [{}, {"hps_score": 0.2}, b'{"hps_score": 0.2, "clip_score": NaN}'])
def test_an_answer_without_a_number_is_asked_for_again(faulty, bad):
    """Though another field of it was good."""
    row = Request("a cat", *pictures())
    pixels = torch.from_numpy(np.array(row.image)).permute(2, 0, 1)[None].float() / 255
    faulty.server.answer = lambda asked: (200, bad)
    hps, clip = (RegionServerReward(faulty.url, field, retries=0) for field in ("hps_score", "clip_score"))
    if bad:
        assert float(hps.pixel_rewards(pixels, ["a cat"], [row])) == pytest.approx(0.2)
    with pytest.raises(RemoteError, match="clip_score"):
        clip.pixel_rewards(pixels, ["a cat"], [row])
    faulty.server.answer = lambda asked: (200, GOOD)
    assert float(clip.pixel_rewards(pixels, ["a cat"], [row])) == pytest.approx(0.3)
    asked = len(faulty.server.seen)
    assert float(hps.pixel_rewards(pixels, ["a cat"], [row])) == pytest.approx(0.2)
    assert len(faulty.server.seen) == asked  # good answers are kept


def test_large_pictures_are_not_in_memory_as_floats(url, monkeypatch):
    sides = []

    def noted(pixels):
        sides.extend(pixels.shape[-2:])
        return sobel_magnitude(pixels)

    monkeypatch.setattr("imagereward.rewards.region.sobel_magnitude", noted)
    mask = np.zeros((1200, 1100), np.uint8)
    mask[:20, :30] = mask[-20:, -30:] = 255
    image = Image.new("RGB", (1100, 1200), (0, 100, 200))
    answer = post(url, image_b_base64=encoded(image), mask_base64=encoded(Image.fromarray(mask))).json()
    assert answer["boundary_score"] == pytest.approx(0, abs=1e-6)
    assert answer["mask_ratio"] == pytest.approx(2 * 20 * 30 / (1200 * 1100))
    assert 0 < max(sides) < 600


def test_pictures_arrive_as_they_were_sent(faulty):
    row = Request("a cat", *pictures(5))
    pixels = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    sent = {}

    def keep(asked):
        sent.update(asked)
        return 200, GOOD

    faulty.server.answer = keep
    RegionServerReward(faulty.url, "clip_score").pixel_rewards(pixels, ["a cat"], [row])
    image, mask = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(sent[name]))))
        for name in ("image_b_base64", "mask_base64")
    )
    assert np.array_equal(image, np.asarray(to_pil(pixels[0])))
    assert np.array_equal(mask, np.asarray(row.mask))
