"""Stand-ins for the released checkpoints that anyone can rebuild, at full size and in the released format.

    python tests/golden/weights.py ImageReward.pt

The released weights (1.8 GB) cannot live in a repository. `golden.json` holds the scores that the
original implementation gives on weights in which every tensor is drawn from a generator seeded by
its own name; this file draws the same ones. Equal scores on them mean equal scores on the released
ones.
"""

import json
import sys
import zlib
from pathlib import Path

import torch

HERE = Path(__file__).parent
SHAPES = json.loads((HERE / "shapes.json").read_text())
GOLDEN = json.loads((HERE / "golden.json").read_text())

# Factors on the spread that keeps activations of order one: sharper attention, and a prompt that
# stays audible over the image. The first part that a name contains decides.
GAINS = (
    ("crossattention.output.dense.weight", 0.3),
    ("self.query.weight", 3.0),
    ("self.key.weight", 3.0),
    ("qkv.weight", 2.0),
    ("in_proj_weight", 2.0),
)


def draw(name: str, shape: list[int], salt: str) -> torch.Tensor:
    """The tensor of that name: a function of `salt + name` and the shape alone."""
    if name == "logit_scale":
        return torch.tensor(4.6052)
    seeded = torch.Generator().manual_seed(zlib.crc32(f"{salt}{name}".encode()))
    noise = torch.randn(shape, generator=seeded)
    if len(shape) < 2:
        return 1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise
    gain = next((factor for part, factor in GAINS if part in name), 1.0)
    return gain * noise / noise[0].numel() ** 0.5


def build(part: str, salt: str = GOLDEN["salt"]) -> dict[str, torch.Tensor]:
    """The state dict of `part`: "ImageReward", "CLIP" or "Aesthetic" (the head alone)."""
    return {name: draw(name, shape, salt) for name, shape in SHAPES[part].items()}


if __name__ == "__main__":
    torch.save(build("ImageReward"), sys.argv[1])
    print(f"wrote {sys.argv[1]}")
