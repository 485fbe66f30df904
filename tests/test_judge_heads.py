"""Reward heads on hidden states: HPSv3's layout against its package's arithmetic, saved heads, bad files."""

import json

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from conftest import PROMPTS, pictures
from plain_vlm import PlainVLM

import imagereward as RM
from imagereward.errors import CheckpointError, InputError
from imagereward.models.vlm.asking import hpsv3
from imagereward.models.vlm.asking.settings import HeadConfig

TEXTS = ("\nRate it. Braces stay.\nTextual prompt - {text_prompt}\n\n", "\nRatings: <|Reward|>\n\nEND\n")
PIXELS = (1024, 1024)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A source like the published one, with short texts, and their hash for the published one's."""
    file = tmp_path / "data_collator_qwen.py"
    names = dict(zip(hpsv3.NAMES, TEXTS))
    file.write_text("import nothing_of_this_is_run\n" + "".join(f"{k} = {v!r}\n" for k, v in names.items()))
    monkeypatch.setattr(hpsv3, "SHA256", hpsv3.hashlib.sha256("".join(TEXTS).encode()).hexdigest())
    return file


@pytest.fixture
def published(tiny_vlm, tmp_path):
    """(base directory, file of weights with the published names, its tensors)."""
    base = tiny_vlm("Qwen2-VL")
    model = PlainVLM(base).model
    model.resize_token_embeddings(model.config.get_text_config().vocab_size + 1)
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, value in model.state_dict().items():
        name = name.removeprefix("model.").removeprefix("language_model.")
        state[name if name.startswith(("visual.", "lm_head.")) else f"model.{name}"] = value.clone()
    for index, (width, inner) in {0: (32, 1024), 3: (1024, 16), 5: (16, 2)}.items():
        state[f"rm_head.{index}.weight"] = torch.randn(inner, width, generator=generator) / width**0.5
        state[f"rm_head.{index}.bias"] = torch.randn(inner, generator=generator)
    safetensors.torch.save_file(state, tmp_path / "HPSv3.safetensors")
    return base, tmp_path / "HPSv3.safetensors", state


def by_the_package(base, state, prompts, images):
    """[N, 2] as the package computes: Pillow resizes, one batch padded on the right, positions 0, 1, 2, …"""
    plain = PlainVLM(base)
    processor, model = plain.processor, plain.model
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
    model.resize_token_embeddings(len(processor.tokenizer))
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(state["model.embed_tokens.weight"])
    texts, resized = [], []
    for prompt, image in zip(prompts, images):
        question = TEXTS[0].format(text_prompt=prompt) + TEXTS[1]
        content = [{"type": "image"}, {"type": "text", "text": question}]
        chat = [{"role": "user", "content": content}]
        texts.append(processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        # 8 pixels a merged patch; sizes by hand: floor of the side that gives 1024 pixels in all.
        scale = (PIXELS[0] / (image.width * image.height)) ** 0.5
        grow = round(image.width / 8) * round(image.height / 8) * 64 < PIXELS[0]
        whole = np.ceil if grow else np.floor
        size = [int(whole(side * scale / 8)) * 8 for side in image.size]
        resized.append(image.convert("RGB").resize(size, PIL.Image.Resampling.BICUBIC))
    processor.tokenizer.padding_side = "right"
    inputs = processor(text=texts, images=resized, padding=True, return_tensors="pt")
    ids = inputs["input_ids"]
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids)
        features = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        embeds[ids == model.config.image_token_id] = features
        hidden = model.model.language_model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"])
        x = hidden.last_hidden_state[ids == processor.tokenizer.convert_tokens_to_ids("<|Reward|>")]
        for index in (0, 3, 5):
            x = F.linear(x, state[f"rm_head.{index}.weight"], state[f"rm_head.{index}.bias"])
            x = x.relu() if index < 5 else x
    return x.numpy()


def test_hpsv3_computes_what_its_package_computes(published, package):
    base, file, state = published
    judge = RM.load("HPSv3", "cpu", model=str(base), weights=file, template=package, pixels=PIXELS)
    images = pictures(4)
    expected = by_the_package(base, state, PROMPTS, images)
    assert np.ptp(expected[:, 0]) > 0.01
    np.testing.assert_allclose(judge.score_pairs(PROMPTS, images), expected[:, 0], atol=1e-5)
    np.testing.assert_allclose(np.diag(judge.score_matrix(PROMPTS, images)), expected[:, 0], atol=1e-5)
    assert judge.name == "HPSv3"


def test_hpsv3_is_differentiable(published, package):
    base, file, _ = published
    judge = RM.load("HPSv3", "cpu", model=str(base), weights=file, template=package, pixels=PIXELS)
    image = pictures(1)[0]
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float().div(255).requires_grad_()
    reward = judge.reward(pixels, PROMPTS[0])
    reward.sum().backward()
    assert pixels.grad.abs().max() > 0
    assert reward.item() == pytest.approx(judge.score(PROMPTS[0], image), abs=0.02)  # 8-bit rounding


def test_weights_that_do_not_fit_are_listed(published, package, tmp_path):
    base, _, state = published
    wrong = {**state, "extra": torch.ones(1)}
    del wrong["rm_head.5.bias"]
    safetensors.torch.save_file(wrong, tmp_path / "wrong.safetensors")
    options = {"model": str(base), "template": package, "pixels": PIXELS}
    with pytest.raises(CheckpointError, match=r"unexpected: extra|missing: layers\.5\.bias"):
        RM.load("HPSv3", "cpu", weights=tmp_path / "wrong.safetensors", **options)
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="it is no HPSv3"):
        RM.load("HPSv3", "cpu", weights=tmp_path / "other.safetensors", **options)


def test_the_instruction_is_read_checked_and_never_run(package, tmp_path, monkeypatch):
    template = hpsv3.hpsv3_template(package)
    assert template.text == "{image}" + TEXTS[0].replace("{text_prompt}", "{prompt}") + TEXTS[1]
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"not that of hpsv3 1\.0\.0"):
        hpsv3.hpsv3_template(package)
    with pytest.raises(InputError, match="cannot be read"):
        hpsv3.hpsv3_template(tmp_path / "nowhere")
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(InputError, match="has no text INSTRUCTION"):
        hpsv3.hpsv3_template(tmp_path / "empty.py")
    with pytest.raises(InputError, match="pip download hpsv3"):
        hpsv3.hpsv3_template(None)


def test_a_judge_with_a_head_is_saved_and_loaded(tiny_vlm, tmp_path):
    head = HeadConfig((8,), 1, bias=False)
    judge = RM.load(f"vqa:{tiny_vlm()}", "cpu", readout="head", template="preference", head=head)
    images = pictures(3)
    scores = judge.score("a cat", images)
    assert len(set(scores)) == 3
    again = RM.load(judge.save_pretrained(tmp_path / "saved"), "cpu")
    assert again.score("a cat", images) == scores
    assert again.name == "saved"
    assert json.loads((tmp_path / "saved/judge.json").read_text())["judge"]["readout"] == "head"
    (tmp_path / "saved/judge.json").write_text("{}")
    with pytest.raises(CheckpointError, match="does not describe a judge"):
        RM.load(tmp_path / "saved", "cpu")
