"""The page that collects choices: what comes next, the file that keeps them, the server, a real browser."""

import json
import re
import resource
import signal
import threading
import tracemalloc
from collections.abc import Iterator
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest
from choosing_pages import reds, running, say_better
from conftest import small_scorer
from personal_choices import picture, rankings

from benchmarks.lib.browsing import assert_readable
from benchmarks.lib.serving import wait_until
from imagereward.choosing.candidates import MOST_PAIRS, Candidates, read_candidates
from imagereward.choosing.journal import Journal
from imagereward.choosing.learning import trainer
from imagereward.choosing.picking import RANDOM_EVERY, disagreement, pick
from imagereward.choosing.saved import Saved
from imagereward.choosing.session import Session, Trained
from imagereward.config import AdapterConfig
from imagereward.errors import InputError, OutputError
from imagereward.tuning.personal.bootstrap import drawn_choices, refits
from imagereward.tuning.personal.choices import read_choices
from imagereward.tuning.personal.config import LearningConfig

LEFT, RIGHT, TIE = (1, 2), (2, 1), (1, 1)


def verdict(ahead: bool, choices: int = 0) -> SimpleNamespace:
    """A summary, as far as a session reads it."""
    share = (0.5, 0.4, 0.6)
    shares = dict.fromkeys(("base", "adapted", "gain"), share)
    return SimpleNamespace(choices=choices, pairs=choices, ahead=ahead, recurring=False, **shares)


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
def session(candidates, tmp_path) -> Iterator[Session]:
    with Journal(tmp_path / "choices.jsonl") as journal:
        yield Session(ByName(), candidates, journal)


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
    asked, rules = [], []
    for _ in range(12):
        question = session.state()["question"]
        asked.append(tuple(question["images"]))
        rules.append(question["rule"])
        session.answer(asked[-1], TIE)
    assert rules == ["closest", "closest", "random"] * 4
    assert session.state()["question"] is None
    assert {tuple(sorted(pair)) for pair in asked} == set(candidates.pairs)
    prompts = [candidates.prompts[i] for i, _ in asked]
    assert all(prompts[k] != prompts[k + 1] for k in range(0, 12, 2))
    closest = [abs(i - j) for k, (i, j) in enumerate(asked) if (k + 1) % RANDOM_EVERY][:2]
    assert closest == [1, 1]
    assert 0 < sum(i > j for i, j in asked) < 12  # sides are swapped at random


def test_a_choice_is_on_the_disk_before_the_answer_and_survives_a_kill(session, candidates, tmp_path):
    pairs = []
    for ranking in (LEFT, RIGHT, TIE):
        pairs.append(tuple(session.state()["question"]["images"]))
        session.answer(pairs[-1], ranking)
        lines = (tmp_path / "choices.jsonl").read_text().splitlines()
        assert len(lines) == len(pairs)
    records = [json.loads(line) for line in lines]
    assert [each["ranking"] for each in records] == [[1, 2], [2, 1], [1, 1]]
    assert records[0]["images"] == [f"{index}.png" for index in pairs[0]]
    with open(tmp_path / "choices.jsonl", "a") as stream:  # a kill in the middle of a line
        stream.write('{"prompt": "a c')
    session.journal.close()
    again = Session(ByName(), candidates, Journal(tmp_path / "choices.jsonl"))
    assert again.state()["count"] == 3
    assert (tmp_path / "choices.jsonl").read_text().splitlines() == lines
    left = []
    while (question := again.state()["question"]) is not None:
        left.append(tuple(sorted(question["images"])))
        again.answer(question["images"], LEFT)
    assert sorted([*left, *(tuple(sorted(pair)) for pair in pairs)]) == sorted(candidates.pairs)
    assert read_choices(tmp_path / "choices.jsonl").kind == "rankings"


