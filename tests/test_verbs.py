"""Every verb on every scorer: what it returns, that all verbs agree, and what bad input gets."""

import copy
import re
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import PROMPTS, SIZE, pictures, small_scorer
from torchvision.transforms.functional import to_tensor

import imagereward as RM
from imagereward import errors

# Half precision aside, different batch compositions may round differently in the last bits.
CLOSE = {"atol": 2e-5, "rtol": 0}


def test_one_image_gives_a_float_and_a_list_gives_a_list(scorer):
    (picture,) = pictures(1)
    alone = scorer.score(PROMPTS[0], picture)
    assert isinstance(alone, float)
    assert scorer.score(PROMPTS[0], [picture]) == [alone]
    assert len(scorer.score(PROMPTS[0], pictures(3))) == 3


def test_inference_rank_returns_places_and_rewards_in_list_order(scorer):
    images = pictures(5)
    ranking, rewards = scorer.inference_rank(PROMPTS[0], images)
    assert rewards == scorer.score(PROMPTS[0], images)
    assert sorted(ranking) == [1, 2, 3, 4, 5]
    assert [rewards[ranking.index(place)] for place in range(1, 6)] == sorted(rewards, reverse=True)


def test_inference_rank_of_one_image_returns_bare_numbers(scorer):
    ranking, reward = scorer.inference_rank(PROMPTS[0], pictures(1))
    assert ranking == 1
    assert isinstance(reward, float)


def test_rank_orders_images_and_prints_a_line_for_each(scorer):
    images = pictures(4)
    ranking = scorer.rank(PROMPTS[0], images)
    assert ranking.rewards == scorer.score(PROMPTS[0], images)
    assert [ranking.rewards[index] for index in ranking.order] == sorted(ranking.rewards, reverse=True)
    assert ranking.best is images[ranking.order[0]]
    assert len(str(ranking).splitlines()) == 2 + len(ranking) == 6


def test_best_of_returns_the_first_k_of_the_ranking(scorer):
    images = pictures(5)
    assert scorer.best_of(PROMPTS[0], images, 3) == scorer.rank(PROMPTS[0], images).order[:3]


def test_pairs_are_the_diagonal_of_the_matrix(scorer):
    images = pictures(len(PROMPTS))
    matrix = scorer.score_matrix(PROMPTS, images)
    assert matrix.shape == (len(PROMPTS), len(images))
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(scorer.score_pairs(PROMPTS, images), np.diag(matrix), **CLOSE)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_batch_size_changes_no_score(scorer, batch_size):
    images = pictures(7)
    expected = np.stack([scorer.score(prompt, images) for prompt in PROMPTS])
    np.testing.assert_allclose(scorer.score_matrix(PROMPTS, images, batch_size=batch_size), expected, **CLOSE)


def test_a_matrix_in_many_parts_equals_the_matrix_in_one(scorer, monkeypatch):
    images, prompts = pictures(5), [f"{prompt} {n}" for n in range(3) for prompt in PROMPTS]
    whole = scorer.score_matrix(prompts, images)
    monkeypatch.setattr("imagereward.scoring.scorer.Scorer.pairs_per_forward", 7)
    np.testing.assert_allclose(scorer.score_matrix(prompts, images, batch_size=3), whole, **CLOSE)


def test_irregular_pairs_in_many_parts_equal_single_scores(scorer, monkeypatch):
    images = pictures(3)
    which = [(0, 0), (1, 0), (2, 0), (3, 0), (1, 2), (0, 1), (1, 2), (3, 2)]
    expected = [scorer.score(PROMPTS[m], images[n]) for m, n in which]
    monkeypatch.setattr("imagereward.scoring.scorer.Scorer.pairs_per_forward", 3)
    pairs = scorer.score_pairs([PROMPTS[m] for m, _ in which], [images[n] for _, n in which], batch_size=2)
    np.testing.assert_allclose(pairs, expected, **CLOSE)


