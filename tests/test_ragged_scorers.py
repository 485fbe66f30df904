"""Scorers whose inputs do not stack, around a transformers model with buffers that no checkpoint holds."""

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import PROMPTS, pictures
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

import imagereward as RM
from imagereward.checkpoints.assembling import assemble
from imagereward.config import ScorerConfig
from imagereward.errors import CheckpointError, InputError
from imagereward.images.processor import Processor, as_arrays, as_tensors
from imagereward.models import KINDS
from imagereward.models.unsaved_buffers import make_unsaved_buffers
from imagereward.scoring.scorer import Scorer
from imagereward.tuning.rewards.weighted import open_rewards

PATCH, MERGE, IMAGE_TOKEN = 4, 2, 3
TEXT = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
TEXT |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
VISION = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
VISION |= {"patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2}


class Patches(Processor):
    """As many 4 x 4 patches as an image has, in an order of 2 x 2 blocks, each twice (two frames)."""

    def load(self, image):
        side = PATCH * MERGE
        height, width = (max(side, length // side * side) for length in (image.height, image.width))
        pixels = torch.from_numpy(np.array(image.convert("RGB").resize((width, height)))).float() / 255
        rows, columns = height // side, width // side
        blocks = pixels.reshape(rows, MERGE, PATCH, columns, MERGE, PATCH, 3).permute(0, 3, 1, 4, 6, 2, 5)
        patches = blocks.reshape(-1, 3, 1, PATCH, PATCH).expand(-1, -1, 2, -1, -1).flatten(1)
        return {"patches": patches, "grid": torch.tensor([1, rows * MERGE, columns * MERGE])}

    def collate(self, items):
        return {name: [item[name] for item in items] for name in ("patches", "grid")}

    def on_device(self, batch, device):
        return {name: [value.to(device) for value in values] for name, values in batch.items()}


class TinyQwen(Scorer):
    """The last token's logit of one word, given image and prompt together."""

    pairs_per_forward = 2

    def __init__(self, config):
        super().__init__(config)
        self.processor = Patches()
        special = {"image_token_id": IMAGE_TOKEN, "vision_start_token_id": 1, "bos_token_id": 0}
        settings = Qwen2VLConfig(text_config=TEXT, vision_config=VISION, eos_token_id=2, **special)
        self.model = Qwen2VLForConditionalGeneration(settings)

    def init_buffers(self):
        make_unsaved_buffers(self.model)

    def encode_images(self, batch):
        return list(zip(batch["patches"], batch["grid"]))

    def encode_prompts(self, prompts):
        return [[8 + byte % 50 for byte in prompt.encode()][: self.config.max_length] for prompt in prompts]

    def count_tokens(self, prompts):
        return [len(prompt.encode()) for prompt in prompts]

    def head(self, image_features, prompt_features, pairs_P_2):
        assert len(pairs_P_2) <= self.pairs_per_forward
        scores = []
        for image, prompt in pairs_P_2.tolist():
            patches, grid = image_features[image]
            words = [1, *[IMAGE_TOKEN] * (len(patches) // MERGE**2), *prompt_features[prompt], 4]
            ids = torch.tensor([words], device=self.device)
            out = self.model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == IMAGE_TOKEN).int(),
                pixel_values=patches.to(self.dtype),
                image_grid_thw=grid[None],
            )
            scores.append(out.logits[0, -1, 5])
        return torch.stack(scores)


CONFIG = ScorerConfig("TinyQwen", max_length=60)


@pytest.fixture
def qwen(monkeypatch):
    monkeypatch.setitem(KINDS, "TinyQwen", f"{__name__}:TinyQwen")
    torch.manual_seed(0)
    plain = TinyQwen(CONFIG).eval()
    return plain, assemble(CONFIG, plain.state_dict(), torch.device("cpu"), torch.float32)


def test_a_transformers_model_laid_out_without_memory_scores_as_one_made_plainly(qwen):
    plain, laid_out = qwen
    assert {name for name, _ in laid_out.named_buffers()} - laid_out.state_dict().keys()
    images = pictures(3)
    assert len({image.size for image in images}) == 3  # nothing to stack
    scores = laid_out.score_matrix(PROMPTS, images)
    assert len(np.unique(scores.round(6))) == scores.size
    np.testing.assert_allclose(scores, plain.score_matrix(PROMPTS, images), atol=1e-6)
    single = [[laid_out.score(prompt, image) for image in images] for prompt in PROMPTS]
    np.testing.assert_allclose(scores, single, atol=1e-5)


def test_a_scorer_that_forgets_its_buffers_is_named_with_them(qwen, monkeypatch):
    plain, _ = qwen
    monkeypatch.setattr(TinyQwen, "init_buffers", Scorer.init_buffers)
    with pytest.raises(CheckpointError, match=r"TinyQwen has buffers .* init_buffers .*inv_freq"):
        assemble(CONFIG, plain.state_dict(), torch.device("cpu"), torch.float32)


def test_it_is_saved_loaded_and_ensembled_with_others(qwen, scorers, tmp_path):
    _, scorer = qwen
    scorer.save_pretrained(tmp_path)
    loaded, images = RM.load(tmp_path, "cpu"), pictures(2)
    assert loaded.score("a", images) == scorer.score("a", images)
    both = RM.ensemble({loaded: 2.0, scorers["CLIP"]: 1.0})
    expected = 2 * np.array(scorer.score("a", images)) + scorers["CLIP"].score("a", images)
    np.testing.assert_allclose(both.score("a", images), expected, atol=1e-5)


def test_a_scorer_without_from_pixels_rewards_by_its_scores_and_has_no_gradient(qwen):
    _, scorer = qwen
    pixels = torch.rand(2, 3, 24, 40)
    assert not scorer.differentiable
    with pytest.raises(InputError, match="Patches makes no input of pixels differentiably"):
        scorer.reward(pixels, "a")
    rewards = open_rewards(scorer)
    images = [PIL.Image.fromarray((p.permute(1, 2, 0) * 255).round().byte().numpy()) for p in pixels]
    assert rewards(pixels, ["a", "b"])[0].tolist() == pytest.approx(
        scorer.score_pairs(["a", "b"], images), abs=1e-6
    )
    with pytest.raises(InputError, match="not differentiable"):
        rewards.check_differentiable((16, 16), "a")


def test_an_item_travels_as_arrays():
    item = Patches().load(pictures(1)[0])
    again = as_tensors(as_arrays(item))
    assert again.keys() == item.keys()
    assert all(torch.equal(again[name], item[name]) for name in item)