def test_undo_takes_the_last_choice_off_the_disk_and_asks_again(session, tmp_path):
    first = session.state()["question"]
    session.answer(first["images"], LEFT)
    second = session.state()["question"]
    session.answer(second["images"], RIGHT)
    session.undo()
    assert session.state()["question"] == {**second, "rule": "again"}
    session.undo()
    first = {**first, "rule": "again"}
    assert session.state()["question"] == first
    assert session.state()["count"] == 0
    assert (tmp_path / "choices.jsonl").read_text() == ""
    session.undo()  # nothing is left: nothing happens
    assert session.state()["question"] == first


def test_an_answer_to_another_pair_is_refused_and_kept_nowhere(session, tmp_path):
    pair = session.state()["question"]["images"]
    session.answer(pair, LEFT)
    with pytest.raises(InputError, match="others are asked about"):
        session.answer(pair, LEFT)
    for wrong in ((1,), (1, 2, 2), (0, 1), (1, 3), (2, 2), (1, True), (1, "2")):
        with pytest.raises(InputError, match=r"ranking=.*: expected 2 places from 1, the best, on"):
            session.answer(session.state()["question"]["images"], wrong)
    assert len((tmp_path / "choices.jsonl").read_text().splitlines()) == 1


def test_a_page_of_an_earlier_run_changes_nothing(session, tmp_path):
    with running(session, None) as url, httpx2.Client(base_url=url, timeout=30) as client:
        state = client.get("/state").json()
        body = {"images": state["question"]["images"], "ranking": [1, 2]}
        for path in ("/choose", "/undo"):
            answer = client.post(path, json={**body, "run": "of-yesterday"})
            assert (answer.status_code, "an earlier run" in answer.json()["detail"]) == (422, True)
        assert not (tmp_path / "choices.jsonl").exists()
        assert client.post("/choose", json={**body, "run": state["run"]}).json()["count"] == 1
        assert client.post("/undo", json={"run": state["run"]}).json()["count"] == 0


def test_what_the_scorer_foresaw_is_counted(session):
    for _ in range(4):
        left, right = session.state()["question"]["images"]
        session.answer((left, right), LEFT if left > right else RIGHT)
    left, right = session.state()["question"]["images"]
    session.answer((left, right), LEFT if left < right else RIGHT)
    assert session.state()["since"] == {"count": 5, "base": 4, "adapter": 4}
    session.show(4)
    images = session.state()["question"]["images"]
    best = sorted(images, reverse=True)  # as the scorer orders them, but for the last two, who share a place
    session.answer(images, [min(best.index(index) + 1, 3) for index in images])
    assert session.state()["since"] == {"count": 10, "base": 9, "adapter": 9}
    session.journal.close()
    with Journal(session.journal.path) as journal:
        again = Session(ByName(), session.candidates, journal)
        assert again.state()["since"] == {"count": 10, "base": 9, "adapter": 9}
        again.undo()
        assert again.state()["since"] == {"count": 5, "base": 4, "adapter": 4}


def test_up_to_four_images_are_put_into_an_order(session, candidates, tmp_path):
    state = session.state()
    assert (state["shown"], state["most_shown"]) == (2, 4)
    for shown in (3, 4):
        session.show(shown)
        images = session.state()["question"]["images"]
        assert len(set(images)) == shown
        assert len({candidates.prompts[index] for index in images}) == 1
        session.answer(images, list(range(shown, 0, -1)))
    lines = [json.loads(line) for line in (tmp_path / "choices.jsonl").read_text().splitlines()]
    assert [each["ranking"] for each in lines] == [[3, 2, 1], [4, 3, 2, 1]]
    pairs = 0
    while (question := session.state()["question"]) is not None:  # what is left of the prompt of three
        images = question["images"]
        assert len(images) == 4
        session.answer(images, [1, 1, 2, 2])
        pairs += 1
    assert pairs == 1
    read = read_choices(tmp_path / "choices.jsonl")
    assert [len(choice.decided) for choice in read.items] == [3, 6, 4]
    session.journal.close()
    again = Session(ByName(), candidates, Journal(tmp_path / "choices.jsonl"))
    assert again.state()["question"] is None
    for wrong in (1, 5, "3", None, True):
        with pytest.raises(InputError, match="expected 2 to 4 images"):
            session.show(wrong)