def test_each_image_is_encoded_once_however_often_it_appears(scorers, image_paths):
    scorer, encoded = scorers["ImageReward"], []
    handle = scorer.blip.visual_encoder.register_forward_pre_hook(
        lambda _, args: encoded.append(len(args[0]))
    )
    scorer.score_matrix(PROMPTS, image_paths)
    scorer.score_pairs(PROMPTS[:3], [image_paths[0]] * 3)
    handle.remove()
    assert sum(encoded) == len(image_paths) + 1


def test_reward_agrees_with_score_on_the_same_image_saved_as_png(scorer):
    images = [picture.resize((SIZE, SIZE)) for picture in pictures(4)]
    pixels = torch.stack([to_tensor(image) for image in images])
    rewards = scorer.reward(pixels, PROMPTS)
    assert rewards.dtype == torch.float32
    np.testing.assert_allclose(rewards, scorer.score_pairs(PROMPTS, images), **CLOSE)


def test_reward_agrees_with_score_up_to_rounding_where_the_image_is_resized(scorer):
    images = [picture.resize((111, 77)) for picture in pictures(4)]
    pixels = torch.stack([to_tensor(image) for image in images])
    scores = np.array(scorer.score_pairs(PROMPTS, images))
    scale = np.abs(scorer.score_matrix(PROMPTS, pictures(4)) - scores).mean()
    assert np.abs(scorer.reward(pixels, PROMPTS).numpy() - scores).max() < 0.05 * scale


def test_reward_in_small_batches_equals_reward_in_one(scorer):
    pixels = torch.rand(5, 3, 40, 56)
    prompts = [*PROMPTS, "one more"]
    np.testing.assert_allclose(
        scorer.reward(pixels, prompts, batch_size=2), scorer.reward(pixels, prompts), **CLOSE
    )
    np.testing.assert_allclose(
        scorer.reward(pixels, "same for all"), scorer.reward(pixels, ["same for all"] * 5), **CLOSE
    )


@pytest.mark.parametrize("kind", ["ImageReward", "BLIP", "CLIP", "Aesthetic", "HPS"])
def test_the_gradient_of_reward_equals_a_finite_difference(kind):
    scorer = small_scorer(kind, dtype="float64")
    generator = torch.Generator().manual_seed(0)
    pixels = (0.3 + 0.4 * torch.rand(1, 3, 40, 48, generator=generator).double()).requires_grad_()
    scorer.reward(pixels, PROMPTS[0]).sum().backward()
    direction = torch.randn(pixels.shape, generator=generator).double()
    step = 1e-5
    with torch.no_grad():
        ahead, behind = (scorer.reward(pixels + s * step * direction, PROMPTS[0]) for s in (1, -1))
    slope = ((ahead - behind) / (2 * step)).item()
    assert abs(slope) > 1e-5
    assert (pixels.grad * direction).sum().item() == pytest.approx(slope, rel=1e-6)
    assert all(parameter.grad is None for parameter in scorer.parameters())


def test_gradient_checkpointing_changes_no_gradient(scorer):
    pixels = torch.rand(2, 3, SIZE, SIZE)
    gradients = []
    for enable in (False, True):
        scorer.set_grad_checkpointing(enable)
        leaf = pixels.clone().requires_grad_()
        scorer.reward(leaf, PROMPTS[:2]).sum().backward()
        gradients.append(leaf.grad)
    scorer.set_grad_checkpointing(False)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["ImageReward", "BLIP"])
def test_checkpointing_works_for_a_model_left_in_training_mode(kind):
    scorer = small_scorer(kind).requires_grad_(True)
    pixels = torch.rand(2, 3, SIZE, SIZE)
    expected = torch.autograd.grad(scorer.reward(leaf := pixels.clone().requires_grad_(), "a").sum(), leaf)[0]
    scorer.train().set_grad_checkpointing()
    found = torch.autograd.grad(scorer.reward(leaf := pixels.clone().requires_grad_(), "a").sum(), leaf)[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_scores_stay_float32_under_autocast_and_after_half(scorer):
    pixels = torch.rand(2, 3, SIZE, SIZE)
    expected = scorer.reward(pixels, "a")
    with torch.autocast("cpu", torch.bfloat16):
        near = scorer.reward(pixels, "a")
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, expected, atol=0.1, rtol=0.1)
    halved = copy.deepcopy(scorer).half().reward(pixels, "a")
    assert halved.dtype == torch.float32
    torch.testing.assert_close(halved, expected, atol=0.02, rtol=0.02)


