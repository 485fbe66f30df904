"""The client: every verb as the scorer itself gives it, and what becomes of servers that fail."""

import asyncio
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import CONFIGS, PROMPTS, pictures, small_scorer

import imagereward as RM
from benchmarks.lib.serving import Gate, base64_of, client, metric, png, serving, wait_until
from imagereward.errors import (
    ImageNotFound,
    ImageReadError,
    InputError,
    PromptTruncatedWarning,
    RemoteError,
)
from imagereward.remote import protocol
from imagereward.remote.threads import in_threads, wait
from imagereward.serve import Limits

CLOSE = {"atol": 1e-6, "rtol": 1e-6}


@pytest.fixture(scope="module")
def url(scorers):
    with serving(dict(scorers)) as url:
        yield url


@pytest.fixture
def remote(url):
    with RM.connect(url) as remote:
        yield remote


@pytest.fixture
def local(scorers):
    return scorers["ImageReward"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(protocol, "FIRST_WAIT", 0.01)


@pytest.mark.parametrize("name", [*CONFIGS, "Ensemble"])
def test_every_verb_gives_what_the_scorer_itself_gives(url, scorers, name):
    local, images = scorers[name], pictures(5)
    with RM.connect(url, model=name) as remote:
        assert remote.name == name
        one, many = remote.score(PROMPTS[0], images[0]), remote.score(PROMPTS[0], images)
        assert isinstance(one, float)
        np.testing.assert_allclose(one, local.score(PROMPTS[0], images[0]), **CLOSE)
        np.testing.assert_allclose(many, local.score(PROMPTS[0], images), **CLOSE)
        np.testing.assert_allclose(
            remote.score_pairs(PROMPTS, images[:4]), local.score_pairs(PROMPTS, images[:4]), **CLOSE
        )
        matrix = remote.score_matrix(PROMPTS, images)
        np.testing.assert_allclose(matrix, local.score_matrix(PROMPTS, images), **CLOSE)
        assert matrix.dtype == np.float32
        places, rewards = remote.inference_rank(PROMPTS[0], images)
        assert places == local.inference_rank(PROMPTS[0], images)[0]
        assert rewards == many
        assert remote.best_of(PROMPTS[0], images, 2) == local.best_of(PROMPTS[0], images, 2)
        ranking, expected = remote.rank(PROMPTS[0], images), local.rank(PROMPTS[0], images)
        assert (ranking.ranks, ranking.tokens, ranking.truncated) == (expected.ranks, expected.tokens, False)
        assert ranking.best is images[expected.order[0]]
        assert ranking.model == name


def test_every_kind_of_image_is_sent_without_loss(remote, local, tmp_path):
    (picture,) = pictures(1)
    for name in ("a.png", "a.jpg", "a.webp"):
        picture.save(tmp_path / name)
    array = np.asarray(picture)
    images = [
        *(tmp_path / name for name in ("a.png", "a.jpg", "a.webp")),
        str(tmp_path / "a.jpg"),
        (tmp_path / "a.jpg").read_bytes(),
        array,
        array[:, :, 0],
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0)),
        *(picture.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB")),
        PIL.Image.fromarray(array[:, :, 0].astype(np.uint16) * 257),
        PIL.Image.fromarray(array[:, :, 0].astype(np.float32) / 255),
    ]
    for index, image in enumerate(images):
        assert remote.score("a", image) == pytest.approx(local.score("a", image), abs=1e-6), index


@pytest.mark.parametrize("mode", ["HSV", "YCbCr"])
def test_an_image_of_a_mode_that_no_format_holds_is_named(remote, mode):
    images = [*pictures(1), pictures(1)[0].convert(mode)]
    with pytest.raises(RemoteError, match=rf"1 of 2 rows.*\n.*mode {mode}.*convert\('RGB'\)"):
        remote.score("a", images)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(images=2),
        Limits(prompts=3),
        Limits(pairs=5),
        Limits(prompts=2, pairs=3, images=1),
        Limits(body=len(png(pictures(1)[0])) * 3),
    ],
)
def test_work_is_split_to_the_servers_limits(limits):
    scorer, images = small_scorer("ImageReward"), pictures(7)
    images += images[:2]
    prompts = [f"{prompt} {n}" for n in range(2) for prompt in PROMPTS]
    with serving(scorer, limits=limits) as url, RM.connect(url) as remote:
        matrix = remote.score_matrix(prompts, images)
        np.testing.assert_allclose(matrix, scorer.score_matrix(prompts, images), atol=2e-6, rtol=0)
        pairs = remote.score_pairs(prompts, images[: len(prompts)], batch_size=4)
        np.testing.assert_allclose(pairs, np.diag(matrix), atol=2e-6, rtol=0)
        np.testing.assert_allclose(remote.score("a", images), scorer.score("a", images), atol=2e-6, rtol=0)


