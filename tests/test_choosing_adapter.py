"""The adapter of the page that collects choices: what is replaced, gone on with, or not trained at all."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from choosing_pages import reds, running, say_better
from conftest import small_scorer

import imagereward as RM
from benchmarks.lib.serving import wait_until
from imagereward.choosing import learning
from imagereward.choosing import run as running_page
from imagereward.choosing.candidates import read_candidates
from imagereward.choosing.journal import Journal
from imagereward.choosing.learning import trainer, why_not
from imagereward.choosing.saved import MARK_FILE, Saved
from imagereward.choosing.session import Session, Trained
from imagereward.errors import InputError
from imagereward.scoring.api import PairScorer


class Judge(PairScorer):
    """A scorer without a model in this process."""

    name = "a judge"

    def score_pairs(self, prompts, images, *, batch_size=None):
        return [0.0] * len(images)


def opened(folder, scorer, seen, **options):
    """Run the page on a folder of `reds` as the command does; `seen(session)` stands for the server."""

    def server(app, host, port):
        config = SimpleNamespace(log_level="", configure_logging=lambda: None)
        return SimpleNamespace(config=config, run=lambda: seen(app))

    def create_app(session, token):
        return session

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running_page, "server", server)
        patch.setattr(running_page, "create_app", create_app)
        options = {"adapter": folder / "my-taste", "kind": "loreft", **options}
        choices = options.pop("choices", folder / "choices.jsonl")
        running_page.run(
            lambda: scorer,
            folder,
            folder / "prompts.jsonl",
            choices,
            options["adapter"],
            kind=options["kind"],
            host="127.0.0.1",
            port=0,
            seed=0,
            shown=2,
        )


def unloaded(*_):
    raise AssertionError("nothing is loaded or served")


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A folder whose page trained an adapter on four of five choices, and the session of the page."""
    folder, scorer = tmp_path_factory.mktemp("taught"), small_scorer("ImageReward")
    table = reds(folder)
    with Journal(folder / "choices.jsonl") as journal, pytest.MonkeyPatch.context() as patch:
        say_better(patch, True)
        patch.setattr(learning, "REFITS", 2)
        train = trainer(scorer, Saved(folder / "my-taste", journal.path, "loreft"), folds=2, epochs=1)
        session = Session(scorer, read_candidates(folder, table), journal, train)
        for _ in range(4):
            session.answer(session.state()["question"]["images"], (1, 2))
        session.train()
        wait_until(lambda: not session.training)
        assert not session.fault
        session.answer(session.state()["question"]["images"], (1, 2))
    return SimpleNamespace(folder=folder, session=session)


@pytest.fixture
def folder(taught, tmp_path):
    """A copy of the folder."""
    return shutil.copytree(taught.folder, tmp_path / "copy")


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def plain(state):
    """The state as the page gets it."""
    return json.loads(json.dumps(state))


def test_a_page_that_is_opened_again_goes_on_with_its_adapter(taught, folder):
    scorer = small_scorer("ImageReward")
    before, states = scorer.score("a cat", folder / "0-0.png"), []
    opened(folder, scorer, lambda session: states.append(plain(session.state())))
    kept, then = ("count", "used", "since", "can_train"), plain(taught.session.state())
    assert {key: states[0][key] for key in kept} == {key: then[key] for key in kept}
    assert states[0]["trained"] == states[0]["used"]
    assert states[0]["used"]["choices"] == 4
    assert states[0]["since"]["count"] == 1  # the choice that it has not learned
    assert states[0]["refits"] == 0
    assert scorer.score("a cat", folder / "0-0.png") == before
    assert not len(scorer.adapters)


def test_an_adapter_that_is_no_better_leaves_the_saved_one(taught, monkeypatch):
    saved, before = files(taught.folder / "my-taste"), taught.session.state()
    say_better(monkeypatch, False)
    taught.session.train()
    wait_until(lambda: not taught.session.training)
    state = taught.session.state()
    assert not state["fault"]
    assert (state["trained"]["choices"], state["trained"]["ahead"]) == (5, False)
    assert (state["used"], state["refits"]) == (before["used"], 2)
    assert files(taught.folder / "my-taste") == saved


