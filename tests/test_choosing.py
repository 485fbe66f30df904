"""The page that collects choices: what comes next, the file that keeps them, the server, a real browser."""

import json
import re
import threading
from contextlib import contextmanager

import httpx2
import numpy as np
import pytest
from conftest import small_scorer
from personal_choices import picture, rankings

from benchmarks.lib.browsing import assert_readable
from benchmarks.lib.serving import wait_until
from imagereward.choosing.app import create_app
from imagereward.choosing.candidates import Candidates, read_candidates
from imagereward.choosing.journal import Journal
from imagereward.choosing.run import name_of, trainer
from imagereward.choosing.session import RANDOM_EVERY, Session
from imagereward.errors import InputError, OutputError
from imagereward.serve.run import server
from imagereward.tuning.personal.choices import read_choices


class ByName:
    """Scores an image by the number in its name: 3.png is 0.3."""

    def score_pairs(self, prompts, images):
        return [float(path.stem) / 10 for path in images]


@pytest.fixture
def candidates(tmp_path) -> Candidates:
    rng = np.random.default_rng(0)
    for index in range(8):
        picture(index / 8, rng).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text("a cat" if index < 4 else "a <b>dog</b> & co")
    return read_candidates(tmp_path)


@pytest.fixture
def session(candidates, tmp_path) -> Session:
    return Session(ByName(), candidates, Journal(tmp_path / "choices.jsonl"))


@contextmanager
def running(session: Session, token: str | None = None):
    made = server(create_app(session, token), "127.0.0.1", 0)
    made.config.log_level = "critical"
    made.config.configure_logging()
    thread = threading.Thread(target=made.run)
    thread.start()
    try:
        wait_until(lambda: made.started or not thread.is_alive())
        yield f"http://127.0.0.1:{made.servers[0].sockets[0].getsockname()[1]}"
    finally:
        made.should_exit = True
        thread.join()


def test_a_folder_gives_the_pairs_of_images_of_one_prompt(candidates):
    assert len(candidates.images) == 8
    assert len(candidates.pairs) == 12
    assert {candidates.prompts[i] == candidates.prompts[j] for i, j in candidates.pairs} == {True}