def test_disagreement_of_refits_by_hand():
    """Two adapters that swap images 0 and 1, and hold 2 and 3, copies, for equally good."""
    scores = np.array([[1.0, 3.0, 5.0, 5.0], [3.0, 1.0, 5.0, 5.0]])
    spread = np.std(scores[0])
    first, second = np.array([0, 2, 0, 1]), np.array([1, 3, 2, 0])
    swapped = [1 / (1 + np.exp(-each / spread)) for each in (-2.0, 2.0)]
    apart = [1 / (1 + np.exp(-each / spread)) for each in (-4.0, -2.0)]
    expected = [np.std(swapped), 0, np.std(apart), np.std(swapped)]
    assert disagreement(scores, first, second) == pytest.approx(expected)
    same = np.ones((2, 2))  # scores without a spread
    assert disagreement(same, np.array([0]), np.array([1])).tolist() == [0]


def test_the_rule_that_picks_is_the_disagreement_once_there_are_refits():
    source, pairs = np.random.default_rng(0), np.array([(0, 1), (0, 2), (1, 2), (3, 4)])
    scores, prompts = np.array([0.0, 0.1, 5.0, 0.0, 9.0]), np.array([0, 0, 0, 1, 1])
    # They disagree about 0 and 2, hardly about 3 and 4, and not about 1 beside 0 and 2.
    refits = np.array([[0.0, 9.0, 4.0, 0.0, 9.0], [4.0, 9.0, 0.0, 1.0, 9.0]])
    closest = pick(pairs, prompts, 2, scores, None, source, 0)
    assert (set(closest.images), closest.rule) == ({0, 1}, "closest")
    uncertain = pick(pairs, prompts, 2, scores, refits, source, 0)
    assert (set(uncertain.images), uncertain.rule) == ({0, 2}, "refits")
    longer = pick(pairs[3:], prompts, 4, scores, refits, source, 1)
    assert set(longer.images) == {3, 4}  # the prompt has no more
    assert set(pick(pairs, prompts, 3, scores, refits, source, 0).images) == {0, 1, 2}
    assert {pick(pairs, prompts, 2, scores, refits, source, RANDOM_EVERY - 1).rule for _ in range(3)} == {
        "random"
    }
    unread = np.array([0.0, np.nan, 5.0, 0.0, 9.0])  # a judge's answer without a verdict
    assert set(pick(pairs, prompts, 2, unread, None, source, 0).images) == {0, 2}