def test_only_the_adapter_of_this_page_is_replaced(folder):
    scorer = small_scorer("ImageReward")
    free = r"it stays as it is: choose another, such as .*my-taste-2$"
    for options, why in (
        ({"kind": "direft"}, r"holds an adapter of kind loreft, and --kind is direft"),
        ({"choices": folder / "others.jsonl"}, r"holds the adapter of other choices, .*choices\.jsonl"),
    ):
        with pytest.raises(InputError, match=f"--adapter .*my-taste {why}; {free}"):
            opened(folder, scorer, unloaded, **options)
    other = small_scorer("ImageReward", seed=1)
    with pytest.raises(InputError, match=f"cannot be gone on with: .*the weights of .* are others.*{free}"):
        opened(folder, other, unloaded)
    (folder / "my-taste/summary.json").write_text("{}")
    with pytest.raises(InputError, match=f"my-taste cannot be gone on with: .*{free}"):
        opened(folder, scorer, unloaded)
    (folder / "my-taste" / MARK_FILE).write_text("[]")
    with pytest.raises(InputError, match=rf"has a {MARK_FILE} that cannot be read; {free}"):
        opened(folder, scorer, unloaded)
    (folder / "my-taste" / MARK_FILE).unlink()  # as of `imagereward tune`
    with pytest.raises(InputError, match=rf"holds something that `imagereward choose` did not make; {free}"):
        opened(folder, scorer, unloaded)
    there = files(folder / "my-taste")
    with pytest.raises(InputError, match="did not make"):  # one that came there while the page was open
        Saved(folder / "my-taste", folder / "choices.jsonl", "loreft").save(None, None, [])
    assert files(folder / "my-taste") == there


def test_the_adapters_path_is_expanded_and_no_file(tmp_path, monkeypatch):
    reds(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "taste").write_text("")
    with pytest.raises(InputError, match=r"--adapter .*taste is a file; expected a directory"):
        opened(tmp_path, None, unloaded, adapter=Path("~/taste"))


def test_a_page_that_cannot_train_says_why_from_the_start(tmp_path, capsys, monkeypatch):
    reds(tmp_path)
    scorer = small_scorer("ImageReward")
    saved = Saved(tmp_path / "my-taste", tmp_path / "choices.jsonl", "loreft")
    assert why_not(scorer, saved) == ""
    assert not len(scorer.adapters)
    states = []

    def seen(session):
        states.append(session.state())
        with pytest.raises(InputError, match="this page only collects choices: "):
            session.train()

    opened(tmp_path, Judge(), seen)
    opened(tmp_path, RM.ensemble({scorer: 1.0}), seen)
    monkeypatch.setitem(sys.modules, "imagereward.tuning.personal.bootstrap", None)
    opened(tmp_path, scorer, seen)
    reasons = [state["no_training"] for state in states]
    assert "a judge is no model in this process" in reasons[0]
    assert "cannot have an adapter" in reasons[1]
    assert "learning from choices needs the extra 'train'" in reasons[2]
    assert not any(state["can_train"] for state in states)
    printed = capsys.readouterr().err
    assert all(f"choices are only collected: {reason}" in printed for reason in reasons)


def test_the_page_says_that_nothing_is_known_of_new_images_where_images_recur(browser, tmp_path):
    candidates, share = read_candidates(tmp_path, reds(tmp_path)), (0.5, 0.4, 0.6)
    shares = dict.fromkeys(("base", "adapted", "gain"), share)
    summary = SimpleNamespace(choices=9, pairs=9, ahead=True, recurring=True, **shares)
    with Journal(tmp_path / "choices.jsonl") as journal:
        session = Session(Judge(), candidates, journal, lambda records, _: Trained(summary, records, [], []))
        session.train()
        wait_until(lambda: not session.training)
        with running(session) as url:
            page = browser.new_page()
            page.goto(url)
            page.wait_for_selector("#bars:not([hidden])")
            said = page.locator("#verdict").inner_text()
            assert said.startswith("It has learned from 9 choices")
            assert "Images recur in them, so how it judges new images is not known" in said
            assert session.state()["used"]["choices"] == 9
            page.close()


def test_the_page_says_that_choices_are_only_collected(browser, tmp_path):
    candidates = read_candidates(tmp_path, reds(tmp_path))
    with Journal(tmp_path / "choices.jsonl") as journal:
        session = Session(Judge(), candidates, journal, no_training="of <b>this</b>")
        with running(session) as url:
            page = browser.new_page()
            page.goto(url)
            page.wait_for_selector("#cards button")
            said = page.locator("#learning").inner_text()
            assert said.strip() == "Choices are only collected here: of <b>this</b>"
            assert page.locator("#train").is_hidden()
            assert "of <b>this</b>" in httpx2.post(f"{url}/train", json={}).json()["detail"]
            page.close()
