"""Clients in forked and spawned processes and in threads: right scores, and no secret in a pickle."""

import asyncio
import copy
import multiprocessing
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch.utils.data
from conftest import pictures, small_scorer

import imagereward as RM
from benchmarks.lib.serving import serving
from imagereward.errors import InputError, RemoteError
from imagereward.remote import forking

PROMPTS = [f"{colour} {shape}" for colour in ("red", "blue", "green", "grey") for shape in ("cat", "sofa")]
IMAGES = pictures(len(PROMPTS))
ROWS = range(len(PROMPTS))
TOKEN = "s3cret-of-this-test"


@pytest.fixture(scope="module")
def local():
    return small_scorer("ImageReward", dtype="float64")


@pytest.fixture(scope="module")
def url(local):
    with serving(local, window=0.001) as url:
        yield url


@pytest.fixture(scope="module")
def expected(local):
    scores = np.array(local.score_pairs(PROMPTS, IMAGES))
    assert np.diff(np.sort(scores)).min() > 1e-4  # a crossed answer would show
    return scores


class ScoredRows(torch.utils.data.Dataset):
    """Row i is the remote score of prompt i with image i."""

    def __init__(self, remote, length: int):
        self.remote, self.length = remote, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> float:
        row %= len(PROMPTS)
        return self.remote.score(PROMPTS[row], IMAGES[row])