def test_repeated_images_and_prompts_go_once(url, remote, image_paths):
    before = metric(url, 'imagereward_images_total{model="ImageReward"}')
    remote.score_pairs(["a", "b"] * 10, [image_paths[0], image_paths[1]] * 10)
    assert metric(url, 'imagereward_images_total{model="ImageReward"}') - before == 2


def test_a_prompt_that_is_cut_is_warned_of_at_the_callers_line(remote):
    with pytest.warns(PromptTruncatedWarning, match="1 of 2 prompts are longer than ImageReward") as caught:
        remote.score_matrix(["a", "a very long prompt " * 20], pictures(1))
    assert caught[0].filename == __file__


def test_bad_input_is_found_before_anything_is_sent(url, remote, tmp_path):
    before = metric(url, 'imagereward_requests_total{path="/v1/score",status="200"}')
    (tmp_path / "text.png").write_text("no image")
    for error, call in [
        (ImageNotFound, lambda: remote.score("a", [*pictures(20), tmp_path / "missing.png"])),
        (ImageReadError, lambda: remote.score("a", [*pictures(20), tmp_path / "text.png"])),
        (ImageReadError, lambda: remote.score("a", "http://example.com/a.png")),
        (InputError, lambda: remote.score("a", [])),
        (InputError, lambda: remote.score(["a"], pictures(1))),
        (InputError, lambda: remote.score_pairs(["a"], pictures(2))),
        (InputError, lambda: remote.score("a", pictures(1), batch_size=0)),
    ]:
        with pytest.raises(error):
            call()
    assert metric(url, 'imagereward_requests_total{path="/v1/score",status="200"}') == before


def test_rows_whose_image_is_damaged_are_named_and_the_others_are_scored(remote, local):
    images = [png(picture) for picture in pictures(20)]
    expected = local.score("a", images)
    for bad in (3, 17):
        images[bad] = images[bad][:200]
    with pytest.raises(RemoteError) as caught:
        remote.score("a", images, batch_size=8)
    assert set(caught.value.causes) == {3, 17}
    assert "image 3 is damaged" in caught.value.causes[3]
    assert "2 of 20 rows have no score" in str(caught.value)
    assert remote.url in str(caught.value)
    assert np.flatnonzero(np.isnan(caught.value.scores)).tolist() == [3, 17]
    good = [index for index in range(20) if index not in (3, 17)]
    np.testing.assert_allclose(caught.value.scores[good], np.array(expected)[good], atol=2e-6, rtol=0)


def test_gradients_are_refused_with_what_to_do_instead(remote):
    with pytest.raises(InputError, match=r"gradients do not travel.*imagereward\.load\('ImageReward'\)"):
        remote.reward(torch.rand(1, 3, 8, 8), "a")


def test_an_ensemble_takes_a_remote_component(remote, local):
    images = pictures(3)
    together = RM.ensemble({remote: 2.0, local: 1.0})
    expected = [3 * score for score in local.score("a", images)]
    assert together.score("a", images) == pytest.approx(expected, abs=1e-4)


def test_the_async_client_scores_many_at_once_and_the_same(url, local):
    images = pictures(30)

    async def ask():
        async with await RM.connect_async(url) as remote:
            assert isinstance(await remote.score("a", images[0]), float)
            ranking = await remote.rank("a", images[:3])
            single = await asyncio.gather(*(remote.score("a", image) for image in images))
            return ranking, single, await remote.score_matrix(["a", "b"], images, batch_size=4)

    ranking, single, matrix = asyncio.run(ask())
    assert ranking.ranks == local.rank("a", images[:3]).ranks
    np.testing.assert_allclose(single, local.score("a", images), atol=2e-6, rtol=0)
    np.testing.assert_allclose(matrix, local.score_matrix(["a", "b"], images), atol=2e-6, rtol=0)


