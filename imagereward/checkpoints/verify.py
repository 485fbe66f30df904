"""verify: checks that this installation reproduces the published scores of four sample images."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from imagereward.checkpoints.hub import CACHE, fetch_from_url, sha256_of
from imagereward.checkpoints.loading import load
from imagereward.checkpoints.registry import REGISTRY
from imagereward.errors import DownloadError, ImageNotFound

# The example in the original's README: a prompt, and the scores of four images with the released weights.
PROMPT = "a painting of an ocean with clouds and birds, day time, low depth field effect"
PUBLISHED = (0.5811622738838196, 0.2745276093482971, -1.4131819009780884, -2.029569625854492)
SAMPLES = "https://raw.githubusercontent.com/THUDM/ImageReward/main/assets/images/"
TOLERANCE = 1e-3


def verify(
    checkpoint: str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
    device: str | None = None,
    download_root: str | os.PathLike | None = None,
) -> tuple[list[dict[str, Any]], bool]:
    """(rows, whether the weights are the released file and all scores agree within TOLERANCE).

    checkpoint     the weights; default: the released ImageReward-v1.0, downloaded if needed
    images         directory with 1.webp to 4.webp; default: downloaded if needed
    device         default: that of `load`
    download_root  directory for downloads; default: ~/.cache/ImageReward

    A row has the image's name, the published and the measured score, their absolute difference, and whether
    the weights are the released file. Raises DownloadError listing files that could not be downloaded,
    ImageNotFound for a sample that is missing in `images`.
    """
    directory = Path(images) if images else Path(download_root or CACHE).expanduser() / "samples"
    paths = [directory / f"{number}.webp" for number in range(1, 5)]
    unreachable = []
    for path in paths:
        if not path.is_file():
            if images:
                raise ImageNotFound(f"{path} does not exist; expected the samples 1.webp to 4.webp")
            try:
                if constants.HF_HUB_OFFLINE:
                    raise DownloadError(f"{SAMPLES}{path.name}: not tried, offline")
                fetch_from_url(SAMPLES + path.name, path)
            except DownloadError as error:
                unreachable.append(f"sample image {error}")
                break
    try:
        name, kind = (checkpoint, "ImageReward-v1.0") if checkpoint else ("ImageReward-v1.0", None)
        model = load(name, device, download_root, kind=kind)
    except DownloadError as error:
        unreachable.append(f"weights {error}")
    if unreachable:
        raise DownloadError("cannot verify; out of reach:\n" + "\n".join(unreachable))
    (file,) = REGISTRY["ImageReward-v1.0"].files
    released = sha256_of(model.files[""]) == file.sha256
    weights = "released" if released else "NOT the released file"
    measured = model.score_pairs([PROMPT] * len(paths), paths)
    rows = [
        {
            "image": path.name,
            "published": want,
            "measured": got,
            "difference": abs(want - got),
            "weights": weights,
        }
        for path, want, got in zip(paths, PUBLISHED, measured)
    ]
    worst = max(abs(want - got) for want, got in zip(PUBLISHED, measured))
    return rows, released and worst <= TOLERANCE
