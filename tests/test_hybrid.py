"""Sampling with the tuned network first and the base after it, everywhere; evaluation at another size."""

import contextlib
import json
import re
from pathlib import Path

import numpy as np
import pipelines
import pytest
import torch
from PIL import Image
from test_compare import PROMPTS, compared, lora
from test_families import STEPS, certain, drawn_by_diffusers
from test_grpo import moved, small
from test_refl import evaluations, run, settings

from imagereward.errors import InputError
from imagereward.tuning.data.seeding import noise_for_samples
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.policy.policy import Hybrid, Policy
from imagereward.tuning.policy.snapshots import Snapshot
from imagereward.tuning.policy.trainable import LoRA, set_trainable, trainable_parameters

__all__ = ["lora"]  # a fixture
DOCS = Path(__file__).parents[1] / "docs/finetuning.md"


def drawn(policy, share, name="base"):
    condition = policy.denoiser.encode(pipelines.PROMPTS[:2])
    noise = noise_for_samples(range(2), policy.denoiser.autoencoder.shape, 0)
    policy.hybrid = None if share is None else Hybrid(share, lambda: policy.using(name))
    return policy.sample(condition, noise)


def tuned_policy():
    policy = small(base=True)
    policy.snapshots["base"] = policy.snapshots.pop("reference")
    moved(policy, 0.05)
    return policy


def test_the_first_share_is_the_tuned_networks_and_the_rest_the_bases():
    """Against a loop of its own over the four steps."""
    policy = tuned_policy()
    networks = []
    real = policy.predict

    def watching(*arguments):
        own = dict(policy.denoiser.network.named_parameters())["proj_out.weight"]
        networks.append(
            "base" if torch.equal(own, policy.snapshots["base"].weights["proj_out.weight"]) else "tuned"
        )
        return real(*arguments)

    policy.predict = watching
    for share, own in ((0.0, 0), (0.1, 0), (0.125, 1), (0.5, 2), (0.6, 2), (0.75, 3), (0.9, 4), (1.0, 4)):
        networks.clear()
        drawn(policy, share)
        assert networks == ["tuned"] * own + ["base"] * (4 - own), share


def test_all_or_none_of_the_steps_are_one_networks_images():
    policy = tuned_policy()
    whole = drawn(policy, None)
    with policy.using("base"):
        plain = drawn(policy, None)
    assert torch.equal(drawn(policy, 1.0), whole)
    assert torch.equal(drawn(policy, 0.0), plain)
    half = drawn(policy, 0.5)
    assert (half - whole).abs().max() > 1e-4
    assert (half - plain).abs().max() > 1e-4


def test_it_starts_from_an_average_too():
    """As an evaluation draws with the average of the weights: its own first, the base's then."""
    policy = tuned_policy()
    expected = drawn(policy, 0.5)
    policy.snapshots["ema"] = Snapshot(policy.denoiser.network)
    own = policy.denoiser.network.proj_out.weight.detach().clone()
    moved(policy, 0.05)
    with policy.using("ema"):
        assert torch.equal(drawn(policy, 0.5), expected)
        assert torch.equal(policy.denoiser.network.proj_out.weight, own)
    assert not torch.equal(policy.denoiser.network.proj_out.weight, own)


# With diffusers.


def callback(share):
    """The lines of the documentation."""
    (block,) = [
        text for text in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "disable_lora" in text
    ]
    names = {}
    exec(block.split("\nimage = ")[0], names)
    assert "pipeline.enable_lora()" in block
    return names["base_after"](share)


class Calling:
    """A pipeline that is called with further arguments."""

    def __init__(self, pipeline, **more):
        self.pipeline, self.more = pipeline, more

    def __getattr__(self, name):
        return getattr(self.pipeline, name)

    def __call__(self, **arguments):
        return self.pipeline(**arguments, **self.more)


@pytest.mark.parametrize("family", pipelines.FAMILIES)
def test_the_lines_for_diffusers_draw_what_a_policy_does(family):
    pipeline, rows = pipelines.FAMILIES[family](), pipelines.rows(family, 2)
    certain(pipeline.vae)
    denoiser = open_denoiser(pipeline, pipelines.SIDE)
    set_trainable(denoiser, LoRA(rank=2))
    for value in trainable_parameters(denoiser.network).values():
        torch.nn.init.normal_(value.data, std=0.3, generator=torch.Generator().manual_seed(0))

    @contextlib.contextmanager
    def base():
        denoiser.network.disable_adapters()
        yield
        denoiser.network.enable_adapters()

    policy = Policy(denoiser, denoiser.dynamics(STEPS), 3.0)
    noise = noise_for_samples(range(2), denoiser.autoencoder.shape, 0)
    images = {}
    for share in (1.0, 0.5):
        policy.hybrid = Hybrid(share, base)
        images[share] = policy.sample(denoiser.encode(rows), noise)
    assert (images[1.0] - images[0.5]).abs().max() > 1e-3
    theirs = drawn_by_diffusers(Calling(pipeline, callback_on_step_end=callback(0.5)), family, rows, 3.0)
    torch.testing.assert_close(images[0.5], theirs, atol=1e-4, rtol=1e-4)
    pipeline.enable_lora()
    torch.testing.assert_close(
        drawn_by_diffusers(pipeline, family, rows, 3.0), images[1.0], atol=1e-4, rtol=1e-4
    )


