"""Where adapters may be: on every module that the model calls, once under a name, on no compiled model."""

import copy

import numpy as np
import pytest
import torch
from conftest import PROMPTS, pictures, small_scorer
from test_adapted_scorers import adapted, shaken
from torch import nn

from imagereward.adapters.collection import put_on
from imagereward.config import AdapterConfig
from imagereward.errors import AdapterUnusedWarning, InputError

TEXT = "blip.text_encoder"


def scores(scorer) -> np.ndarray:
    return scorer.score_matrix(PROMPTS[:2], pictures(3))


def head_by_loops(scorer, features, layers) -> torch.Tensor:
    """The reward head layer by layer, with `layers[index]` in place of the layer's own function."""
    h = features.double()
    for index, layer in enumerate(scorer.mlp.layers):
        if index in layers:
            h = layers[index](h)
        elif not isinstance(layer, nn.Dropout):
            h = h @ layer.weight.double().T + layer.bias.double()
    return h


@pytest.mark.parametrize("form", ["loreft", "lora"])
@pytest.mark.parametrize(("kind", "path"), [("ImageReward", "mlp.layers.0"), ("Aesthetic", "mlp.layers.2")])
def test_an_adapter_on_a_layer_of_the_reward_head_is_its_formula(kind, path, form):
    scorer = small_scorer(kind)
    index = int(path[-1])
    plain = scorer.mlp.layers[index]
    weight, bias = plain.weight.double(), plain.bias.double()
    adapter = shaken(scorer.add_adapter(AdapterConfig(form, modules=(path,), rank=2)))
    features = torch.randn(5, scorer.mlp.layers[0].in_features, generator=torch.Generator().manual_seed(0))

    def changed(h):
        own = h @ weight.T + bias
        if form == "lora":
            a, b = (adapter.weights()[f"{path}.lora_{part}.weight"].double() for part in "AB")
            return own + h @ a.T @ b.T
        part = adapter.layers[0]["first"]
        rows, w, b = (
            each.detach().double() for each in (part.up.weight, part.source.weight, part.source.bias)
        )
        return own + (own @ w.T + b - own @ rows.T) @ rows

    base = small_scorer(kind)
    with torch.no_grad():
        expected = head_by_loops(base, features, {index: changed})
        torch.testing.assert_close(scorer.mlp(features).double(), expected, rtol=1e-4, atol=1e-4)
        assert (expected - base.mlp(features).double()).abs().max() > 1e-3
    assert np.abs(scores(scorer) - scores(base)).max() > 1e-5
    scorer.remove_adapter("default")
    np.testing.assert_array_equal(scores(scorer), scores(base))


@pytest.mark.parametrize("path", ["mlp.layers.7", "mlp.layers.*", "mlp.layers", "mlp"])
def test_other_places_in_the_reward_head_change_the_score_too(path):
    form = "lobireft" if path in ("mlp", "mlp.layers") else "lora"
    scorer, _ = adapted("ImageReward", AdapterConfig(form, modules=(path,), rank=1, width=1))
    assert np.abs(scores(scorer) - scores(small_scorer("ImageReward"))).max() > 1e-4


@pytest.mark.parametrize(
    ("kind", "path", "type_", "nearest"),
    [
        (
            "ImageReward",
            f"{TEXT}.encoder.layer",
            "ModuleList",
            f"{TEXT}.encoder.layer.0, {TEXT}.encoder.layer.1",
        ),
        ("ImageReward", f"{TEXT}.embeddings", "ModuleDict", f"{TEXT}.embeddings.word_embeddings"),
        ("ImageReward", f"{TEXT}.encoder.layer.0.attention.self", "ModuleDict", ".*attention.self.query"),
        ("CLIP", "clip_model.visual.transformer.resblocks", "ModuleList", ".*resblocks.0"),
        ("CLIP", "clip_model.transformer.resblocks.0.attn.out_proj", ".*Linear", ".*resblocks.0.attn$"),
    ],
)
def test_modules_that_no_forward_pass_calls_are_refused(kind, path, type_, nearest):
    scorer = small_scorer(kind)
    message = f"modules: {path} is a {type_} that no forward pass calls.*nearest that one calls: {nearest}"
    with pytest.raises(InputError, match=message):
        scorer.add_adapter(AdapterConfig("loreft", modules=(path,)))
    if path.endswith("out_proj"):
        with pytest.raises(InputError, match=r"nearest that one calls: .*resblocks\.0\.mlp\.c_"):
            scorer.add_adapter(AdapterConfig("lora", modules=(path,)))
    assert not len(scorer.adapters)


def test_patterns_leave_out_what_no_forward_pass_calls():
    scorer = small_scorer("CLIP")
    pattern = "clip_model.transformer.resblocks.*.attn*"
    found = scorer.add_adapter(AdapterConfig("loreft", modules=(pattern,))).config.modules
    assert found == tuple(f"clip_model.transformer.resblocks.{index}.attn" for index in range(len(found)))
    with pytest.raises(InputError, match=r"out_proj is a .*Linear that no forward pass calls"):
        scorer.add_adapter(AdapterConfig("lora", "low", modules=("*.out_proj",)))