def test_an_image_that_is_listed_twice_is_not_compared_with_itself(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        picture(0.5, rng).save(tmp_path / f"{name}.png")
    rows = [("x", "a.png"), ("x", "b.png"), ("x", "./a.png"), ("y", "a.png"), ("y", "b.png")]
    lines = [json.dumps({"prompt": prompt, "image": image}) + "\n" for prompt, image in rows]
    (tmp_path / "table.jsonl").write_text("".join(lines))
    found = read_candidates(tmp_path, tmp_path / "table.jsonl")
    assert found.prompts == ("x", "x", "y", "y")
    assert found.pairs == ((0, 1), (2, 3))


def test_of_many_images_the_same_pairs_are_drawn_from_all(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(60):
        picture(0.5, rng, 4).save(tmp_path / f"{index:02}.png")
        (tmp_path / f"{index:02}.txt").write_text("a cat")
    found = read_candidates(tmp_path)
    assert len(set(found.pairs)) == len(found.pairs) == MOST_PAIRS < 60 * 59 // 2
    assert all(0 <= i < j < 60 for i, j in found.pairs)
    assert {index for pair in found.pairs for index in pair} == set(range(60))
    assert read_candidates(tmp_path) == found


def test_a_question_about_thousands_of_images_takes_little_memory(tmp_path):
    count = 3000
    images = tuple(tmp_path / f"{index}.png" for index in range(count))
    many = Candidates(images, ("a cat",) * count, tuple((index, index + 1) for index in range(count - 1)))
    rng = np.random.default_rng(0)

    def train(records, score):
        return Trained(verdict(True), records, score(ByName()), rng.normal(size=(4, count)).tolist())

    with Journal(tmp_path / "choices.jsonl") as journal:
        session = Session(ByName(), many, journal, train, shown=4)
        session.train()
        wait_until(lambda: not session.training)
        tracemalloc.start()
        for _ in range(3):
            images = session.state()["question"]["images"]
            session.answer(images, [1] * len(images))
            session.undo()
            session.answer(images, [1] * len(images))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 10 * 2**20  # a table of all pairs takes 72 MB an adapter


def test_a_session_asks_by_the_refits_of_its_training(candidates, tmp_path):
    scores = [float(index) for index in range(8)]
    refits = [scores, [*scores[:6], 7.0, 6.0]]  # they disagree about the last two images alone

    def train(records, score):
        return Trained(verdict(True), records, score(ByName()), refits)

    session = Session(ByName(), candidates, Journal(tmp_path / "choices.jsonl"), train)
    session.train()
    wait_until(lambda: not session.training)
    assert session.state()["refits"] == 2
    session.answer(session.state()["question"]["images"], TIE)
    asked = []
    while session.state()["question"] is not None:
        question = session.state()["question"]
        if question["rule"] == "refits" and candidates.prompts[question["images"][0]] != "a cat":
            asked.append(set(question["images"]))
        session.answer(question["images"], TIE)
    assert asked[0] == {6, 7}


class Turned(ByName):
    """An adapter: the reverse of the scorer's taste."""

    def score_pairs(self, prompts, images):
        return [-score for score in super().score_pairs(prompts, images)]


def test_an_adapter_that_is_no_better_changes_no_question_and_replaces_none(candidates, tmp_path):
    verdicts = [verdict(False, 4), verdict(True, 5), verdict(False, 6)]

    def train(records, score):
        found = verdicts.pop(0)
        return Trained(found, records, *((score(Turned()), []) if found.ahead else ([], [])))

    def learned(session):
        session.train()
        wait_until(lambda: not session.training)
        state = session.state()
        assert not state["fault"]
        return state["trained"]["choices"], state["used"] and state["used"]["choices"]

    with Journal(tmp_path / "choices.jsonl") as journal:
        session = Session(ByName(), candidates, journal, train)
        assert learned(session) == (4, None)
        assert learned(session) == (5, 5)
        assert learned(session) == (6, 5)
        left, right = session.state()["question"]["images"]
        session.answer((left, right), LEFT if left < right else RIGHT)
        assert session.state()["since"] == {"count": 1, "base": 0, "adapter": 1}


def test_a_scorer_without_a_verdict_on_an_image_foresees_half(candidates, tmp_path):
    class Silent(ByName):
        def score_pairs(self, prompts, images):
            return [float("nan")] * len(images)

    with Journal(tmp_path / "choices.jsonl") as journal:
        session = Session(Silent(), candidates, journal, None)
        session.answer(session.state()["question"]["images"], LEFT)
        assert session.state()["since"] == {"count": 1, "base": 0.5, "adapter": 0.5}


def test_only_preferences_that_were_not_learned_count_as_foreseen_and_ties_half(candidates, tmp_path):
    class Tied(ByName):
        def score_pairs(self, prompts, images):
            return [0.0] * len(images)

    def train(records, score):
        return Trained(verdict(True), records, score(Tied()), [])

    with Journal(tmp_path / "choices.jsonl") as journal:
        session = Session(ByName(), candidates, journal, train)
        for _ in range(2):
            session.answer(session.state()["question"]["images"], LEFT)
        session.train()
        wait_until(lambda: not session.training)
        assert session.state()["since"]["count"] == 0
        session.undo()
        again = session.state()["question"]
        session.answer(again["images"], RIGHT)  # the adapter learned this pair
        assert again["rule"] == "again"
        assert session.state()["since"]["count"] == 0
        left, right = session.state()["question"]["images"]
        session.answer((left, right), LEFT if left > right else RIGHT)
        assert session.state()["since"] == {"count": 1, "base": 1, "adapter": 0.5}


def test_refits_learn_from_resampled_choices_and_leave_the_scorer_as_it_was(tmp_path):
    scorer, read = small_scorer("ImageReward"), read_choices(rankings(8, 2))
    mine = scorer.add_adapter(AdapterConfig("loreft", "mine", rank=2))
    image = rankings(1)[0]["images"][0]
    before, names = scorer.score("a cat", image), []

    def find(adapted):
        names.append([each.config.name for each in adapted.adapters.all if each.enabled])
        return adapted.score("a cat", image)

    config = LearningConfig(rank=2, learning_rate=1e-2)
    found = refits(scorer, read, config, 2, 3, find)
    assert names == [["refit"]] * 3
    assert len(set(found)) == 3
    assert list(scorer.adapters) == ["mine"]
    assert mine.enabled
    assert scorer.score("a cat", image) == before
    assert refits(scorer, read, config, 2, 3, find) == found
    scorer.add_adapter(AdapterConfig("loreft", "refit", rank=2))
    refits(scorer, read, config, 1, 1, find, on=["mine"])
    assert names[-1] == ["mine", "refit-"]
    groups = np.array([0, 0, 1, 2])
    drawn = [drawn_choices(groups, [0, seed]) for seed in range(20)]
    assert all(each.count(0) == each.count(1) for each in drawn)  # a prompt's choices stay together
    assert len({tuple(each) for each in drawn}) > 5


def test_only_the_cut_off_beginning_of_a_choice_is_removed_from_a_file(tmp_path):
    path = tmp_path / "choices.jsonl"
    with Journal(path) as journal:
        journal.append("a", (tmp_path / "0.png", tmp_path / "1.png"), (1, 2))
    line = path.read_bytes()
    path.write_bytes(line * 2 + line[:-9])  # a kill in the middle of a line
    with Journal(path) as journal:
        assert len(journal.records) == 2
    assert path.read_bytes() == line * 2
    path.write_bytes(b"\n" + line + b"\n" + line[:-1])  # an editor that left the last line break out
    with Journal(path) as journal:
        assert len(journal.records) == 2
        assert path.read_bytes() == b"\n" + line + b"\n" + line
        journal.undo()
        assert path.read_bytes() == b"\n" + line + b"\n"
        journal.append("a", (tmp_path / "0.png", tmp_path / "1.png"), (1, 2))
        assert path.read_bytes() == b"\n" + line + b"\n" + line
    for foreign in (b'{"rows": [1, 2]}', b'{"prompt": "a"}', line + b"notes of mine", b"[1", line + b"\0\0"):
        path.write_bytes(foreign)
        with pytest.raises(InputError, match=r"choices\.jsonl, line \d is no choice"):
            Journal(path)
        assert path.read_bytes() == foreign


def test_what_others_write_is_never_cut_off(tmp_path):
    path, images = tmp_path / "choices.jsonl", (tmp_path / "0.png", tmp_path / "1.png")
    with Journal(path) as journal:
        journal.append("a", images, (1, 2))
        with pytest.raises(OutputError, match=r"choices\.jsonl is being written by"):
            Journal(path)
        line = path.read_bytes()
        path.write_bytes(line * 3)  # by hand
        for change in (journal.undo, lambda: journal.append("b", images, (1, 2))):
            with pytest.raises(OutputError, match=r"choices\.jsonl was changed by another program"):
                change()
        assert path.read_bytes() == line * 3
        assert len(journal.records) == 1
        path.write_bytes(b"")
        with pytest.raises(OutputError, match=r"choices\.jsonl was changed by another program"):
            journal.undo()
        assert path.read_bytes() == b""
        path.write_bytes(line * 3)
    with Journal(path) as journal:
        assert len(journal.records) == 3
    assert [each.name for each in tmp_path.iterdir()] == ["choices.jsonl"]


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
    # The disk is full in the middle of a line, as a limit on the size of files makes it.
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 6, limit[1]))
        with pytest.raises(OutputError, match=r"choices\.jsonl cannot be written"):
            journal.append("b", (tmp_path / "0.png", tmp_path / "1.png"), (1, 2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "choices.jsonl").read_bytes() == before
    journal.append("c", (tmp_path / "0.png", tmp_path / "1.png"), (2, 1))
    journal.close()
    assert len(Journal(tmp_path / "choices.jsonl").records) == 2


def test_the_server_bounds_bodies_and_admits_its_own_page_alone(session):
    with running(session) as url, httpx2.Client(base_url=url, timeout=30) as client:
        page = client.get("/")
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert "http" not in page.text.replace("http-equiv", "").split("<script>")[0]
        assert client.get("/image/0").headers["Content-Type"] == "image/webp"
        assert client.get("/image/99").status_code == 404
        assert client.get("/image/../../etc/passwd").status_code in (404, 422)
        images = client.get("/state").json()["question"]["images"]
        body = {"images": images, "ranking": [1, 2]}
        assert (
            client.post(
                "/choose", content=b"x" * 5000, headers={"Content-Type": "application/json"}
            ).status_code
            == 413
        )
        assert client.post("/choose", content=json.dumps(body)).status_code == 415
        assert client.post("/choose", json=body, headers={"Origin": "http://evil.example"}).status_code == 403
        assert client.get("/state", headers={"Host": "evil.example"}).status_code == 403
        assert client.get("/state", headers={"Host": "127.0.0.2:8010"}).status_code == 200
        for site in ("cross-site", "same-site"):
            assert client.get("/image/0", headers={"Sec-Fetch-Site": site}).status_code == 403
            link = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}
            assert client.get("/", headers=link).status_code == 200
            assert client.get("/image/0", headers=link).status_code == 403
        assert client.get("/image/0", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200
        for wrong in (
            [],
            {},
            {**body, "images": [0]},
            {**body, "images": [0, True]},
            {**body, "images": "01"},
            {**body, "ranking": 1},
            {**body, "ranking": [1, 2, 3]},
            {"images": images, "choice": "left"},
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
        for wrong in ({}, {"count": 9}, {"count": "3"}):
            assert client.post("/show", json=wrong).status_code == 422
        assert client.post("/train", json={}).status_code == 422
        assert client.post("/choose", json=body).json()["count"] == 1
        assert client.post("/choose", json=body).status_code == 422  # sent twice
        assert client.get("/docs").status_code == 404


def test_a_slow_answer_keeps_no_other_request_waiting(session, monkeypatch):
    started, go_on = threading.Event(), threading.Event()

    def slow(*_):
        started.set()
        go_on.wait(20)

    monkeypatch.setattr(session, "answer", slow)
    with running(session) as url, httpx2.Client(base_url=url, timeout=5) as client:
        body = {"images": [0, 1], "ranking": [1, 2]}
        answering = threading.Thread(target=lambda: httpx2.post(f"{url}/choose", json=body, timeout=30))
        answering.start()
        assert started.wait(10)
        try:
            assert client.get("/").status_code == 200
        finally:
            go_on.set()
            answering.join()


def test_other_machines_need_the_token(session):
    with running(session, "secret") as url, httpx2.Client(base_url=url, timeout=30) as client:
        assert client.get("/").status_code == 401
        assert client.get("/state?token=wrong").status_code == 401
        assert client.get("/?token=secret").status_code == 200  # sets the cookie
        assert client.get("/state").status_code == 200
        (name,) = client.cookies
        with running(session, "another") as second:  # the browser keeps one jar for all ports of a host
            other = httpx2.get(f"{second}/?token=another").cookies
        assert set(other) != {name}


def test_the_name_of_an_adapter_is_that_of_its_directory(tmp_path):
    assert Saved(tmp_path / "my taste.v1", tmp_path / "choices.jsonl", "loreft").name == "my-taste-v1"


@pytest.fixture
def learning(tmp_path):
    """A session with pictures that differ in red, whose adapter can be trained."""
    table = reds(tmp_path)
    scorer = small_scorer("ImageReward")
    with Journal(tmp_path / "choices.jsonl") as journal:
        train = trainer(scorer, Saved(tmp_path / "my-taste", journal.path, "loreft"), folds=2, epochs=1)
        yield Session(scorer, read_candidates(tmp_path, table), journal, train)


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
        page.wait_for_selector("#cards button")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not faults


def chosen(page, count: int) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#count")).to_have_text(re.compile(rf"^{count} chosen"), timeout=30_000)


def test_a_person_chooses_by_mouse_and_keyboard_undoes_and_teaches(
    open_page, learning, tmp_path, monkeypatch
):
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
        assert "the scorer's scores of these are closest" in page.locator("#rule").inner_text()
        assert page.locator("#shown").is_hidden()  # every prompt has two images
        question = page.locator("#prompt").inner_text()
        page.click("#train")
        page.wait_for_selector("#bars:not([hidden])", timeout=120_000)
        assert page.locator("#prompt").inner_text() == question
        verdict = page.locator("#verdict").inner_text()
        assert "From 6 choices, it became no better than the scorer as it was, and was dropped." in verdict
        assert "stays in use" not in verdict
        assert page.locator("#bars meter").count() == 2
        assert not (tmp_path / "my-taste").exists()
        assert page.locator("#since").inner_text().startswith("Of 6 preferences, the scorer foresaw ")
        say_better(monkeypatch, True)
        page.click("#train")
        page.wait_for_selector("#verdict:has-text('It has learned from 6')", timeout=120_000)
        page.keyboard.press("ArrowLeft")
        chosen(page, 7)
        assert page.locator("#since").inner_text().startswith("Of 1 preference that it has not learned, ")
        assert (
            "4 adapters, taught by parts of your choices, disagree most" in page.locator("#rule").inner_text()
        )
        page.focus("#tie")
        page.keyboard.press("Enter")  # presses the button once, and chooses nothing else
        chosen(page, 8)
        assert last_ranking(tmp_path) == [1, 1]
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
            while page.locator("#left").count():
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


def middle(page, place: int) -> tuple[float, float]:
    """The middle of the card that is shown at a place, from 1."""
    box = page.locator(f"#cards button:has(b:text-is('{place}'))").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def shown_order(page) -> list[str]:
    """The cards' names, "image N", by their places."""
    labels = page.locator("#cards button").evaluate_all("each => each.map(card => card.ariaLabel)")
    return [label.split(",")[0] for label in sorted(labels, key=lambda label: label.split("place ")[1])]


def last_ranking(tmp_path) -> list[int]:
    return json.loads((tmp_path / "choices.jsonl").read_text().splitlines()[-1])["ranking"]


def test_four_images_are_dragged_tapped_and_moved_by_keys_into_an_order(open_page, session, tmp_path):
    with running(session) as url:
        page = open_page(url)
        page.click("#shown button:text-is('4')")
        page.wait_for_selector("#cards button:nth-child(4)")
        assert shown_order(page) == ["image 1", "image 2", "image 3", "image 4"]
        for step in ("down", "move", "up"):  # the third image before the first
            if step == "move":
                x, y = middle(page, 1)
                page.mouse.move(x + 30, y, steps=8)
                page.mouse.move(x, y, steps=2)
            else:
                page.mouse.move(*middle(page, 3)) if step == "down" else None
                getattr(page.mouse, step)()
        assert shown_order(page) == ["image 3", "image 1", "image 2", "image 4"]
        page.click("#keep")
        chosen(page, 1)
        assert last_ranking(tmp_path) == [2, 3, 1, 4]
        page.click("#cards button:nth-child(4)")  # the best, then the next
        page.click("#cards button:nth-child(2)")
        assert shown_order(page) == ["image 4", "image 2", "image 1", "image 3"]
        page.click("#cards button:nth-child(4)")  # taken back
        assert shown_order(page)[0] == "image 2"
        page.locator("#cards button:nth-child(1)").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        before = shown_order(page)
        page.keyboard.press("Enter")
        chosen(page, 2)
        assert last_ranking(tmp_path) == [before.index(f"image {card}") + 1 for card in (1, 2, 3, 4)]
        assert page.locator("#prompt").inner_text() == "All pairs are chosen."
        page.keyboard.press("u")
        chosen(page, 1)
        assert page.locator("#rule").inner_text() == "Asked again."
        page.keyboard.press("ArrowDown")
        chosen(page, 2)
        assert last_ranking(tmp_path) == [1, 1, 1, 1]


def test_enter_presses_the_button_that_has_the_focus(open_page, session, tmp_path):
    session.show(4)
    with running(session) as url:
        page = open_page(url)
        page.focus("#shown button:text-is('3')")
        page.keyboard.press("Enter")
        page.wait_for_selector("#cards button:nth-child(4)", state="detached")
        assert page.evaluate("document.activeElement.textContent") == "3"
        chosen(page, 0)
        page.focus("#tie")
        page.keyboard.press("Enter")
        chosen(page, 1)
        assert last_ranking(tmp_path) == [1, 1, 1]
        page.focus("#undo")
        page.keyboard.press("Enter")
        chosen(page, 0)
        page.focus("#keep")
        page.keyboard.press("Enter")
        chosen(page, 1)
        assert last_ranking(tmp_path) == [1, 2, 3]
        page.click("#undo")  # a click leaves no focus behind
        chosen(page, 0)
        page.keyboard.press("Enter")
        chosen(page, 1)
        assert last_ranking(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_four_images_are_dragged_by_touch(open_page, session, scheme, tmp_path):
    session.show(4)
    with running(session) as url:
        phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
        page = open_page(url, **phone, color_scheme=scheme)
        assert_readable(page, scheme)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for name in ("keep", "tie", "undo"):
            box = page.locator(f"#{name}").bounding_box()
            assert box["height"] >= 44
            assert box["y"] + box["height"] <= 844
        touch = page.context.new_cdp_session(page)
        start, end = middle(page, 4), middle(page, 1)

        def send(kind: str, *points) -> None:
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(points)})

        send("touchStart", {"x": start[0], "y": start[1]})
        for part in range(1, 11):
            x, y = (a + (b - a) * part / 10 for a, b in zip(start, end))
            send("touchMove", {"x": x, "y": y})
        page.wait_for_timeout(200)  # the finger rests: no fling, which would take the next tap
        send("touchEnd")
        assert shown_order(page)[0] == "image 4"
        page.tap("#keep")
        chosen(page, 1)
        assert last_ranking(tmp_path)[3] == 1


def test_a_stopped_program_is_said_on_the_page(open_page, session):
    with running(session) as url:
        page = open_page(url)
    page.click("#left")
    page.wait_for_selector("#status.fault")
    assert "does not answer" in page.locator("#status").inner_text()
