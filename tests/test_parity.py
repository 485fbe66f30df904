"""Golden scores: what the original implementation returns, at full size, on weights built by name.

The slowest file here (full-size models on every golden image), because equal numbers are the point.
`IMAGEREWARD_PARITY` may name a directory with what cannot be committed: the original's four photographs
(`images/1.webp` to `4.webp`) and the released Aesthetic head; with it they are checked too.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from golden.weights import GOLDEN, HERE, build
from typer.testing import CliRunner

import imagereward as RM
from imagereward.cli import app

TOLERANCE = 1e-4
EXTRA = Path(os.environ["IMAGEREWARD_PARITY"]) if "IMAGEREWARD_PARITY" in os.environ else None
FOLDERS = [HERE / "images", *([EXTRA / "images"] if EXTRA else [])]
FOUND = {name: folder / name for folder in FOLDERS for name in GOLDEN["images"] if (folder / name).exists()}
COLUMNS = [GOLDEN["images"].index(name) for name in FOUND]
IMAGES = [str(path) for path in FOUND.values()]
PROMPTS = GOLDEN["prompts"]

pytestmark = pytest.mark.filterwarnings("ignore::imagereward.errors.PromptTruncatedWarning")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Released file names and formats, full size, in one directory."""
    root = tmp_path_factory.mktemp("weights")
    state = build("ImageReward")
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(512)[None]  # as the released file may
    torch.save(state, root / "ImageReward.pt")
    blip = {name.removeprefix("blip."): value for name, value in state.items() if name.startswith("blip.")}
    blip |= {
        "itm_head.weight": torch.zeros(2, 768),
        "temp": torch.tensor(0.07),
    }  # parts only BLIP trains with
    torch.save({"model": blip}, root / "model_large.pth")
    safetensors.torch.save_file(build("CLIP"), root / "open_clip_model.safetensors")
    torch.save(build("Aesthetic"), root / "sac+logos+ava1-l14-linearMSE.pth")
    yield root
    shutil.rmtree(root)  # 5 GB


def loaded(name: str, weights: Path) -> RM.Scorer:
    """The scorer of these stand-ins: by its path where the name of the released file has a known hash."""
    paths = {"ImageReward": "ImageReward.pt", "Aesthetic": "sac+logos+ava1-l14-linearMSE.pth"}
    return RM.load(weights / paths[name] if name in paths else name, "cpu", weights)


def golden(scorer: str) -> np.ndarray:
    """[prompts, images] of the golden scores for the images at hand."""
    entry = GOLDEN[scorer]
    rows = [entry[prompt]["rewards"] for prompt in PROMPTS] if PROMPTS[0] in entry else [entry["rewards"]]
    return np.array(rows)[:, COLUMNS]


def places(rewards: np.ndarray) -> list[int]:
    return [1 + int((rewards > reward).sum()) for reward in rewards]


@pytest.mark.parametrize("name", ["ImageReward", "BLIP", "CLIP", "Aesthetic"])
def test_every_verb_gives_the_originals_scores_at_any_batch_size(weights, name):
    model = loaded(name, weights)
    want = golden(name)
    prompts = PROMPTS[: len(want)]

    matrix = model.score_matrix(prompts, IMAGES)
    np.testing.assert_allclose(matrix, want, atol=TOLERANCE, rtol=0)

    assert [places(row) for row in matrix] == [places(row) for row in want]
    # An image at a time, and a batch that is not full; the matrix had all images in one batch.
    for batch_size, images in ((1, IMAGES[:2]), (3, IMAGES[-4:])):
        expected = want[0][[IMAGES.index(image) for image in images]]
        ranking, rewards = model.inference_rank(prompts[0], images, batch_size=batch_size)
        np.testing.assert_allclose(rewards, expected, atol=TOLERANCE, rtol=0)
        assert ranking == places(expected)
        # Mixed prompts, repeated images: rows share neither side in a regular way.
        which = [(0, 0), (-1, 1), (0, 1), (-1, 2), (-1, 0)]
        pairs = model.score_pairs(
            [prompts[row] for row, _ in which], [IMAGES[column] for _, column in which], batch_size=batch_size
        )
        expected = [want[row, column] for row, column in which]
        np.testing.assert_allclose(pairs, expected, atol=TOLERANCE, rtol=0)


def test_the_command_line_gives_the_originals_scores_and_ranking(weights):
    result = CliRunner().invoke(
        app,
        [
            "rank",
            "--checkpoint",
            str(weights / "ImageReward.pt"),
            "--format",
            "json",
            PROMPTS[1],
            *IMAGES[:3],
        ],
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["ranking"]
    want = golden("ImageReward")[1, :3]
    assert [row["image"] for row in rows] == [IMAGES[index] for index in np.argsort(-want)]
    np.testing.assert_allclose([row["reward"] for row in rows], sorted(want, reverse=True), atol=TOLERANCE)


def test_score_gard_gives_the_originals_scores_from_tokens_and_normalised_pixels(weights):
    import PIL.Image

    model = loaded("ImageReward", weights)
    text = model.blip.tokenizer(
        [PROMPTS[0]] * 2, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    pixels = torch.stack([model.preprocess(PIL.Image.open(path)) for path in IMAGES[:2]])
    with torch.no_grad():
        rewards = model.score_gard(text.input_ids, text.attention_mask, pixels.to(model.device))
    assert rewards.shape == (2, 1)
    np.testing.assert_allclose(rewards[:, 0], golden("ImageReward")[0, :2], atol=TOLERANCE, rtol=0)


@pytest.mark.skipif(EXTRA is None, reason="IMAGEREWARD_PARITY names no directory with the released head")
def test_the_released_aesthetic_head_gives_the_originals_scores(weights):
    head = EXTRA / "sac+logos+ava1-l14-linearMSE.pth"
    scores = RM.load(head, "cpu", weights).score("", IMAGES)
    np.testing.assert_allclose(scores, golden("AestheticReleasedHead")[0], atol=TOLERANCE, rtol=0)