def test_scoring_in_training_mode_uses_no_dropout_and_leaves_the_mode(scorers):
    scorer = scorers["ImageReward"]
    expected = scorer.score(PROMPTS[0], pictures(3))
    scorer.train()
    try:
        assert scorer.score(PROMPTS[0], pictures(3)) == expected
        assert scorer.training
        assert scorer.mlp.layers.training
    finally:
        scorer.eval()


def test_the_folded_head_equals_the_head_layer_by_layer(scorers):
    head = scorers["ImageReward"].mlp
    features = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head(features), head.layers(features), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["ImageReward", "BLIP", "CLIP", "Aesthetic"])
def test_half_precision_scores_stay_near_float32(scorers, kind, dtype):
    exact = scorers[kind].score_matrix(PROMPTS, pictures(3))
    near = small_scorer(kind, dtype=dtype).score_matrix(PROMPTS, pictures(3))
    # Measured in bfloat16: ImageReward 0.022, BLIP 0.0081, CLIP 0.0041, Aesthetic 0.0011.
    assert 0 < np.abs(near - exact).max() < (0.06 if kind == "ImageReward" else 0.015)


def test_equal_scores_share_a_rank():
    from imagereward.scoring.ranking import ranks_of

    assert ranks_of([0.5, 2.0, 0.5, -1.0, 2.0]) == [3, 1, 3, 5, 1]
    picture = pictures(1)[0]
    assert small_scorer("CLIP").rank("a", [picture, picture]).ranks == [1, 1]


def test_a_notebook_shows_thumbnails_in_rank_order_with_text_escaped(scorers, image_paths):
    ranking = scorers["CLIP"].rank("<b>bold</b> & co", image_paths)
    page = ranking._repr_html_()
    assert page.count('src="data:image/png;base64,') == 5
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold" in page
    names = [f"{index}.png" for index in ranking.order]
    assert sorted(names, key=page.index) == names


def test_a_notebook_shows_the_components_of_an_ensemble(scorers, image_paths):
    both = RM.ensemble({small_scorer("ImageReward"): 1.0, small_scorer("HPS"): 0.5})
    ranking = both.rank("a red bicycle", image_paths)
    figures = re.findall(r"<figure.*?</figure>", ranking._repr_html_())
    assert len(figures) == len(image_paths)
    for index, figure in zip(ranking.order, figures):
        for name, values in ranking.components.items():
            assert f"{name} {values[index]:.3f}" in figure
    assert "HPS" not in scorers["ImageReward"].rank("a red bicycle", image_paths)._repr_html_()


def test_a_notebook_shows_a_ranking_whose_file_has_gone(scorers, image_paths):
    ranking = scorers["CLIP"].rank("a", image_paths)
    Path(image_paths[0]).unlink()
    page = ranking._repr_html_()
    assert page.count("<img ") == len(image_paths) - 1
    assert page.count("not found") == 1


@pytest.mark.parametrize(
    ("kind", "dtype", "shown"),
    [
        ("ImageReward", None, "<ImageReward: ImageReward, cpu, float32, 32 x 32 pixels, 35 tokens>"),
        ("HPS", "bfloat16", "<HPS: CLIP, cpu, bfloat16, 32 x 32 pixels, 77 tokens>"),
        ("BLIP", "float64", "<BLIP: BLIP, cpu, float64, 32 x 32 pixels, 35 tokens>"),
    ],
)
def test_a_scorer_shows_itself_in_one_line(kind, dtype, shown):
    assert repr(small_scorer(kind, dtype=dtype)) == shown


def test_an_ensemble_shows_itself_in_one_line(scorers):
    shown = repr(scorers["Ensemble"])
    assert shown == "<1 ImageReward + 0.5 HPS: Ensemble, cpu, float32, 32 x 32 pixels>"