def test_cancelling_the_async_client_drops_its_work_on_the_server():
    gate = Gate()

    async def ask(url):
        async with await RM.connect_async(url) as remote:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(remote.score("a", pictures(3)), 0.5)

    with serving(gate.scorer) as url:
        asyncio.run(ask(url))
        wait_until(lambda: metric(url, "imagereward_queue_images") == 0)
        gate.open()


def test_the_token_comes_from_the_argument_or_the_environment(monkeypatch):
    monkeypatch.delenv("IMAGEREWARD_TOKEN", raising=False)
    with serving(small_scorer("CLIP"), token="s3cret") as url:
        for token in (None, "wrong"):
            with pytest.raises(RemoteError, match=r"HTTP 401.*token"):
                RM.connect(url, token=token)
        RM.connect(url, token="s3cret").close()
        monkeypatch.setenv("IMAGEREWARD_TOKEN", "s3cret")
        with RM.connect(url) as remote:
            assert isinstance(remote.score("a", pictures(1)[0]), float)


@pytest.mark.parametrize("address", ["", "host:8000", "ftp://host", "http://", "/tmp/socket", None])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(InputError, match="no server's address"):
        RM.connect(address)


def test_a_model_that_is_not_there_is_refused_with_those_that_are(url):
    with pytest.raises(InputError, match="no model 'Clip'; it has: ImageReward, BLIP, CLIP"):
        RM.connect(url, model="Clip")


MODELS = {"models": [{"name": "m"}], "limits": {"body": 10**6, "images": 4, "prompts": 4, "pairs": 16}}
GOOD = {"model": "m", "scores": [0.5], "tokens": [3], "truncated": [False]}


@pytest.fixture
def scripted():
    """(address, script, asked): a server that answers the next of `script` to each POST; None hangs up."""
    script: list = []
    asked: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.reply(200, {}, json.dumps(MODELS).encode())

        def do_POST(self):
            asked.append(time.monotonic())
            self.rfile.read(int(self.headers["Content-Length"]))
            step = script.pop(0) if len(script) > 1 else script[0]
            if step is None:
                self.close_connection = True
                return
            status, headers, content = step
            if callable(content):
                content = content()
            self.reply(
                status, headers, content if isinstance(content, bytes) else json.dumps(content).encode()
            )

        def reply(self, status, headers, body):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": len(body)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # clients that gave up
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", script, asked
    server.shutdown()
    thread.join()
    server.server_close()


def ask_async(url: str, **options):
    async def ask():
        async with await RM.connect_async(url, **options) as remote:
            return await remote.score("a", pictures(1)[0])

    return asyncio.run(ask())


def ask_sync(url: str, **options):
    with RM.connect(url, **options) as remote:
        return remote.score("a", pictures(1)[0])


@pytest.fixture
def naps(monkeypatch):
    """The seconds that both clients would have slept between attempts, instead of sleeping them."""
    slept: list[float] = []

    async def nap(self, seconds):
        slept.append(seconds)

    # Not `time.sleep` and `asyncio.sleep`, which servers of other tests in this process use too.
    for transport in ("_Blocking", "_Awaited"):
        monkeypatch.setattr(f"imagereward.remote.client.{transport}.sleep", nap)
    return slept


@pytest.fixture(params=[ask_sync, ask_async])
def ask(request):
    return request.param


@pytest.mark.parametrize(
    "trouble", [None, (429, {}, {}), (503, {}, b"starting"), (502, {}, b""), (504, {}, b"")]
)
def test_passing_trouble_is_tried_again(scripted, ask, trouble):
    url, script, asked = scripted
    script += [trouble, trouble, (200, {}, GOOD)]
    assert ask(url) == 0.5
    assert len(asked) == 3


