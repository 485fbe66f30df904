"""Vision-language models as scorers: every architecture and read-out against transformers' own code."""

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import pictures
from plain_vlm import PlainVLM

import imagereward as RM
from benchmarks.lib.tiny_vlms import ARCHITECTURES
from imagereward.models.vlm.asking.templates import TEMPLATES
from imagereward.models.vlm.backbone import Backbone
from imagereward.models.vlm.shared_prefixes import SharedStates, common

PROMPTS = ["a red bicycle", "", "two cats asleep on a green sofa, oil on canvas", "日本の桜 & café"]
SHOWS = '{{image}}Does this picture show "{}"? Answer Yes or No.'


@pytest.fixture(scope="module", params=ARCHITECTURES)
def judged(request, tiny_vlm):
    """(judge, plain model, pictures of several sizes, probabilities by the plain model [M, N])."""
    directory = tiny_vlm(request.param)
    plain, images = PlainVLM(directory), pictures(4)
    expected = [
        [plain.probability("Yes", SHOWS.format(prompt), image) for image in images] for prompt in PROMPTS
    ]
    return RM.load(f"vqa:{directory}", "cpu"), plain, images, np.array(expected)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_probabilities_equal_those_of_plain_transformers(judged, share, batch_size, monkeypatch):
    judge, _, images, expected = judged
    monkeypatch.setattr(judge.states, "share", share)
    scores = judge.score_matrix(PROMPTS, images, batch_size=batch_size)
    np.testing.assert_allclose(scores, expected, rtol=2e-5, atol=1e-8)
    assert len(np.unique(scores.round(9))) == scores.size  # every pair counts


def test_every_verb_gives_these_probabilities(judged):
    judge, _, images, expected = judged
    prompt, scores = PROMPTS[2], expected[2]
    close = {"rel": 2e-5, "abs": 1e-8}
    assert judge.score(prompt, images[1]) == pytest.approx(scores[1], **close)
    assert judge.rank(prompt, images).rewards == pytest.approx(scores.tolist(), **close)
    assert judge.best_of(prompt, images, 2) == np.argsort(-scores)[:2].tolist()
    assert judge.score_pairs(PROMPTS, images) == pytest.approx(np.diag(expected).tolist(), **close)
    places, rewards = judge.inference_rank(prompt, images)
    assert rewards == pytest.approx(scores.tolist(), **close)
    assert sorted(places) == [1, 2, 3, 4]


def test_a_wide_and_a_tall_image_of_equally_many_tokens_have_positions_of_their_own(judged):
    judge, plain, images, _ = judged
    wide = images[0].resize((112, 56))
    both = [wide, wide.transpose(PIL.Image.Transpose.ROTATE_90)]
    expected = [plain.probability("Yes", SHOWS.format(PROMPTS[0]), image) for image in both]
    assert judge.score(PROMPTS[0], both) == pytest.approx(expected, rel=2e-5)


def test_parts_chosen_by_memory_change_nothing(judged, monkeypatch):
    judge, _, images, expected = judged
    monkeypatch.setattr(SharedStates, "tokens_at_once", lambda self: 1)  # every row alone
    np.testing.assert_allclose(judge.score_matrix(PROMPTS, images), expected, rtol=2e-5, atol=1e-8)


def test_an_image_and_a_common_beginning_pass_the_model_once(judged, monkeypatch):
    judge, _, images, _ = judged
    passed, encoded = [], []
    extend, encode = Backbone.extend, Backbone.encode

    def counting(self, state, blocks, *rest, **options):
        passed.extend(len(block.ids) for block in blocks)
        return extend(self, state, blocks, *rest, **options)

    def noting(self, batch):
        found = encode(self, batch)
        encoded.extend(found)
        return found

    monkeypatch.setattr(Backbone, "extend", counting)
    monkeypatch.setattr(Backbone, "encode", noting)
    judge.states.forget()
    judge.score_matrix(PROMPTS, images)
    assert len(encoded) == len(images)
    rows = [
        [judge.turns.row(prompt, encoded, [place]).ids for prompt in PROMPTS] for place in range(len(images))
    ]
    start = common(rows[0][0], rows[1][0])
    own = sum(len(row) for each in rows for row in each)
    shared = [min(common(each[0], row) for row in each[1:]) for each in rows]
    # Once the beginning, once every image's part, and what is each row's own.
    assert sum(passed) <= start + sum(shared) + own - len(PROMPTS) * sum(shared)
    passed.clear()
    judge.score_matrix(PROMPTS, images)
    assert sum(passed) <= sum(shared) + own - len(PROMPTS) * sum(shared)  # the beginning is kept


def test_texts_are_those_that_transformers_generates(judged, tiny_vlm):
    _, plain, images, _ = judged
    writer = RM.load(f"judge:{plain.model.name_or_path}", "cpu", new_tokens=5)
    prompts = PROMPTS[:3]
    texts = writer.written_texts(prompts, images[:3])
    rubric = TEMPLATES["rubric"].text
    expected = [[plain.written(rubric.replace("{prompt}", p), i, 5)] for p, i in zip(prompts, images)]
    assert texts == expected


def test_gradients_reach_the_pixels_and_are_those_of_finite_differences(judged):
    judge, _, _, _ = judged
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, 24, 40, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    double = RM.load(f"vqa:{judge.backbone.model.name_or_path}", "cpu", dtype="float64")
    pixels.requires_grad_()
    double.reward(pixels, PROMPTS[:2]).sum().backward()
    direction = torch.randn(pixels.shape, generator=generator, dtype=torch.float64)

    def at(step):
        with torch.no_grad():
            return double.reward(pixels + step * direction, PROMPTS[:2]).sum().item()

    # Of fourth order, with a step that outweighs the rounding to float32 in transformers' norms.
    step = 1e-3
    expected = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
    slope = (pixels.grad * direction).sum()
    assert slope.abs() > 1e-9
    assert slope.item() == pytest.approx(expected, rel=3e-3)