def test_a_scorer_without_weights_shows_itself(scorers):
    class Plain(RM.Scorer):
        pass

    assert repr(Plain(scorers["BLIP"].config)) == "<BLIP: BLIP, 32 x 32 pixels, 35 tokens>"


def test_a_truncated_prompt_is_said_once_with_the_count_and_as_data(scorers, image_paths):
    long = "very " * 50 + "long"
    with pytest.warns(errors.PromptTruncatedWarning, match="1 of 2 prompts"):
        scorers["ImageReward"].score_matrix([long, "short"], image_paths)
    with pytest.warns(errors.PromptTruncatedWarning) as caught:
        ranking = scorers["ImageReward"].rank(long, image_paths)
    assert len(caught) == 1
    assert ranking.truncated
    assert ranking.tokens == 53  # 51 words, [CLS] and [SEP]
    assert "53 tokens" in str(ranking)


@pytest.mark.parametrize("kind", ["CLIP", "BLIP", "Ensemble"])
def test_truncation_is_said_by_every_scorer_that_reads_prompts(scorers, kind):
    long = "very " * 80 + "long"
    with pytest.warns(errors.PromptTruncatedWarning) as caught:
        assert scorers[kind].rank(long, pictures(1)).truncated
    assert caught[0].filename == __file__
    with pytest.warns(errors.PromptTruncatedWarning) as caught:
        scorers[kind].reward(torch.rand(1, 3, 32, 32), long)
    assert caught[0].filename == __file__


def test_a_truncation_says_how_much_is_read_how_long_the_prompt_is_and_what_to_do(scorers):
    long = "very " * 80 + "long"  # 81 words, and a token at either end
    for call in (
        lambda scorer: scorer.score(long, pictures(1)),
        lambda scorer: scorer.reward(torch.rand(1, 3, 32, 32), long),
        lambda scorer: scorer.score_matrix(["short", long], pictures(1)),
    ):
        for kind, read in {
            "ImageReward": "the 35 tokens that ImageReward reads;",
            "CLIP": "the 77 tokens that CLIP reads;",
            "Ensemble": "the 35 tokens that ImageReward reads and the 77 tokens that HPS reads;",
        }.items():
            with pytest.warns(errors.PromptTruncatedWarning) as caught:
                call(scorers[kind])
            (message,) = (str(each.message) for each in caught)
            assert f"longer than {read}" in message
            assert "the longest has 83 tokens" in message
            assert "max_length=" in message


def test_the_limits_of_nested_ensembles_are_those_of_their_parts():
    inner = RM.ensemble({small_scorer("BLIP"): 1.0, small_scorer("Aesthetic"): 1.0})
    outer = RM.ensemble({inner: 1.0, small_scorer("CLIP"): 1.0})
    assert outer.token_limits() == {"BLIP": 35, "CLIP": 77}


def test_a_scorer_that_ignores_prompts_never_truncates(scorers):
    assert not scorers["Aesthetic"].rank("very " * 80, pictures(1)).truncated


def test_score_gard_and_score_grad_reach_the_pixels(scorers):
    scorer = scorers["ImageReward"]
    text = scorer.blip.tokenizer(
        ["a red bicycle"] * 2, padding="max_length", max_length=35, return_tensors="pt"
    )
    images = torch.stack([scorer.preprocess(picture) for picture in pictures(2)]).requires_grad_()
    rewards = scorer.score_gard(text.input_ids, text.attention_mask, images)
    assert rewards.shape == (2, 1)
    expected = scorer.score("a red bicycle", pictures(2))
    np.testing.assert_allclose(rewards[:, 0].detach(), expected, **CLOSE)
    rewards.sum().backward()
    assert images.grad.abs().amax((1, 2, 3)).min() > 0
    assert torch.equal(scorer.score_grad(text.input_ids, text.attention_mask, images), rewards)


def test_what_lies_beyond_the_limit_changes_no_score(scorers, image_paths):
    words = " ".join(["word"] * 33)  # with [CLS] and [SEP], 35 tokens
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = [scorers["ImageReward"].score(words + tail, image_paths) for tail in ("", " more", " else")]
    assert scores[0] == scores[1] == scores[2]