def in_fork(function):
    """What `function` returns in a forked process."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def call() -> None:
        try:
            there.send(function())
        except BaseException as error:
            there.send(error)

    process = context.Process(target=call)
    process.start()
    assert here.poll(60), "the forked process did not answer"
    answer = here.recv()
    process.join(60)
    if isinstance(answer, BaseException):
        raise answer
    return answer


def test_forked_dataloader_workers_get_their_own_scores_while_the_parent_scores(url, expected):
    with RM.connect(url) as remote:
        for _ in range(4):  # many short-lived pools, as each epoch makes them
            np.testing.assert_allclose(
                remote.score_pairs(PROMPTS, IMAGES, batch_size=1), expected, atol=1e-6, rtol=0
            )
            loader = torch.utils.data.DataLoader(
                ScoredRows(remote, 32),
                batch_size=None,
                num_workers=4,
                timeout=60,
                multiprocessing_context="fork",
            )
            with ThreadPoolExecutor(1) as threads:
                meanwhile = threads.submit(lambda: [ScoredRows(remote, 8)[row] for row in ROWS])
                np.testing.assert_allclose(
                    [float(score) for score in loader], np.tile(expected, 4), atol=1e-6, rtol=0
                )
                np.testing.assert_allclose(meanwhile.result(), expected, atol=1e-6, rtol=0)


def test_a_fork_of_a_fork_and_a_fork_of_a_busy_process_score_their_own_rows(url, expected):
    with RM.connect(url) as remote:
        rows = ScoredRows(remote, 8)
        rows[0]
        assert in_fork(lambda: (rows[1], in_fork(lambda: rows[2]), rows[1])) == pytest.approx(
            (expected[1], expected[2], expected[1]), abs=1e-6
        )
        stop = threading.Event()

        def score_on() -> list[float]:
            scores = []
            while not stop.is_set():
                scores.append(rows[3])
            return scores

        with ThreadPoolExecutor(2) as threads:  # at the fork, locks and connections are in use
            busy = [threads.submit(score_on) for _ in range(2)]
            forked = [in_fork(lambda row=row: rows[row]) for row in ROWS]
            stop.set()
        np.testing.assert_allclose(forked, expected, atol=1e-6, rtol=0)
        for each in busy:
            np.testing.assert_allclose(each.result(), expected[3], atol=1e-6, rtol=0)


def test_the_async_client_scores_in_forks_and_in_one_event_loop_after_another(url, expected):
    remote = asyncio.run(RM.connect_async(url))

    async def score(row: int) -> float:
        return await remote.score(PROMPTS[row], IMAGES[row])

    async def score_all() -> list[float]:
        return await asyncio.gather(*map(score, ROWS))

    np.testing.assert_allclose(asyncio.run(score_all()), expected, atol=1e-6, rtol=0)
    np.testing.assert_allclose(asyncio.run(score_all()), expected, atol=1e-6, rtol=0)

    async def fork_from_a_running_loop() -> list[float]:
        await score_all()
        with ThreadPoolExecutor(4) as threads:
            forks = [threads.submit(in_fork, lambda row=row: asyncio.run(score(row))) for row in ROWS]
            again = await score_all()
            np.testing.assert_allclose(again, expected, atol=1e-6, rtol=0)
            return [await asyncio.wrap_future(each) for each in forks]

    np.testing.assert_allclose(asyncio.run(fork_from_a_running_loop()), expected, atol=1e-6, rtol=0)


def test_threads_share_one_client(url, expected):
    with RM.connect(url) as remote, ThreadPoolExecutor(8) as threads:
        scores = list(threads.map(ScoredRows(remote, 64).__getitem__, range(64)))
        assert len(remote._clients) == 1
    np.testing.assert_allclose(scores, np.tile(expected, 8), atol=1e-6, rtol=0)


def test_a_forked_process_is_another_even_with_the_same_process_id(monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert in_fork(forking.process_key) != forking.process_key()


def test_spawned_dataloader_workers_get_the_scorer_pickled_with_its_token(local, expected, monkeypatch):
    monkeypatch.delenv("IMAGEREWARD_TOKEN", raising=False)
    with serving(local, token=TOKEN) as url, RM.connect(url, token=TOKEN) as remote:
        loader = torch.utils.data.DataLoader(
            ScoredRows(remote, 8),
            batch_size=None,
            num_workers=1,
            timeout=120,
            multiprocessing_context="spawn",
        )
        np.testing.assert_allclose([float(score) for score in loader], expected, atol=1e-6, rtol=0)


def test_a_pickle_holds_settings_and_no_token(local, expected, monkeypatch):
    monkeypatch.delenv("IMAGEREWARD_TOKEN", raising=False)
    with serving({"first": small_scorer("CLIP"), "second": local}, token=TOKEN) as url:
        remote = RM.connect(url, model="second", token=TOKEN, timeout=33, retries=2, connections=3)
        assert remote.score(PROMPTS[0], IMAGES[0]) == pytest.approx(expected[0], abs=1e-6)
        data = pickle.dumps(remote)
        assert TOKEN.encode() not in data
        loaded = pickle.loads(data)
        with pytest.raises(InputError, match=r"leaves the token or password out: set .* IMAGEREWARD_TOKEN"):
            loaded.score(PROMPTS[0], IMAGES[0])
        with pytest.raises(InputError, match="IMAGEREWARD_TOKEN"):
            pickle.loads(pickle.dumps(loaded)).score(PROMPTS[0], IMAGES[0])
        monkeypatch.setenv("IMAGEREWARD_TOKEN", TOKEN)
        loaded = pickle.loads(data)
        assert (loaded.url, loaded.name, loaded.limits) == (remote.url, "second", remote.limits)
        assert (loaded.retries, loaded.connections, loaded._options["timeout"].read) == (2, 3, 33)
        assert loaded.score(PROMPTS[0], IMAGES[0]) == pytest.approx(expected[0], abs=1e-6)


def test_a_pickle_holds_no_password(url):
    remote = RM.connect(url.replace("http://", f"http://me:{TOKEN}@"), retries=0)
    assert TOKEN.encode() not in pickle.dumps(remote)
    again = pickle.loads(pickle.dumps(remote))
    with pytest.raises(InputError, match="a pickle leaves the token or password out"):
        again.score("a", IMAGES[0])


@pytest.mark.parametrize("timeout", ["60", -1, 0, float("nan"), True])
def test_a_timeout_is_a_number_of_seconds_above_0(url, timeout):
    with pytest.raises(InputError, match="expected a number of seconds above 0"):
        RM.connect(url, timeout=timeout)


def test_copies_keep_the_token_and_outlive_the_original(local, expected, monkeypatch):
    monkeypatch.delenv("IMAGEREWARD_TOKEN", raising=False)
    with serving(local, token=TOKEN) as url:
        remote = RM.connect(url, token=TOKEN)
        copies = [copy.copy(remote), copy.deepcopy({"reward": remote})["reward"]]
        remote.close()
        for each in copies:
            assert each.score(PROMPTS[0], IMAGES[0]) == pytest.approx(expected[0], abs=1e-6)
        with pytest.raises(InputError, match="is closed: connect again"):
            remote.score(PROMPTS[0], IMAGES[0])


def test_an_async_scorer_is_pickled_like_the_other(url, expected):
    async def ask(remote) -> float:
        async with remote:
            return await remote.score(PROMPTS[1], IMAGES[1])

    data = pickle.dumps(asyncio.run(RM.connect_async(url)))
    assert asyncio.run(ask(pickle.loads(data))) == pytest.approx(expected[1], abs=1e-6)


def test_no_message_shows_a_token_or_a_password(url, caplog):
    for token in (f"{TOKEN}\r\nx: y", f"{TOKEN} {TOKEN}", f"{TOKEN}é", " "):
        with pytest.raises(InputError, match="the token is empty, or has") as caught:
            RM.connect(url, token=token)
        assert TOKEN not in str(caught.value)
    assert RM.connect(url, token=f"{TOKEN}\n").name == "ImageReward"  # as files end
    caplog.set_level("DEBUG")
    remote = RM.connect(url.replace("http://", f"http://me:{TOKEN}@"), token=None)
    remote.score(PROMPTS[0], IMAGES[0])
    with RM.connect(url, token=TOKEN) as other:
        other.score(PROMPTS[0], IMAGES[0])
        assert TOKEN not in repr(other) + repr(remote) + remote.url
    assert TOKEN not in caplog.text
    with pytest.raises(RemoteError) as caught:
        RM.connect(f"http://me:{TOKEN}@127.0.0.1:1", retries=0)
    assert TOKEN not in str(caught.value)