# Comparing.


def test_a_comparison_takes_the_first_steps_from_lora_and_the_rest_from_the_base(lora):
    found = {share: compared(pipelines.sd(), lora, tuned_share=share) for share in (0.0, 0.5, 1.0)}
    for each in found.values():
        assert torch.equal(each.images[0], found[1.0].images[0])
    torch.testing.assert_close(found[0.0].images[1], found[0.0].images[0])
    assert (found[0.5].images[1] - found[0.5].images[0]).abs().max() > 1e-3
    assert (found[0.5].images[1] - found[1.0].images[1]).abs().max() > 1e-3
    base = pipelines.sd()
    compared(base, lora, tuned_share=0.5)
    assert not getattr(base.unet, "peft_config", None)


def test_a_comparison_of_two_models_draws_with_both_networks():
    base, other = pipelines.sd(), pipelines.sd(seed=1)
    for name in ("vae", "text_encoder"):
        getattr(other, name).load_state_dict(getattr(base, name).state_dict())
    found = {share: compared(base, other, tuned_share=share).images for share in (0.0, 0.5, 1.0)}
    torch.testing.assert_close(found[0.0][1], found[0.0][0])
    assert torch.equal(found[0.5][0], found[1.0][0])
    # By hand: two steps of one, two of the other.
    policies = [
        Policy(each, each.dynamics(4), 1.0) for each in (open_denoiser(made, 16) for made in (other, base))
    ]
    noise = torch.cat(
        [noise_for_samples([k], (4, 8, 8), 0, f"image of {m}") for m in range(2) for k in range(2)]
    )
    x = noise
    with torch.no_grad():
        condition = policies[0].denoiser.encode([prompt for prompt in PROMPTS for _ in range(2)])
        for i in range(4):
            policy, at = policies[i // 2], torch.full((4,), i)
            x = policy.dynamics.without_noise().step(x, policy.predict(x, at, condition), at).next
        expected = policies[0].denoiser.autoencoder.decode(x)
    torch.testing.assert_close(found[0.5][1].flatten(0, 1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(share, tmp_path):
    with pytest.raises(InputError, match=f"tuned_share={share}: expected a number from 0 to 1"):
        compared(pipelines.sd(), pipelines.sd(), tuned_share=share)
    with pytest.raises(InputError, match=r"evaluation\.tuned_share"):
        run(tmp_path / "out", evaluation={**settings()["evaluation"], "tuned_share": share})


def test_a_judge_of_groups_compares_no_two_generators():
    from imagereward.tuning.evaluation.compare import compare

    with pytest.raises(
        InputError, match="reward test_group_rewards:brighter compares images of one generator"
    ):
        compare(pipelines.sd(), pipelines.sd(), PROMPTS, "test_group_rewards:brighter", device="cpu")


# Evaluations.


ONE = {**settings()["evaluation"], "count": 1, "seeds": 1}


@pytest.mark.parametrize("more", [{"ema": 0.5}, {"lora": {"rank": 2}}])
def test_an_evaluation_that_gives_the_base_all_steps_sees_nothing_learned(more, tmp_path):
    """And a resumed run goes on with the base that it began with."""
    options = {"evaluation": {**ONE, "tuned_share": 0.0}, "evaluate_every": 1, "save_every": 1, **more}
    run(tmp_path / "out", updates=1, **options)
    run(tmp_path / "out", updates=2, resume=True, **options)
    rewards = evaluations(tmp_path / "out", "reward")
    assert len(rewards) == 3
    assert len(set(rewards)) == 1


def test_an_evaluation_that_gives_the_base_half_of_the_steps_sees_something(tmp_path):
    run(tmp_path / "out", evaluation={**ONE, "tuned_share": 0.5}, updates=1)
    first, last = evaluations(tmp_path / "out", "reward")
    assert first != last


@pytest.mark.parametrize("family", ["sd", "sd3", "flux_fill"])
def test_an_evaluation_may_have_another_size(family, tmp_path):
    seen = {**ONE, "resolution": [16, 8]}
    sizes = set()

    def reward(pixels, prompts):
        sizes.add((pixels.requires_grad, *pixels.shape[2:]))
        return pixels.mean((1, 2, 3))

    run(tmp_path / "out", family, reward, pipelines.rows(family), evaluation=seen, updates=1)
    assert (True, 16, 16) in sizes
    assert {size[1:] for size in sizes if not size[0]} == {(16, 8)}
    assert Image.open(sorted((tmp_path / "out/samples").glob("*.png"))[-1]).size
    assert json.loads((tmp_path / "out/run.json").read_text())["evaluation"]["resolution"] == [16, 8]
    assert np.isfinite(evaluations(tmp_path / "out", "reward")).all()


def test_a_size_that_the_model_cannot_take_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match=r"resolution=17"):
        run(tmp_path / "out", evaluation={**settings()["evaluation"], "resolution": 17})
    assert not (tmp_path / "out").exists()