# One image or several.

SQUARE = pictures(1)[0].resize((40, 40))
ONE = {
    "PIL image": SQUARE,
    "tensor of three dimensions": to_tensor(SQUARE),
    "array of three dimensions": np.asarray(SQUARE),
    "grey array of two dimensions": np.asarray(SQUARE.convert("L")),
}
SEVERAL = {
    "list": [SQUARE] * 3,
    "tuple": (SQUARE, SQUARE, SQUARE),
    "tensor of four dimensions": torch.stack([to_tensor(SQUARE)] * 3),
    "array of four dimensions": np.stack([np.asarray(SQUARE)] * 3),
}


@pytest.mark.parametrize("name", ONE)
def test_a_single_image_is_one_to_every_verb(scorers, name):
    scorer, image = scorers["CLIP"], ONE[name]
    score = scorer.score("a", image)
    assert isinstance(score, float)
    assert scorer.rank("a", image).rewards == [score]
    assert scorer.best_of("a", image) == [0]
    assert scorer.inference_rank("a", image) == (1, score)
    assert scorer.score_pairs(["a"], image) == [score]
    assert scorer.score_matrix(["a", "b"], image).shape == (2, 1)


@pytest.mark.parametrize("name", SEVERAL)
def test_several_images_are_three_to_every_verb(scorers, name):
    scorer, images = scorers["CLIP"], SEVERAL[name]
    scores = scorer.score("a", images)
    assert scores == pytest.approx([scorer.score("a", SQUARE)] * 3, abs=2e-5)
    assert len(scorer.rank("a", images)) == 3
    assert len(scorer.best_of("a", images, k=3)) == 3
    assert len(scorer.inference_rank("a", images)[1]) == 3
    assert len(scorer.score_pairs(["a", "b", "c"], images)) == 3
    assert scorer.score_matrix(["a", "b"], images).shape == (2, 3)


def test_a_batch_of_one_is_several(scorers):
    for images in ([SQUARE], to_tensor(SQUARE)[None], np.asarray(SQUARE)[None]):
        assert isinstance(scorers["CLIP"].score("a", images), list)


def test_a_batch_inside_a_list_is_refused_by_its_place(scorers):
    with pytest.raises(errors.InputError, match=r"images\[1\] has shape \(1, 3, 40, 40\)"):
        scorers["CLIP"].score("a", [SQUARE, to_tensor(SQUARE)[None]])


# Bad input.


def test_a_missing_path_is_named_before_any_image_is_scored(scorer, image_paths):
    calls = []
    handle = next(scorer.children()).register_forward_hook(lambda *_: calls.append(1))
    paths = [*image_paths[:2], "/nowhere/x.png", *image_paths[2:]]
    for verb in (scorer.score, scorer.rank, scorer.inference_rank, scorer.best_of):
        with pytest.raises(FileNotFoundError, match=r"images\[2\] \(/nowhere/x.png\)"):
            verb(PROMPTS[0], paths)
    handle.remove()
    assert not calls


def test_an_unreadable_image_after_repeated_ones_keeps_its_own_index(scorers, image_paths):
    with pytest.raises(FileNotFoundError, match=r"images\[2\] \(/nowhere/x.png\)"):
        scorers["CLIP"].score_pairs(["a", "b", "c"], [image_paths[0], image_paths[0], "/nowhere/x.png"])


@pytest.mark.parametrize("make", [lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"no image")])
def test_an_unreadable_file_is_named(scorers, image_paths, tmp_path, make):
    bad = tmp_path / "bad.png"
    make(bad)
    with pytest.raises(errors.ImageReadError, match=r"images\[5\] \(.*bad.png\)"):
        scorers["CLIP"].score("a", [*image_paths, bad])