def test_retry_after_is_honoured(scripted, ask, naps):
    url, script, asked = scripted
    script += [(429, {"Retry-After": "7"}, {"detail": "full"}), (200, {}, GOOD)]
    assert ask(url) == 0.5
    assert len(asked) == 2
    (waited,) = naps
    assert 7 <= waited <= 8


def test_retry_after_may_be_a_date_and_is_bounded():
    assert protocol.wait(0, "Wed, 21 Oct 2015 07:28:00 GMT") < 1
    assert protocol.wait(0, "nonsense") < 1
    assert protocol.wait(0, "100000") <= 121
    assert max(protocol.wait(50, None) for _ in range(100)) <= 20


def test_retries_end_with_an_error_that_names_server_and_cause(scripted, ask):
    url, script, asked = scripted
    script += [(429, {}, {"detail": "the server is full"})]
    with pytest.raises(
        RemoteError, match=rf"{url} \(m\): 1 of 1 rows.*\n.*row 0: HTTP 429: the server is full"
    ):
        ask(url, retries=2)
    assert len(asked) == 3


def test_what_is_wrong_with_the_request_is_not_tried_again(scripted, ask):
    url, script, asked = scripted
    script += [(422, {}, {"detail": "no such thing"})]
    with pytest.raises(RemoteError, match="HTTP 422: no such thing"):
        ask(url)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        [],
        {},
        {**GOOD, "scores": []},
        {**GOOD, "scores": [None]},
        {**GOOD, "scores": [0.5, 0.5]},
        {**GOOD, "scores": [float("nan")]},
        {**GOOD, "scores": "0"},
        {**GOOD, "tokens": []},
        {**GOOD, "errors": {"9": "x"}},
        {**GOOD, "errors": {"-1": "x"}},
    ],
)
def test_an_answer_without_scores_is_an_error_and_never_a_number(scripted, ask, content):
    url, script, _ = scripted
    script += [(200, {}, content)]
    with pytest.raises(RemoteError, match="not one of a reward server") as caught:
        ask(url)
    assert np.isnan(caught.value.scores).all()


@pytest.mark.parametrize("images", [{"99": "x"}, {"one": "x"}, ["x"], "x"])
def test_a_refusal_that_names_no_image_of_the_request_is_not_tried_again(scripted, ask, images):
    url, script, asked = scripted
    script += [(422, {}, {"detail": "no such thing", "images": images})]
    with pytest.raises(RemoteError, match="HTTP 422: no such thing"):
        ask(url)
    assert len(asked) == 1


def test_a_prompt_that_the_server_refuses_costs_no_other_row_and_is_refused_for_good(remote, local):
    prompts, images = ["a cat", "b" * 5000, "a dog"], pictures(2)
    expected = local.score_matrix(prompts[::2], images)
    with pytest.raises(RemoteError, match="characters") as caught:
        remote.score_matrix(prompts, images)
    assert caught.value.permanent
    assert sorted(caught.value.causes) == [1, 4]  # image by image
    found = np.asarray(caught.value.scores).reshape(2, 3)
    np.testing.assert_allclose(found[:, ::2].T, expected, **CLOSE)
    with pytest.raises(RemoteError) as pairs:
        remote.score_pairs([*prompts[:2], "a bird"], [images[0], images[1], images[0]])
    assert (pairs.value.permanent, set(pairs.value.causes)) == (True, {1})
    with pytest.raises(RemoteError) as single:
        RM.connect(f"{remote.url}/score").score_pairs(prompts[:2], images)
    assert (single.value.permanent, set(single.value.causes)) == (True, {1})


def test_images_without_a_row_are_no_matter(url, local):
    images = pictures(9)
    body = {"images": [base64_of(png(image)) for image in images], "prompts": ["a"]}
    pairs = [[index, 0] for index in range(8)]  # a batch on a CPU has eight images: the ninth has its own
    answer = client(url).post("/v1/score", json={**body, "model": "ImageReward", "pairs": pairs}).json()
    np.testing.assert_allclose(answer["scores"], local.score("a", images[:8]), **CLOSE)
    prompts = [f"a {number}" for number in range(171)]
    pairs = [
        [image, prompt] for prompt in range(171) for image in range(3)
    ]  # 513 rows: two passes of the head
    body |= {"images": body["images"][:4], "prompts": prompts}
    answer = client(url).post("/v1/score", json={**body, "model": "ImageReward", "pairs": pairs}).json()
    expected = local.score_matrix(prompts, images[:3]).reshape(-1)
    np.testing.assert_allclose(answer["scores"], expected, **CLOSE)


