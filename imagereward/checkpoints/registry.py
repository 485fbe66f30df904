"""REGISTRY: a dict with all facts about every released checkpoint.

A further scorer that is a CLIP cosine or an ImageReward needs an entry here and no code.
"""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from imagereward.config import ScorerConfig
from imagereward.images.preprocess import Preprocess


@dataclass(frozen=True)
class File:
    """A file of weights.

    name      the file's name
    prefix    put before the file's keys, unless they have it already
    hub       hub repositories "owner/name" with the file, tried in order
    url       tried after `hub`
    sha256    hash in hexadecimal; None: unknown. `load` then warns, unless it downloaded the file itself
    ignored   prefixes of keys that belong to parts that scoring does not use
    transformers_names   the keys may have the names of transformers' CLIP
    packaged  the file is in the wheel, under `assets`
    """

    name: str
    prefix: str = ""
    hub: tuple[str, ...] = ()
    url: str | None = None
    sha256: str | None = None
    ignored: tuple[str, ...] = ()
    transformers_names: bool = False
    packaged: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """A released scorer.

    config   kind, architecture, preprocessing, and scale of the score
    files    the files with its weights
    scores   meaning and range of the scores, in words
    licence  licence of the weights
    paper    arXiv number or address
    note     a limitation that users must know, printed by the command; "" if there is none
    """

    config: ScorerConfig
    files: tuple[File, ...]
    scores: str
    licence: str
    paper: str
    note: str = ""

    @property
    def checked(self) -> str:
        """How the files are verified: by "sha256", "packaged", or "not" if the hash of a file is unknown."""
        if all(file.packaged for file in self.files):
            return "packaged"
        return "sha256" if all(file.packaged or file.sha256 for file in self.files) else "not"


ASSETS = Path(str(resources.files("imagereward") / "assets"))


def _packaged() -> dict[str, Checkpoint]:
    """The entry of the model in the wheel, with the config that is saved beside its weights."""
    saved = ASSETS / "ImageReward-tiny/config.json"
    config = json.loads(saved.read_text(encoding="utf-8"))["scorer"]
    tiny = Checkpoint(
        ScorerConfig.from_dict(config),
        (File("ImageReward-tiny/model.safetensors", packaged=True),),
        scores="preference among drawn shapes, about normal(0, 1)",
        licence="Apache-2.0",
        paper="assets/ImageReward-tiny/README.md",
        note="ImageReward-tiny knows Shapes, a drawn world of coloured shapes; of other pictures its scores "
        "mean nothing",
    )
    return {"ImageReward-tiny": tiny}


_CLIP_L = File(
    "open_clip_model.safetensors",
    prefix="clip_model.",
    hub=("timm/vit_large_patch14_clip_224.openai",),
)
# Parts of BLIP's pretraining checkpoint beside its two encoders and projections.
_BLIP_TRAINING_PARTS = (
    "visual_encoder_m.",
    "text_encoder_m.",
    "vision_proj_m.",
    "text_proj_m.",
    "text_decoder.",
    "itm_head.",
    "image_queue",
    "text_queue",
    "queue_ptr",
    "temp",
)


def _hps(version: str, file: str) -> Checkpoint:
    return Checkpoint(
        ScorerConfig("CLIP", "ViT-H-14", Preprocess(resizing="pad"), max_length=77),
        (File(file, prefix="clip_model.", hub=("xswu/HPSv2",)),),
        scores=f"human preference {version}, a cosine",
        licence="Apache-2.0",
        paper="arXiv:2306.09341",
    )


REGISTRY: dict[str, Checkpoint] = {
    "ImageReward-v1.0": Checkpoint(
        ScorerConfig("ImageReward", mean=0.16717362830052426, std=1.0333394966054072),
        (
            File(
                "ImageReward.pt",
                hub=("zai-org/ImageReward", "THUDM/ImageReward"),
                sha256="d71dc8d4912bc633c06ab8ef1ef6a81e8199d4369f14b47b29baf1d19de561f6",
            ),
        ),
        scores="human preference, about normal(0, 1)",
        licence="Apache-2.0",
        paper="arXiv:2304.05977",
    ),
    "CLIP": Checkpoint(
        ScorerConfig("CLIP", "ViT-L-14-quickgelu", max_length=77),
        (_CLIP_L,),
        scores="prompt fit, a cosine",
        licence="MIT",
        paper="arXiv:2103.00020",
    ),
    "BLIP": Checkpoint(
        ScorerConfig("BLIP"),
        (
            File(
                "model_large.pth",
                prefix="blip.",
                url="https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/model_large.pth",
                ignored=_BLIP_TRAINING_PARTS,
            ),
        ),
        scores="prompt fit, a cosine",
        licence="BSD-3-Clause",
        paper="arXiv:2201.12086",
    ),
    "Aesthetic": Checkpoint(
        ScorerConfig("Aesthetic", "ViT-L-14-quickgelu", max_length=77),
        (
            _CLIP_L,
            File(
                "sac+logos+ava1-l14-linearMSE.pth",
                prefix="mlp.",
                url="https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
                "sac%2Blogos%2Bava1-l14-linearMSE.pth",
                sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
            ),
        ),
        scores="beauty, 1 to 10; the prompt is ignored",
        licence="Apache-2.0",
        paper="laion.ai/blog/laion-aesthetics",
    ),
    "HPSv2.0": _hps("v2.0", "HPS_v2_compressed.pt"),
    "HPSv2.1": _hps("v2.1", "HPS_v2.1_compressed.pt"),
    "PickScore-v1": Checkpoint(
        ScorerConfig(
            "CLIP",
            "ViT-H-14",
            Preprocess(resizing="transformers"),
            max_length=77,
            scaled=True,
            tokenization="transformers",
        ),
        (
            File(
                "model.safetensors",
                prefix="clip_model.",
                hub=("yuvalkirstain/PickScore_v1",),
                transformers_names=True,
            ),
        ),
        scores="human preference, learned scale x cosine",
        licence="MIT",
        paper="arXiv:2305.01569",
    ),
    **_packaged(),
}


def available_models() -> list[str]:
    """Names of the reward models, trained on human preferences, that `load` takes."""
    return [name for name in REGISTRY if name not in available_scores()]


def available_scores() -> list[str]:
    """Names of the general scorers, which the original's `load_score` takes."""
    return ["CLIP", "BLIP", "Aesthetic"]