def test_empty_lists_are_refused(scorer):
    for call in (
        lambda: scorer.score("a", []),
        lambda: scorer.rank("a", []),
        lambda: scorer.inference_rank("a", []),
        lambda: scorer.score_pairs([], []),
        lambda: scorer.score_matrix([], pictures(1)),
        lambda: scorer.score_matrix(["a"], []),
        lambda: scorer.reward(torch.rand(0, 3, 32, 32), []),
    ):
        with pytest.raises(errors.InputError):
            call()


def test_unequal_numbers_of_prompts_and_images_are_refused(scorer):
    with pytest.raises(ValueError, match="2 prompts and 3 images"):
        scorer.score_pairs(["a", "b"], pictures(3))
    with pytest.raises(ValueError, match="2 prompts for 3 images"):
        scorer.reward(torch.rand(3, 3, 32, 32), ["a", "b"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.score(["a", "b"], pictures(1)), "expected one string"),
        (lambda s: s.score(None, pictures(1)), "NoneType"),
        (lambda s: s.score_pairs("a", pictures(1)), "expected a list"),
        (lambda s: s.score_pairs(None, pictures(1)), "prompts is a NoneType"),
        (lambda s: s.score("\ud800", pictures(1)), "not valid text"),
        (lambda s: s.reward(torch.full((1, 3, 8, 8), 255.0), ["a"]), r"expected \[0, 1\]"),
        (lambda s: s.reward(torch.full((1, 3, 8, 8), torch.nan), ["a"]), r"expected \[0, 1\]"),
        (lambda s: s.score_pairs(["a", 3], pictures(2)), r"prompts\[1\] is a int"),
        (lambda s: s.score("a", pictures(1), batch_size=0), "batch_size=0"),
        (lambda s: s.score("a", pictures(1), batch_size=True), "batch_size=True"),
        (lambda s: s.best_of("a", pictures(2), 1.5), "k=1.5"),
        (lambda s: s.reward(np.zeros((1, 3, 8, 8), np.float32), ["a"]), "pixels are a ndarray"),
        (lambda s: s.best_of("a", pictures(2), 3), r"k=3: expected a whole number in 1\.\.2"),
        (lambda s: s.reward(torch.rand(3, 32, 32), ["a"]), r"expected float \[B, 3, H, W\]"),
        (lambda s: s.reward(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ["a"]), "uint8"),
    ],
)
def test_wrong_arguments_are_named(scorers, call, message):
    with pytest.raises(errors.InputError, match=message):
        call(scorers["CLIP"])


def test_an_unsupported_image_type_is_a_type_error(scorers):
    with pytest.raises(TypeError, match=r"images\[1\] is a object"):
        scorers["CLIP"].score("a", [pictures(1)[0], object()])


@pytest.mark.parametrize("kind", ["ImageReward", "BLIP", "CLIP", "Aesthetic"])
def test_nan_weights_are_an_error_and_never_a_ranking(kind):
    scorer = small_scorer(kind)
    with torch.no_grad():
        tower = scorer.blip.visual_encoder if hasattr(scorer, "blip") else scorer.clip_model.visual
        next(tower.parameters()).fill_(float("nan"))
    for verb in (scorer.score, scorer.rank, scorer.inference_rank, scorer.best_of):
        with pytest.raises(errors.NonFiniteScoreError, match="not finite: image 0"):
            verb("a", pictures(2))
    with pytest.raises(errors.NonFiniteScoreError, match="image 0 with 'a'"):
        scorer.reward(torch.rand(2, 3, SIZE, SIZE), "a")


# Ensembles.


def test_an_ensemble_has_nothing_to_save_and_leaves_no_empty_repository(tmp_path, monkeypatch, scorers):
    import huggingface_hub

    monkeypatch.setattr(
        huggingface_hub.HfApi, "create_repo", lambda *_, **__: pytest.fail("made a repository")
    )
    for call in (scorers["Ensemble"].save_pretrained, scorers["Ensemble"].push_to_hub):
        with pytest.raises(errors.InputError, match="save its components"):
            call(str(tmp_path / "x"))