def test_a_table_names_prompts_and_images(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        picture(0.5, rng).save(tmp_path / f"{name}.png")
    records = [{"id": "1", "prompt": "x", "generations": ["a.png", "b.png", "c.png"], "ranking": [1, 2, 2]}]
    (tmp_path / "train.json").write_text(json.dumps(records))
    found = read_candidates(tmp_path, tmp_path / "train.json")
    assert found.prompts == ("x", "x", "x")
    assert found.pairs == ((0, 1), (0, 2), (1, 2))
    (tmp_path / "table.jsonl").write_text(json.dumps({"prompt": "x", "image": "missing.png"}) + "\n")
    with pytest.raises(InputError, match=r"table\.jsonl, record 0, image: .*missing\.png"):
        read_candidates(tmp_path, tmp_path / "table.jsonl")
    (tmp_path / "table.jsonl").write_text(json.dumps({"prompt": None, "image": "a.png"}) + "\n")
    with pytest.raises(InputError, match=r"table\.jsonl, record 0, prompt: "):
        read_candidates(tmp_path, tmp_path / "table.jsonl")
    (tmp_path / "table.jsonl").write_text(json.dumps({"prompt": "x", "image": "a.png"}) + "\n")
    with pytest.raises(InputError, match="1 images of 1 prompts, and none has two images to compare"):
        read_candidates(tmp_path, tmp_path / "table.jsonl")
    with pytest.raises(InputError, match="is no folder"):
        read_candidates(tmp_path / "nowhere")


def test_the_next_pair_has_the_closest_scores_and_prompts_take_turns(session, candidates):
    asked = []
    for _ in range(12):
        question = session.state()["question"]
        asked.append(tuple(question["pair"]))
        session.answer(asked[-1], "tie")
    assert session.state()["question"] is None
    assert {tuple(sorted(pair)) for pair in asked} == set(candidates.pairs)
    prompts = [candidates.prompts[i] for i, _ in asked]
    assert all(prompts[k] != prompts[k + 1] for k in range(0, 12, 2))
    closest = [abs(i - j) for k, (i, j) in enumerate(asked) if (k + 1) % RANDOM_EVERY][:2]
    assert closest == [1, 1]
    assert 0 < sum(i > j for i, j in asked) < 12  # sides are swapped at random


def test_a_choice_is_on_the_disk_before_the_answer_and_survives_a_kill(session, candidates, tmp_path):
    pairs = []
    for choice in ("left", "right", "tie"):
        pairs.append(tuple(session.state()["question"]["pair"]))
        session.answer(pairs[-1], choice)
        lines = (tmp_path / "choices.jsonl").read_text().splitlines()
        assert len(lines) == len(pairs)
    records = [json.loads(line) for line in lines]
    assert [each["ranking"] for each in records] == [[1, 2], [2, 1], [1, 1]]
    assert records[0]["images"] == [f"{index}.png" for index in pairs[0]]
    with open(tmp_path / "choices.jsonl", "a") as stream:  # a kill in the middle of a line
        stream.write('{"prompt": "a c')
    again = Session(ByName(), candidates, Journal(tmp_path / "choices.jsonl"))
    assert again.state()["count"] == 3
    assert (tmp_path / "choices.jsonl").read_text().splitlines() == lines
    left = []
    while (question := again.state()["question"]) is not None:
        left.append(tuple(sorted(question["pair"])))
        again.answer(tuple(question["pair"]), "left")
    assert sorted([*left, *(tuple(sorted(pair)) for pair in pairs)]) == sorted(candidates.pairs)
    assert read_choices(tmp_path / "choices.jsonl").kind == "rankings"


def test_undo_takes_the_last_choice_off_the_disk_and_asks_again(session, tmp_path):
    first = session.state()["question"]
    session.answer(tuple(first["pair"]), "left")
    second = session.state()["question"]
    session.answer(tuple(second["pair"]), "right")
    session.undo()
    assert session.state()["question"] == second
    session.undo()
    assert session.state()["question"] == first
    assert session.state()["count"] == 0
    assert (tmp_path / "choices.jsonl").read_text() == ""
    session.undo()  # nothing is left: nothing happens
    assert session.state()["question"] == first


def test_an_answer_to_another_pair_is_refused_and_kept_nowhere(session, tmp_path):
    pair = tuple(session.state()["question"]["pair"])
    session.answer(pair, "left")
    with pytest.raises(InputError, match="another pair is asked"):
        session.answer(pair, "left")
    with pytest.raises(InputError, match="choice='best': expected left, right, tie"):
        session.answer(tuple(session.state()["question"]["pair"]), "best")
    assert len((tmp_path / "choices.jsonl").read_text().splitlines()) == 1


def test_what_the_scorer_foresaw_is_counted(session):
    for _ in range(4):
        left, right = session.state()["question"]["pair"]
        session.answer((left, right), "left" if left > right else "right")
    left, right = session.state()["question"]["pair"]
    session.answer((left, right), "left" if left < right else "right")
    assert session.state()["since"] == {"count": 5, "base": 4, "adapter": 4}


def test_other_files_are_refused_and_a_full_disk_keeps_whole_lines(tmp_path, monkeypatch):
    (tmp_path / "other.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(InputError, match=r"other\.jsonl, line 1 is no choice of this page"):
        Journal(tmp_path / "other.jsonl")
    journal = Journal(tmp_path / "choices.jsonl")
    journal.append("a", (tmp_path / "0.png", tmp_path / "1.png"), (1, 2))
    before = (tmp_path / "choices.jsonl").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match=r"choices\.jsonl cannot be written"):
        journal.append("b", (tmp_path / "0.png", tmp_path / "1.png"), (1, 2))
    monkeypatch.undo()
    assert (tmp_path / "choices.jsonl").read_bytes() == before
    journal.append("c", (tmp_path / "0.png", tmp_path / "1.png"), (2, 1))
    assert len(Journal(tmp_path / "choices.jsonl").records) == 2


def test_the_server_bounds_bodies_and_admits_its_own_page_alone(session):
    with running(session) as url, httpx2.Client(base_url=url, timeout=30) as client:
        page = client.get("/")
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert "http" not in page.text.replace("http-equiv", "").split("<script>")[0]
        assert client.get("/image/0").headers["Content-Type"] == "image/webp"
        assert client.get("/image/99").status_code == 404
        assert client.get("/image/../../etc/passwd").status_code in (404, 422)
        pair = client.get("/state").json()["question"]["pair"]
        body = {"pair": pair, "choice": "left"}
        assert (
            client.post(
                "/choose", content=b"x" * 5000, headers={"Content-Type": "application/json"}
            ).status_code
            == 413
        )
        assert client.post("/choose", content=json.dumps(body)).status_code == 415
        assert client.post("/choose", json=body, headers={"Origin": "http://evil.example"}).status_code == 403
        assert client.get("/state", headers={"Host": "evil.example"}).status_code == 403
        for wrong in (
            [],
            {},
            {"pair": [0], "choice": "left"},
            {"pair": [0, True], "choice": "left"},
            {**body, "choice": 1},
        ):
            answer = client.post("/choose", json=wrong)
            assert answer.status_code == 422, answer.text
            assert answer.json()["detail"]
        assert (
            client.post(
                "/choose", content=b"[" * 3000, headers={"Content-Type": "application/json"}
            ).status_code
            == 422
        )
        assert client.post("/train", json={}).status_code == 422
        assert client.post("/choose", json=body).json()["count"] == 1
        assert client.post("/choose", json=body).status_code == 422  # sent twice
        assert client.get("/docs").status_code == 404


def test_other_machines_need_the_token(session):
    with running(session, "secret") as url, httpx2.Client(base_url=url, timeout=30) as client:
        assert client.get("/").status_code == 401
        assert client.get("/state?token=wrong").status_code == 401
        assert client.get("/?token=secret").status_code == 200  # sets the cookie
        assert client.get("/state").status_code == 200


def test_the_name_of_an_adapter_is_that_of_its_directory(tmp_path):
    assert name_of(tmp_path / "my taste.v1") == "my-taste-v1"


@pytest.fixture
def learning(tmp_path):
    """A session with pictures that differ in red, whose adapter can be trained."""
    records = [{"prompt": each["prompt"], "images": []} for each in rankings(8, 2)]
    for row, (record, drawn) in enumerate(zip(records, rankings(8, 2))):
        for place, image in enumerate(drawn["images"]):
            image.save(tmp_path / f"{row}-{place}.png")
            record["images"].append(f"{row}-{place}.png")
    table = tmp_path / "prompts.jsonl"
    rows = [{"prompt": each["prompt"], "image": name} for each in records for name in each["images"]]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scorer = small_scorer("ImageReward")
    train = trainer(scorer, tmp_path / "my-taste", "loreft", folds=2, epochs=1)
    return Session(scorer, read_candidates(tmp_path, table), Journal(tmp_path / "choices.jsonl"), train)


@pytest.fixture
def open_page(browser):
    """Opens an address; fails the test if the page logs an error or asks anyone but the server."""
    contexts, faults = [], []

    def visit(url: str, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith((url, "data:")) or faults.append(request.url),
        )
        page.goto(url)
        page.wait_for_selector("#left:enabled")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not faults


def chosen(page, count: int) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#count")).to_have_text(re.compile(rf"^{count} chosen"), timeout=30_000)


def test_a_person_chooses_by_mouse_and_keyboard_undoes_and_teaches(open_page, learning, tmp_path):
    with running(learning) as url:
        page = open_page(url)
        assert page.locator("#train").is_disabled()
        page.click("#left")
        chosen(page, 1)
        page.keyboard.press("ArrowRight")
        chosen(page, 2)
        page.keyboard.press("ArrowDown")
        chosen(page, 3)
        page.keyboard.press("u")
        chosen(page, 2)
        for count in range(3, 7):
            page.keyboard.press("ArrowLeft")
            chosen(page, count)
        lines = [json.loads(line) for line in (tmp_path / "choices.jsonl").read_text().splitlines()]
        assert [each["ranking"] for each in lines] == [[1, 2], [2, 1], *[[1, 2]] * 4]
        question = page.locator("#prompt").inner_text()
        page.click("#train")
        page.wait_for_selector("#bars:not([hidden])", timeout=120_000)
        assert page.locator("#prompt").inner_text() == question
        assert "6 choices" in page.locator("#verdict").inner_text()
        assert page.locator("#bars meter").count() == 2
        page.keyboard.press("ArrowLeft")
        chosen(page, 7)
        assert "Of the last 1 choices" in page.locator("#since").inner_text()
    assert json.loads((tmp_path / "my-taste/config.json").read_text())["adapter"]["name"] == "my-taste"
    again = small_scorer("ImageReward")
    again.add_adapter(tmp_path / "my-taste")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_both_images_and_buttons_fit_and_the_end_is_said(open_page, session, scheme):
    with running(session) as url:
        page = open_page(
            url, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True, color_scheme=scheme
        )
        assert_readable(page, scheme)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for name in ("left", "right", "tie", "undo"):
            box = page.locator(f"#{name}").bounding_box()
            assert box["height"] >= 44
            assert box["y"] + box["height"] <= 844
        if scheme == "light":
            while page.locator("#left").is_enabled():
                count = int(page.locator("#count").inner_text().split()[0])
                page.tap("#tie")
                chosen(page, count + 1)
            assert page.locator("#prompt").inner_text() == "All pairs are chosen."
        else:
            texts = {page.locator("#prompt").inner_text()}
            page.tap("#left")
            chosen(page, 1)
            texts.add(page.locator("#prompt").inner_text())
            assert texts == {"a cat", "a <b>dog</b> & co"}  # a prompt is text, not markup


def test_a_stopped_program_is_said_on_the_page(open_page, session):
    with running(session) as url:
        page = open_page(url)
    page.click("#left")
    page.wait_for_selector("#status.fault")
    assert "does not answer" in page.locator("#status").inner_text()