def test_after_an_interruption_no_thread_goes_on_trying():
    before = set(threading.enumerate())
    waiting = threading.Barrier(3)

    def ask(number: int) -> None:
        waiting.wait(10)
        if number == 0:
            raise KeyboardInterrupt
        wait(600)

    with pytest.raises(KeyboardInterrupt):
        in_threads(ask, range(3), 3)
    wait_until(
        lambda: (
            not any(
                thread.name.startswith("imagereward-remote") for thread in set(threading.enumerate()) - before
            )
        )
    )


@pytest.mark.parametrize("url", ["http://host/v1", "http://host/score"])
def test_addresses_without_an_awaited_client_are_refused(url):
    with pytest.raises(InputError, match="is asked without await"):
        asyncio.run(RM.connect_async(url, "model"))


def test_a_request_over_the_servers_pixels_is_sent_in_halves():
    scorer, images = small_scorer("CLIP"), [picture.resize((60, 60)) for picture in pictures(5)]
    limits = Limits(image_pixels=4000, request_pixels=8000)  # two images at once
    with serving(scorer, limits=limits) as url, RM.connect(url) as remote:
        assert remote.score("a", images) == pytest.approx(scorer.score("a", images), abs=1e-6)


def test_a_header_that_only_looks_like_a_number_is_none():
    assert 0 <= protocol.wait(0, "\u00b2") <= protocol.FIRST_WAIT


def test_no_message_about_an_address_shows_its_password():
    for url in ("http://me:s3cret@host/v1", "htp://me:s3cret@host", "me:s3cret@host", "http://:s3cret@/"):
        with pytest.raises(InputError) as caught:
            RM.connect(url)
        assert "s3cret" not in str(caught.value), url
    with pytest.raises(InputError) as caught:
        asyncio.run(RM.connect_async("http://me:s3cret@host/score"))
    assert "s3cret" not in str(caught.value)


def test_a_closed_async_client_raises_what_the_blocking_one_does(scripted):
    async def ask():
        remote = await RM.connect_async(scripted[0])
        await remote.close()
        await remote.score("a", pictures(1)[0])

    with pytest.raises(InputError, match="closed"):
        asyncio.run(ask())


def test_an_answer_that_does_not_come_in_time_is_an_error(scripted, ask):
    url, script, _ = scripted
    script += [(200, {}, lambda: time.sleep(1) or GOOD)]
    with pytest.raises(RemoteError, match="ReadTimeout"):
        ask(url, timeout=0.2, retries=1)


def test_a_server_that_is_down_is_named_at_once(ask):
    with pytest.raises(RemoteError, match=r"http://127.0.0.1:1: ConnectError.*\(2 attempts\)") as caught:
        ask("http://127.0.0.1:1", retries=1)
    assert isinstance(caught.value, ConnectionError)


def test_something_that_is_no_reward_server_is_said_to_be(scripted, monkeypatch):
    monkeypatch.setattr(f"{__name__}.MODELS", {"hello": "world"})
    with pytest.raises(RemoteError, match="is no reward server"):
        RM.connect(scripted[0])


def test_when_the_server_goes_away_the_rest_is_not_sent_and_nothing_scored_is_lost(scripted):
    url, script, asked = scripted
    images = pictures(40)
    script += [(200, {}, {**GOOD, "scores": [0.5] * 4}), None]
    with RM.connect(url, retries=1, connections=1) as remote, pytest.raises(RemoteError) as caught:
        remote.score("a", images)
    assert len(asked) == 3
    assert sorted(caught.value.causes) == list(range(4, 40))
    assert "not sent, because" in caught.value.causes[39]
    assert caught.value.scores[:4].tolist() == [0.5] * 4
    assert np.isnan(caught.value.scores[4:]).all()