def test_an_ensemble_is_the_weighted_sum_of_its_components():
    parts = {small_scorer("ImageReward"): 1.0, small_scorer("Aesthetic"): 0.2, small_scorer("HPS"): -3.0}
    images = pictures(4)
    expected = sum(weight * np.array(part.score("a", images)) for part, weight in parts.items())
    both = RM.ensemble(parts)
    np.testing.assert_allclose(both.score("a", images), expected, **CLOSE)
    components = both.score_components("a", images)
    assert list(components) == ["ImageReward", "Aesthetic", "HPS"]
    np.testing.assert_allclose(components["HPS"], list(parts)[2].score("a", images), **CLOSE)
    assert both.rank("a", images).components.keys() == components.keys()
    assert "Aesthetic" in str(both.rank("a", images))


def test_an_ensemble_of_ensembles_keeps_each_parts_preprocessing():
    hps, clip = small_scorer("HPS"), small_scorer("CLIP")
    inner = RM.ensemble({hps: 1.0})
    outer = RM.ensemble({inner: 2.0, clip: 1.0})
    images = pictures(3)
    expected = 2 * np.array(hps.score("a", images)) + np.array(clip.score("a", images))
    np.testing.assert_allclose(outer.score("a", images), expected, **CLOSE)


def test_a_normalised_component_counts_as_its_distance_from_the_mean_in_deviations():
    clip, aesthetic = small_scorer("CLIP"), small_scorer("Aesthetic")
    both = RM.ensemble({clip: 2.0, aesthetic: 1.0}, normalise={clip: (0.25, 0.1)})
    (picture,) = pictures(1)
    expected = 2 * (clip.score("a", picture) - 0.25) / 0.1 + aesthetic.score("a", picture)
    assert both.score("a", picture) == pytest.approx(expected, abs=2e-5)


def test_components_loaded_from_one_tower_share_it_and_its_image_pass(tmp_path, monkeypatch):
    made = {kind: small_scorer(kind) for kind in ("CLIP", "Aesthetic")}
    for scorer in made.values():
        scorer.files = {"clip_model.": tmp_path / "same-file"}
    separate = RM.ensemble(dict.fromkeys(made.values(), 1.0))
    assert made["CLIP"].clip_model is not made["Aesthetic"].clip_model  # one of them may be tuned by now
    expected = separate.score("a", pictures(3))

    monkeypatch.setattr("imagereward.ensembles.load", made.get)
    both = RM.ensemble({"CLIP": 1.0, "Aesthetic": 1.0})
    assert made["CLIP"].clip_model is made["Aesthetic"].clip_model
    passes = []
    made["CLIP"].clip_model.visual.register_forward_hook(lambda *_: passes.append(1))
    assert both.score("a", pictures(3)) == expected
    assert len(passes) == 1


def test_all_components_share_one_decode(monkeypatch, image_paths):
    import imagereward.images.reading

    decoded = []
    original = imagereward.images.reading.read_image
    monkeypatch.setattr(
        imagereward.images.reading, "read_image", lambda *args: decoded.append(args[0]) or original(*args)
    )
    RM.ensemble({small_scorer("ImageReward"): 1.0, small_scorer("HPS"): 1.0}).score("a", image_paths)
    assert sorted(decoded) == image_paths


@pytest.mark.parametrize(
    ("weights", "normalise"),
    [
        ({}, None),
        ({"CLIP": "much"}, None),
        ({"CLIP": float("nan")}, None),
        ({"CLIP": 1.0}, {"BLIP": (0, 1)}),
        ({"CLIP": 1.0}, {"CLIP": (0, 0)}),
        ({"CLIP": 1.0}, {"CLIP": (float("nan"), 1)}),
        ({"CLIP": 1.0}, {"CLIP": 3}),
        (["CLIP"], None),
    ],
)
def test_an_ensemble_without_sense_is_refused(weights, normalise):
    with pytest.raises(errors.InputError):
        RM.ensemble(weights, normalise)


def test_a_picture_smaller_than_the_model_and_one_of_extreme_shape_are_scored(scorer):
    images = [PIL.Image.new("RGB", size, "red") for size in ((1, 1), (500, 3), (2, 300))]
    assert np.isfinite(scorer.score("a", images)).all()
