"""Tokens and operations of judging a thousand images, counted, for Qwen's vocabulary and image sizes.

    python -m benchmarks.scoring.judge_costs

An image has 1024 x 1024 pixels, a prompt 16 words. Tokens are those of the rows that would pass the model;
the operations are 2 for each parameter and token of the language model, without the vision tower and
attention. A verdict's text is counted as `new_tokens` at most.
"""

import argparse

import PIL.Image
import torch

from benchmarks.lib import record
from benchmarks.lib.tiny_vlms import qwen2_vl
from benchmarks.scoring.judges import WORDS
from imagereward.models.vlm.asking.settings import JudgeConfig
from imagereward.models.vlm.asking.templates import TEMPLATES
from imagereward.models.vlm.asking.turns import Turns
from imagereward.models.vlm.backbone import EncodedImage
from imagereward.models.vlm.images import STANDS_FOR, VLMImages, stands_for
from imagereward.table import table

SIZES = (2, 8, 32)  # billions of parameters
IMAGES = 1000
# Most pixels of an image after resizing -> what that is in words.
PIXELS = {256 * 28 * 28: "pixels=(50176, 200704)", 16384 * 28 * 28: "the model's own limit"}


def counted(template: str, most: int) -> dict[str, float]:
    """Tokens read and written for a thousand images, and operations in 10^15 by size."""
    _, processor = qwen2_vl(True)
    processor.image_processor.patch_size = 14
    images = VLMImages(processor, (64 * 28 * 28, most))
    text = stands_for(images.load(PIL.Image.new("RGB", (1024, 1024)))[STANDS_FOR])
    encoded = [EncodedImage(torch.empty(0), (), text, None)]
    row = Turns(processor, TEMPLATES[template]).row(" ".join(WORDS), encoded, [0])
    written = JudgeConfig().new_tokens if TEMPLATES[template].grammar else 0
    read = len(row.ids)
    return {
        "template": template,
        "most_pixels": most,
        "tokens_of_the_image": sum(token == processor.image_token_id for token in row.ids),
        "tokens_read": read * IMAGES,
        "tokens_written_at_most": written * IMAGES,
        **{f"petaflop_{size}b": 2 * size * 1e9 * (read + written) * IMAGES / 1e15 for size in SIZES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    record.add_option(parser)
    record.refuse_changes(parser.parse_args().allow_changes)
    rows = [counted(template, most) for template in ("shows", "rubric") for most in PIXELS]
    print(table([{key: str(value) for key, value in row.items()} for row in rows]))
    environment = record.environment(torch.device("cpu"))
    print(record.write("judge-costs", {"rows": rows, "environment": environment}))


if __name__ == "__main__":
    main()
