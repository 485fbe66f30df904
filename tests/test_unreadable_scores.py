"""A verdict that cannot be read is the trouble of its row alone: in ensembles, commands and the server."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import pictures, small_scorer
from test_cli import run

import imagereward as RM
from benchmarks.lib.serving import base64_of, client, png, serving
from imagereward.errors import NonFiniteScoreError, RemoteError, UnreadableVerdictWarning
from imagereward.scoring.api import PairScorer

pytestmark = pytest.mark.filterwarnings("ignore::imagereward.errors.UnreadableVerdictWarning")


class Writes(PairScorer):
    """A judge of the width of an image, whose verdict on every image of 40 pixels cannot be read."""

    name, may_be_nan = "writes", True

    def score_pairs(self, prompts, images, *, batch_size=None):
        return [math.nan if image.width == 40 else image.width / 100 for image in images]


@pytest.fixture
def clip(scorers):
    return scorers["CLIP"]


def test_an_ensemble_keeps_what_can_be_read(clip):
    images = pictures(3)
    both = RM.ensemble({Writes(): 2.0, clip: 1.0})
    plain = clip.score("a", images)
    expected = [1.28 + plain[0], math.nan, 1.14 + plain[2]]
    assert both.score("a", images) == pytest.approx(expected, rel=1e-5, nan_ok=True)
    parts = both.score_components("a", images)
    assert parts["writes"] == pytest.approx([0.64, math.nan, 0.57], nan_ok=True)
    assert parts[clip.name] == pytest.approx(plain)
    with pytest.raises(NonFiniteScoreError, match="no verdict on 1 of 3 images"):
        both.rank("a", images)
    with pytest.raises(NonFiniteScoreError, match="no verdict on 1 of 3 images"):
        both.best_of("a", images)


def test_damage_in_an_ensemble_is_no_verdict():
    damaged = small_scorer("CLIP")
    with torch.no_grad():
        next(damaged.parameters()).fill_(math.nan)
    with pytest.raises(NonFiniteScoreError, match=r"CLIP gave 1 scores that are not finite.*damaged"):
        RM.ensemble({Writes(): 1.0, damaged: 1.0}).score("a", pictures(1)[0])


def test_the_command_prints_the_scores_of_all_models(monkeypatch, tmp_path, image_paths):
    (tmp_path / "own_writer.py").write_text("from test_unreadable_scores import Writes\nmade = Writes()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    out = run(
        "score", "-m", "own_writer:made", "-m", "ImageReward-tiny", "a", *image_paths, "--format", "json"
    )
    rows = json.loads(out)
    written = [row["score:writes"] for row in rows]
    assert written[1] is None
    assert all(map(math.isfinite, (written[0], *written[2:])))
    assert all(math.isfinite(row["score:ImageReward-tiny"]) for row in rows)


def test_the_server_answers_all_other_rows(clip):
    images = pictures(3)
    sent = {"images": [base64_of(png(image)) for image in images]}
    with serving({"writes": Writes(), "both": RM.ensemble({Writes(): 1.0, clip: 1.0})}) as url:
        asked = client(url)
        answer = asked.post("/v1/score", json={"prompts": ["a"] * 3, **sent}).json()
        assert answer["scores"] == pytest.approx([0.64, None, 0.57])
        assert list(answer["errors"]) == ["1"]
        assert "no verdict that can be read" in answer["errors"]["1"]
        table = asked.post("/v1/matrix", json={"prompts": ["a", "b"], **sent}).json()
        assert [row[1] for row in table["scores"]] == [None, None]
        refused = asked.post("/v1/rank", json={"prompt": "a", **sent, "model": "both"})
        assert refused.status_code == 422
        assert list(refused.json()["images"]) == ["1"]
        one = asked.post("/score", json={"prompt": "a", "image_base64": sent["images"][1]})
        assert one.status_code == 422
        assert "no verdict" in one.json()["detail"]
        remote = RM.connect(url)
        with pytest.raises(RemoteError, match="no verdict that can be read") as caught:
            remote.score("a", images)
        assert list(caught.value.causes) == [1]
        np.testing.assert_allclose(caught.value.scores, [0.64, math.nan, 0.57], rtol=1e-5)
        assert caught.value.permanent
        rewards = remote.pixel_rewards(torch.rand(2, 3, 8, 8), ["a", "a"])
        assert rewards.tolist() == pytest.approx([0.08, 0.08])


def test_a_judge_that_writes_is_served_with_its_other_verdicts(tiny_vlm, monkeypatch):
    from imagereward.models.vlm.writing import Writer

    texts = [["Alignment: 5\nCoherence: 3\nAesthetics: 1"], ["I like it"]]
    monkeypatch.setattr(Writer, "write", lambda self, states, rows, images: texts[: len(rows)])
    judge = RM.load(f"judge:{tiny_vlm()}", "cpu")
    with pytest.warns(UnreadableVerdictWarning):
        assert RM.ensemble({judge: 1.0}).score("a", pictures(2)) == pytest.approx(
            [0.625, math.nan], nan_ok=True
        )
