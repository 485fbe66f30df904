"""A base in four bits under LoRA: how small, how near, what learns, what is refused."""

import json
import sys

import pipelines
import pytest
import torch
from test_grpo import run
from test_refl import brightness, settings

from imagereward.errors import ImageRewardError, InputError
from imagereward.tuning import tune
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.policy.quantization import Linear4bit, quantize_to_4bit
from imagereward.tuning.policy.trainable import LoRA, set_trainable, trainable_parameters

FAMILIES = ("sd", "sdxl", "sd3", "flux")


def quantised(family):
    denoiser = open_denoiser(pipelines.FAMILIES[family](), pipelines.SIDE)
    quantize_to_4bit(denoiser.network, "cpu")
    return denoiser


def predicted(denoiser, rows):
    shape = denoiser.autoencoder.shape
    noise = torch.randn(len(rows), *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        times = denoiser.dynamics(4).model_time(torch.full((len(rows),), 1))
        return denoiser.predict(noise, times, denoiser.encode(rows))


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_layers_take_an_eighth_of_their_float32(family):
    whole, small = open_denoiser(pipelines.FAMILIES[family](), pipelines.SIDE), quantised(family)
    linear = [layer for layer in whole.network.modules() if isinstance(layer, torch.nn.Linear)]
    weights = [value for value in small.network.parameters() if value.dtype == torch.uint8]
    assert sum(value.nbytes for value in weights) == sum(layer.weight.numel() / 2 for layer in linear)
    assert len(weights) == len(linear) > 10


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_stay_near(family):
    rows = pipelines.rows(family)
    whole = predicted(open_denoiser(pipelines.FAMILIES[family](), pipelines.SIDE), rows)
    near = predicted(quantised(family), rows)
    assert 0 < (near - whole).norm() / whole.norm() < 0.2


def test_only_adapters_learn_and_their_gradient_is_that_beside_the_same_weights_written_out():
    small, written = quantised("sd3"), open_denoiser(pipelines.sd3(), pipelines.SIDE)
    with torch.no_grad():
        for name, layer in small.network.named_modules():
            if isinstance(layer, Linear4bit):
                written.network.get_submodule(name).weight.copy_(layer.written_out())
    gradients = []
    for denoiser in (small, written):
        torch.manual_seed(0)
        set_trainable(denoiser, LoRA(rank=2))
        rows = pipelines.rows("sd3")
        noise = torch.randn(len(rows), *denoiser.autoencoder.shape)
        times = torch.full((len(rows),), 500.0)
        denoiser.predict(noise, times, denoiser.encode(rows)).square().sum().backward()
        found = trainable_parameters(denoiser.network)
        assert found
        assert all("lora" in name for name in found)
        gradients.append({name: value.grad for name, value in found.items()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("family", ["sd", "sd3", "flux_kontext"])
def test_grpo_learns_over_a_base_in_four_bits(family, tmp_path):
    kl = {"form": "true", "beta": 0.1}
    tuned = run(tmp_path / "out", family, quantize=True, lora={"rank": 2}, kl=kl, updates=1)
    network = pipelines.network_of(tuned)
    assert any(
        value.abs().max() > 0 for name, value in trainable_parameters(network).items() if "lora_B" in name
    )
    history = json.loads((tmp_path / "out/history.json").read_text())
    first = next(entry for entry in history if "loss" in entry)
    assert first["ratio"] == 1
    assert first["kl"] == 0
    made = pipelines.FAMILIES[family]()
    made.load_lora_weights(tmp_path / "out")  # as over any base


def test_layers_in_four_bits_stay_as_they_are_when_asked_again():
    denoiser = quantised("sd")
    before = dict(denoiser.network.state_dict())
    quantize_to_4bit(denoiser.network, "cpu")
    assert all(torch.equal(value, before[name]) for name, value in denoiser.network.state_dict().items())


def test_weights_in_four_bits_cannot_learn(tmp_path):
    with pytest.raises(InputError, match="quantize=true without lora"):
        run(tmp_path / "out", quantize=True)


def test_without_bitsandbytes_it_is_said_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImageRewardError, match="quantize=true needs bitsandbytes"):
        run(tmp_path / "out", quantize=True, lora={"rank": 2})
    assert not (tmp_path / "out").exists()


def test_refl_reaches_adapters_through_four_bits(tmp_path):
    tuned = tune(
        pipelines.flux(),
        pipelines.rows("flux"),
        reward=brightness,
        output=tmp_path / "out",
        **settings(quantize=True, lora={"rank": 2}),
    )
    found = trainable_parameters(pipelines.network_of(tuned))
    assert any(value.abs().max() > 0 for name, value in found.items() if "lora_B" in name)
