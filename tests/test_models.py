"""The networks against other libraries' implementations of the same architectures, at small size."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CONFIGS, PROMPTS, SIZE, pictures, small_scorer
from transformers import CLIPConfig, CLIPModel

import imagereward as RM
from benchmarks.lib.plain_loop import PlainImageReward
from imagereward.checkpoints.assembling import assemble
from imagereward.checkpoints.registry import REGISTRY
from imagereward.models.clip import from_transformers


def test_imagereward_equals_the_plain_loop_with_transformers_text_model():
    scorer = small_scorer("ImageReward")
    plain = PlainImageReward(scorer)
    images = pictures(3)
    expected = [[plain.score(prompt, image) for image in images] for prompt in PROMPTS]
    np.testing.assert_allclose(scorer.score_matrix(PROMPTS, images), expected, atol=1e-5)


def test_every_hidden_state_equals_transformers_with_and_without_the_image():
    scorer = small_scorer("ImageReward")
    ours, theirs = scorer.blip.text_encoder, PlainImageReward(scorer).text
    ids, mask = scorer.blip.wordpiece.encode(PROMPTS, 35)
    image = torch.randn(len(PROMPTS), 5, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        alone = theirs(ids, attention_mask=mask, is_decoder=False).last_hidden_state
        seeing = theirs(
            ids, attention_mask=mask, encoder_hidden_states=image, is_decoder=False
        ).last_hidden_state
        real = mask.bool()
        torch.testing.assert_close(ours(ids, mask)[real], alone[real], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours(ids, mask, image)[real], seeing[real], atol=1e-5, rtol=1e-4)
        first = ours(ids, mask, image, first_only=True)
        torch.testing.assert_close(first[:, 0], seeing[:, 0], atol=1e-5, rtol=1e-4)


def test_rows_may_share_images_regularly_or_by_index():
    encoder = small_scorer("ImageReward").blip.text_encoder
    ids, mask = torch.randint(0, 1000, (6, 7)), torch.ones(6, 7, dtype=torch.long)
    images = torch.randn(2, 5, 32)
    index = torch.tensor([0, 0, 0, 1, 1, 1])
    with torch.inference_mode():
        apart = encoder(ids, mask, images[index])
        torch.testing.assert_close(encoder(ids, mask, images), apart, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(encoder(ids, mask, images, index), apart, atol=1e-5, rtol=1e-4)
        shuffled = encoder(ids, mask, images, index.flip(0))
        torch.testing.assert_close(shuffled, encoder(ids, mask, images[index.flip(0)]), atol=1e-5, rtol=1e-4)


def transformers_clip(quick: bool) -> CLIPModel:
    torch.manual_seed(0)
    shared = {"num_hidden_layers": 2, "hidden_act": "quick_gelu" if quick else "gelu", "projection_dim": 16}
    config = CLIPConfig(
        text_config={
            **shared,
            "hidden_size": 32,
            "intermediate_size": 128,
            "num_attention_heads": 2,
            "vocab_size": 49408,
            "bos_token_id": 49406,
            "eos_token_id": 49407,
            "pad_token_id": 0,
        },
        vision_config={
            **shared,
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_attention_heads": 1,
            "image_size": SIZE,
            "patch_size": 16,
        },
        projection_dim=16,
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():  # initial weights are so small that every prompt looks alike
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "position" not in name:
                parameter.mul_(5)
    return model


@pytest.mark.parametrize("kind", ["CLIP", "HPS", "PickScore"])
@pytest.mark.parametrize("quick", [True, False])
def test_clip_scores_equal_transformers_on_the_same_weights(kind, quick):
    theirs = transformers_clip(quick)
    config = replace(CONFIGS[kind], architecture={**CONFIGS[kind].architecture, "quick_gelu": quick})
    state = {f"clip_model.{name}": value for name, value in from_transformers(theirs.state_dict()).items()}
    ours = assemble(config, state, torch.device("cpu"), torch.float32)
    images = pictures(3)
    ids = ours.bpe(PROMPTS)
    pixels = torch.stack([ours.preprocess(image) for image in images])
    with torch.inference_mode():
        output = theirs(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)
    cosine = output.text_embeds @ output.image_embeds.T
    expected = cosine * theirs.logit_scale.exp() if kind == "PickScore" else cosine
    assert cosine.std() > 1e-3
    np.testing.assert_allclose(ours.score_matrix(PROMPTS, images), expected.detach(), atol=1e-4, rtol=1e-5)


def test_a_transformers_clip_maps_onto_every_open_clip_parameter():
    ours = small_scorer("CLIP").clip_model.state_dict()
    mapped = from_transformers(transformers_clip(True).state_dict())
    assert {name: value.shape for name, value in mapped.items()} == {
        name: value.shape for name, value in ours.items()
    }


def test_pickscore_loads_from_a_transformers_file_by_name(tmp_path, monkeypatch):
    theirs = transformers_clip(False)
    theirs.save_pretrained(tmp_path)
    config = replace(
        CONFIGS["PickScore"], architecture={**CONFIGS["PickScore"].architecture, "quick_gelu": False}
    )
    monkeypatch.setitem(REGISTRY, "PickScore-v1", replace(REGISTRY["PickScore-v1"], config=config))
    image, by_name = pictures(1)[0], RM.load("PickScore-v1", "cpu", tmp_path)
    by_file = RM.load(tmp_path / "model.safetensors", "cpu")
    with torch.inference_mode():
        output = theirs(input_ids=by_name.bpe(["a cat"]), pixel_values=by_name.preprocess(image)[None])
    assert by_name.score("a cat", image) == pytest.approx(output.logits_per_image.item(), abs=1e-4)
    assert by_file.score("a cat", image) == by_name.score("a cat", image)
