"""Shapes: a synthetic world of prompts, drawn images and known preferences, and a measure of images.

request = ask(rng)                      a random scene request
prompt = say(request, rng)              a sentence for it; read(prompt) parses it back
image, truth = candidate(request, faithfulness=1, quality=0, rng=rng)
write("shapes", prompts=1000, seed=0)   a data set in ImageRewardDB's layout
measure(image, prompt)                  scores computed from the pixels, without a learned model
"""

from imagereward.shapes.corrupt import DAMAGES, LEVELS, MISTAKES
from imagereward.shapes.dataset import candidate, candidates, pair, pairs, prompt, write, wrong_prompt
from imagereward.shapes.language import read, say, vocabulary
from imagereward.shapes.masked import MaskedScene, masked_scene
from imagereward.shapes.measure import Measurement, measure
from imagereward.shapes.render import draw, to_image
from imagereward.shapes.scene import MOST_THINGS, Group, Scene, SceneRequest, Thing, arrange, ask
from imagereward.shapes.truth import Annotator, Truth

__all__ = [
    "DAMAGES",
    "LEVELS",
    "MISTAKES",
    "MOST_THINGS",
    "Annotator",
    "Group",
    "MaskedScene",
    "Measurement",
    "Scene",
    "SceneRequest",
    "Thing",
    "Truth",
    "arrange",
    "ask",
    "candidate",
    "candidates",
    "draw",
    "masked_scene",
    "measure",
    "pair",
    "pairs",
    "prompt",
    "read",
    "say",
    "to_image",
    "vocabulary",
    "write",
    "wrong_prompt",
]
