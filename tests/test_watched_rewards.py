"""Rewards with weight 0: computed and logged, never trained on, and their failures count for nothing."""

import math

import pytest
import torch
from test_group_rewards import AT_ONCE, brighter, images
from test_grpo import first_step, grpo_of, run, small
from test_refl import PROMPTS, brightness, evaluations, refl_of
from test_refl import run as run_refl

from imagereward.errors import InputError, RewardError
from imagereward.scoring.functions import FunctionScorer
from imagereward.tuning.data.requests import prompts_of
from imagereward.tuning.evaluation.evaluate import Evaluation
from imagereward.tuning.rewards.weighted import Rewards, open_rewards
from imagereward.tuning.rollouts.advantages import weighted_sum
from imagereward.tuning.trainer_config import EvaluationConfig

NAN = math.nan


def counted_pixels(pixels, prompts):
    """Has no gradient."""
    return (pixels > 0.5).float().mean((1, 2, 3)).detach()


def never(pixels, prompts):
    return torch.full((len(pixels),), NAN)


def test_refl_takes_a_watched_reward_without_gradient_or_value():
    watching = Rewards({"light": (2.0, brightness), "counted": (0.0, counted_pixels), "never": (0.0, never)})
    watching.check_differentiable((16, 16), "a")
    pixels = images(2).requires_grad_(True)
    total, each = watching(pixels, PROMPTS[:2])
    torch.testing.assert_close(total, 2 * brightness(pixels, None))
    torch.testing.assert_close(each["counted"], counted_pixels(pixels, None))
    assert each["never"].isnan().all()
    (gradient,) = torch.autograd.grad(total.sum(), pixels)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 2 / gradient[0].numel()))


def test_refl_trains_beside_a_watched_reward_without_gradient(tmp_path):
    reward = {"test_refl:brightness": 1.0, "test_watched_rewards:counted_pixels": 0.0}
    run_refl(tmp_path / "out", reward=reward, updates=1)
    watched = evaluations(tmp_path / "out", "reward/test_watched_rewards:counted_pixels")
    assert all(0 < value < 1 for value in watched)


@pytest.mark.parametrize("train", [run, run_refl])
def test_a_training_whose_rewards_all_have_weight_0_is_refused(train, tmp_path):
    with pytest.raises(InputError, match=r"the weights of test_refl:brightness are 0, so .* learn nothing"):
        train(tmp_path / "out", reward={"test_refl:brightness": 0.0}, updates=1)


def test_a_weight_by_row_of_0_is_0_for_every_row():
    class ByRow(FunctionScorer):
        def row_weights(self, rows, size):
            return torch.full((len(rows),), 0.5)

    rewards = Rewards({"light": (1.0, brightness), "share": (0.0, ByRow(never, "never"))})
    weights = rewards.weights_for(PROMPTS[:2], (16, 16))
    found = {"light": torch.tensor([1.0, 3.0]), "share": torch.tensor([NAN, 5.0])}
    assert weighted_sum(found, weights, torch.zeros(2, dtype=torch.long)).tolist() == [1.0, 3.0]


def test_an_evaluation_that_only_watches_logs_no_sum(tmp_path):
    both = Rewards({"light": (0.0, brightness), "brighter": (1.0, brighter)})
    config = EvaluationConfig(seeds=2, batch_size=2)
    found = Evaluation(small(), PROMPTS[:1], both, None, config, tmp_path, 0, AT_ONCE).measure(
        images(2)[None], 0
    )
    assert "reward" not in found
    assert found["reward/light"] == pytest.approx(float(images(2).mean()))


def test_an_update_in_which_every_image_lacks_a_reward_is_an_error():
    objective = grpo_of()
    prompt = prompts_of(objective.rows)[0]

    def first(pixels, prompts):
        return torch.tensor([NAN if each == prompt else 1.0 for each in prompts])

    def second(pixels, prompts):
        return torch.tensor([1.0 if each == prompt else NAN for each in prompts])

    objective.rewards = Rewards({"first": (1.0, first), "second": (1.0, second)})
    with pytest.raises(RewardError, match="update 1: every image lacks one of the rewards first, second"):
        first_step(objective, small())


def test_what_is_clipped_has_no_gradient():
    """`clipped` in the log: the share of samples whose ratio has moved too far as its advantage asks."""
    objective, policy = grpo_of(clip_ratio=1e-6), small()
    batch = first_step(objective, policy)[0]
    with torch.no_grad():
        for value in policy.denoiser.network.parameters():
            value += 1e-2 * torch.randn(value.shape, generator=torch.Generator().manual_seed(2))
    shares = []
    for sign in (1.0, -1.0):
        loss, metrics = objective.loss(
            policy, batch._replace(advantages=sign * torch.ones_like(batch.advantages))
        )
        ratio_moved = torch.autograd.grad(loss, list(policy.denoiser.network.parameters()), allow_unused=True)
        still = all(value is None or not value.any() for value in ratio_moved)
        assert still == (float(metrics["clipped"]) == 1)
        shares.append(float(metrics["clipped"]))
    assert shares[0] + shares[1] == pytest.approx(1)  # every ratio has moved, and one way alone is clipped


def test_open_rewards_takes_a_weight_of_0():
    assert open_rewards({"test_refl:brightness": 0.0}).weights == {"test_refl:brightness": 0.0}
    assert refl_of().rewards.weights == {"brightness": 1.0}