@pytest.mark.parametrize("form", ["loreft", "lora"])
def test_a_module_that_scoring_does_not_call_is_an_error_at_the_first_score(form):
    scorer = small_scorer("ImageReward")
    path = f"{TEXT}.encoder.layer.0.output.dense"
    adapter = scorer.add_adapter(AdapterConfig(form, "mine", modules=("blip.vision_proj", path)))
    assert adapter.never_ran == ("blip.vision_proj", path)
    message = "the model did not call blip.vision_proj, so the adapter 'mine' changes nothing there"
    with pytest.raises(InputError, match=message):
        scorer.score(PROMPTS[0], pictures(1)[0])
    with pytest.raises(InputError, match=message):
        scorer.reward(torch.full((1, 3, 40, 40), 0.5), PROMPTS[0])
    assert copy.deepcopy(adapter).never_ran == adapter.never_ran == ("blip.vision_proj",)
    scorer.remove_adapter("mine")
    scorer.score(PROMPTS[0], pictures(1)[0])


def test_the_default_of_lora_on_blip_is_what_a_prompt_alone_calls():
    scorer, adapter = adapted("BLIP", AdapterConfig("lora"))
    assert np.abs(scores(scorer) - scores(small_scorer("BLIP"))).max() > 1e-4
    assert not adapter.never_ran


def test_an_ensemble_says_it_of_a_component():
    import imagereward as RM

    scorer = small_scorer("ImageReward")
    scorer.add_adapter(AdapterConfig("loreft", "mine", modules=("blip.vision_proj",)))
    ensemble = RM.ensemble({scorer: 1.0, small_scorer("HPS"): 1.0})
    with pytest.raises(InputError, match=r"did not call blip\.vision_proj"):
        ensemble.score(PROMPTS[0], pictures(1)[0])


class Branches(nn.Module):
    """Two layers, of which a call uses the first, or both."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, both=False):
        return self.two(self.one(x)) if both else self.one(x)


@pytest.mark.parametrize("form", ["loreft", "lora"])
def test_on_any_model_a_pass_that_calls_none_is_an_error_and_one_that_calls_some_warns(form):
    model, x = Branches(), torch.randn(2, 3, 4)
    adapter = put_on(model, AdapterConfig(form, modules=("two",)))
    with pytest.raises(
        InputError, match="the model did not call two, so the adapter 'default' changes nothing"
    ):
        model(x)
    adapter.enabled = False
    model(x)
    adapter.enabled = True
    model(x, both=True)
    model(x)  # it has run, so passes differ
    some = put_on(model, AdapterConfig(form, "some", modules=("one", "two")))
    with pytest.warns(AdapterUnusedWarning, match="'some' changed nothing at two"):
        model(x)
    for each in (some, adapter):
        each.detach(model)
    assert not model._forward_hooks


@pytest.mark.parametrize("form", ["loreft", "lora"])
def test_two_adapters_of_one_name_are_refused_and_the_first_stays(form):
    model, x = Branches(), torch.randn(2, 3, 4)
    first = shaken(put_on(model, AdapterConfig(form, "x", ("one",))))
    expected = model(x)
    for other in ("loreft", "lora"):
        with pytest.raises(InputError, match="an adapter 'x' is on the model already"):
            put_on(model, AdapterConfig(other, "x", ("one", "two")))
    assert torch.equal(model(x), expected)
    with pytest.raises(InputError, match="an adapter 'x' is on the model already"):
        put_on(copy.deepcopy(model), AdapterConfig(form, "x", ("two",)))
    first.detach(model)
    put_on(model, AdapterConfig(form, "x", ("one",)))


def test_a_compiled_model_takes_no_adapter_and_one_with_adapters_is_not_compiled():
    scorer = small_scorer("CLIP")
    scorer.add_adapter(AdapterConfig("loreft", "mine"))
    with pytest.raises(InputError, match="the adapters mine are on the model, and a compiled model"):
        scorer.compile_towers()
    scorer.remove_adapter("mine")
    scorer.compile_towers()
    for form in ("loreft", "lora"):
        with pytest.raises(InputError, match="the adapter 'mine': the model is compiled"):
            scorer.add_adapter(AdapterConfig(form, "mine", modules=("text",)))
    model = Branches()
    model.compile()
    with pytest.raises(InputError, match="is compiled"):
        put_on(model, AdapterConfig("loreft", modules=("one",)))


def test_an_adapter_knows_the_stream_of_each_module():
    scorer = small_scorer("ImageReward")
    layer = f"{TEXT}.encoder.layer.0"
    for form, paths in (("loreft", (layer,)), ("lora", (f"{layer}.output.dense",))):
        paths = (*paths, "blip.visual_encoder.blocks.0.attn.proj", "mlp.layers.0")
        adapter = scorer.add_adapter(AdapterConfig(form, form, modules=paths))
        assert adapter.streams == ("text", "image", None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "lora", "subspaces": {"a": [0]}}, "subspaces=.*kind='lora' has none; expected a ReFT kind"),
        ({"subspaces": {"a": []}}, "subspaces=.*expected a list of directions for each name"),
    ],
)
def test_subspaces_that_would_do_nothing_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        AdapterConfig(**{"kind": "loreft", **settings})
